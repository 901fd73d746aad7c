"""One engine of one bundle for one GPU, from the graph to what is kept in the cache."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Literal

from build_engine.build import Compiled, Options, compile_engine, target_of
from build_engine.cache import Built, Engine, EngineCache, Fingerprint, write_durably
from build_engine.errors import Unavailable, UsageError
from build_engine.flavour import Flavour, Gpu, find_flavour, find_gpu
from build_engine.precision import Precision, engine_graph
from build_engine.runner import OnnxRuntimeRunner, Runner, open_engine, runs_engines
from build_engine.verify import Report, Rows, verification_rows, verify
from model.bundle import Bundle


@dataclass(frozen=True)
class Job:
    """All that is known before anything is compiled. Make one with `Job.prepare`."""

    bundle: Bundle
    options: Options
    flavour: Flavour
    target: Gpu
    gpu: Gpu | None  # the one in this machine

    @classmethod
    def prepare(
        cls,
        bundle: Bundle,
        options: Options,
        *,
        flavour: Literal["auto", "tensorrt", "tensorrt_rtx"],
        compute_capability: str | None,
    ) -> "Job":
        """Finds TensorRT and the GPU to build for.

        Raises:
            UsageError: the options do not go together.
            Unavailable: there is no TensorRT, or it needs a GPU and there is none.
        """
        found, gpu = find_flavour(flavour), find_gpu()
        return cls(bundle, options, found, target_of(found, options, compute_capability=compute_capability, gpu=gpu), gpu)

    @classmethod
    def on_this_gpu(cls, bundle: Bundle, precision: Precision, *, flavour: Literal["auto", "tensorrt", "tensorrt_rtx"]) -> "Job":
        """For an engine that is to run here.

        Raises:
            Unavailable: there is no GPU, or no TensorRT.
        """
        if find_gpu() is None:
            raise Unavailable("an engine runs only on a GPU, and nvidia-smi shows none")
        return cls.prepare(bundle, Options(precision=precision), flavour=flavour, compute_capability=None)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Of the bundle's graph and, as it is rewritten here, of the code that does so by the graph it gives."""
        return Fingerprint(
            onnx_sha256=self.bundle.manifest.files["model.onnx"].sha256,
            options=asdict(self.options) | {"graph_sha256": sha256(self.graph).hexdigest()},
            flavour=self.flavour.name,
            version=self.flavour.version,
            compute_capability=self.target.compute_capability,
            gpu=self.target.name,
        )

    @cached_property
    def graph(self) -> bytes:
        """What is compiled: the bundle's graph in the precision that is asked for."""
        model = engine_graph(
            self.bundle.graph_path, precision=self.options.precision, tokens=self.bundle.manifest.features.tokens_max
        )
        serialized: bytes = model.SerializeToString(deterministic=True)
        return serialized

    @cached_property
    def rows(self) -> Rows:
        """What outputs are compared on."""
        golden, _ = self.bundle.golden()
        return verification_rows(golden, tokens=self.bundle.manifest.features.tokens_max)

    @property
    def can_verify(self) -> bool:
        """The GPU it is for is here, and a backend that runs engines."""
        return self.gpu is not None and self.gpu.compute_capability == self.target.compute_capability and runs_engines()

    def build(self, timing_cache: Path, say: Callable[[str], None]) -> Built:
        """Checks the graph on the CPU, compiles it and, where that can be done, verifies the engine.

        Raises:
            NotVerified: graph or engine are not the bundle's model.
            Unavailable: the backend finds no driver.
            TensorRTError, UsageError: from `compile_engine`.
        """
        self._compared(OnnxRuntimeRunner(self.graph)).require()
        compiled = self._compiled(timing_cache)
        if not self.can_verify:
            say("the graph was verified on the CPU, the engine was not: that needs the GPU it is for, and a backend for it")
            return Built(compiled.plan, verified=False)
        self.verified(compiled.plan).require()
        return Built(compiled.plan, verified=True)

    def verified(self, plan: bytes) -> Report:
        """Runs the engine on this machine's GPU and compares it with ONNX Runtime on the bundle's own graph.

        Raises:
            Unavailable: there is no GPU, or nothing that runs an engine.
        """
        runner = open_engine(plan, self.bundle.manifest, flavour=self.flavour.name, gpu=self.gpu)
        try:
            return self._compared(runner)
        finally:
            runner.close()

    def cached(self, cache: EngineCache) -> Engine:
        """The most recently used engine of this graph, precision, TensorRT and GPU, whatever its other options.

        Raises:
            UsageError: there is none.
        """

        def fits(found: Fingerprint) -> bool:
            same = replace(found, options=self.fingerprint.options) == self.fingerprint
            return same and bool(found.options["precision"] == self.options.precision)

        if (engine := cache.newest(fits)) is not None:
            return engine
        raise UsageError(f"{cache.folder} has no {self.options.precision} engine of this bundle; `build_engine build` makes one")

    def timing_cache_in(self, folder: Path) -> Path:
        """Where the timings of this version and GPU are kept."""
        gpu = "".join(letter if letter.isalnum() else "-" for letter in self.target.name)
        return folder / f"{self.flavour.name}-{self.flavour.version}-{self.target.compute_capability}-{gpu}.timings"

    def _compared(self, runner: Runner) -> Report:
        reference = OnnxRuntimeRunner(self.bundle.graph_path.read_bytes())
        manifest, options = self.bundle.manifest, self.options
        return verify(runner, reference, self.rows, manifest, precision=options.precision, batch=options.profile.batch_opt)

    def _compiled(self, timing_cache: Path) -> Compiled:
        former = timing_cache.read_bytes() if timing_cache.is_file() else None
        compiled = compile_engine(self.flavour, self.graph, self.options, gpu=self.target, timing_cache=former)
        if compiled.timing_cache is not None:
            write_durably(timing_cache, compiled.timing_cache)
        return compiled
