"""`python -m build_engine`: build, verify, bench, list. Exit codes: 0 done, 1 unexpected, 2 wrong usage, 3 no TensorRT or GPU."""

import json
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from build_engine import bench as benching
from build_engine import verify as verifying
from build_engine.build import Options, Profile
from build_engine.cache import EngineCache, default_folder
from build_engine.errors import EngineError, UsageError
from build_engine.flavour import find_gpu
from build_engine.job import Job
from build_engine.runner import OnnxRuntimeRunner, Runner, open_engine
from model.bundle import Bundle, BundleError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="TensorRT engines from a bundle: build one for the GPU it will run on, check it, measure it.\n\n"
    "Exit codes: 0 done, 1 unexpected or not verified, 2 wrong usage or bundle, 3 no TensorRT, no GPU, or the lock was not free.",
)
_OUT = Console() if sys.stdout.isatty() else Console(width=160)  # a pipe has no width
_GIB = 1 << 30


class PrecisionChoice(StrEnum):
    """fp16 is for speed, fp32 for comparing."""

    fp16 = "fp16"
    fp32 = "fp32"


class FlavourChoice(StrEnum):
    """auto takes tensorrt where it is installed, else tensorrt_rtx."""

    auto = "auto"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt_rtx"


class HardwareChoice(StrEnum):
    """What other GPUs may load the engine."""

    none = "none"
    ampere_plus = "ampere_plus"
    same_compute_capability = "same_compute_capability"


BundleFolder = Annotated[Path, typer.Option("--bundle", help="The bundle's folder.")]
Precision = Annotated[PrecisionChoice, typer.Option("--precision", help="fp16 is for speed, fp32 for comparing.")]
Batch = Annotated[str, typer.Option("--batch", metavar="MIN,OPT,MAX", help="Smallest, tuned-for and largest batch.")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Folder of engines; default: ~/.cache/listing-enricher/engines.")]
CacheSize = Annotated[float, typer.Option("--cache-gib", min=0, help="Engines beyond it go, least recently used first.")]
LockTimeout = Annotated[float, typer.Option("--lock-timeout-s", min=0, help="Wait so long for another that builds the same.")]
Workspace = Annotated[int | None, typer.Option("--workspace-mib", help="Memory for tactics; default: what the GPU has.")]
Level = Annotated[int, typer.Option("--optimization-level", help="0 builds fast, 5 searches longest.")]
Hardware = Annotated[HardwareChoice, typer.Option("--hardware-compatibility", help="What other GPUs may load it; tensorrt only.")]
VersionCompatible = Annotated[bool, typer.Option("--version-compatible", help="Later versions may load it; tensorrt only.")]
Flavour = Annotated[FlavourChoice, typer.Option("--flavour", help="auto: tensorrt where it is installed, else tensorrt_rtx.")]
Capability = Annotated[str | None, typer.Option("--compute-capability", help="For tensorrt_rtx without a GPU, for example 8.9.")]
TimingCache = Annotated[Path | None, typer.Option("--timing-cache", help="File of tactic timings; default: one in the cache.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _print(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def _cache(folder: Path | None, *, gib: float = 10, lock_timeout_s: float = 900) -> EngineCache:
    return EngineCache(folder or default_folder(), size_max_bytes=int(gib * _GIB), lock_timeout_s=lock_timeout_s, say=_say)


@app.command()
def build(
    bundle: BundleFolder,
    precision: Precision = PrecisionChoice.fp16,
    batch: Batch = "1,256,1024",
    cache: Cache = None,
    cache_gib: CacheSize = 10,
    lock_timeout_s: LockTimeout = 900,
    workspace_mib: Workspace = None,
    optimization_level: Level = 3,
    hardware_compatibility: Hardware = HardwareChoice.none,
    version_compatible: VersionCompatible = False,
    flavour: Flavour = FlavourChoice.auto,
    compute_capability: Capability = None,
    timing_cache: TimingCache = None,
) -> None:
    """Compiles the bundle's graph unless the cache has the engine; prints its path. Verified before it is kept, where a GPU is.

    Example: python -m build_engine build --bundle model/bundles/books --flavour tensorrt_rtx --compute-capability 8.9
    """
    options = Options(
        precision=precision.value,
        profile=Profile.parse(batch),
        workspace_mib=workspace_mib,
        optimization_level=optimization_level,
        hardware_compatibility=hardware_compatibility.value,
        version_compatible=version_compatible,
    )
    job = Job.prepare(Bundle.load(bundle), options, flavour=flavour.value, compute_capability=compute_capability)
    engines = _cache(cache, gib=cache_gib, lock_timeout_s=lock_timeout_s)
    start = time.monotonic()
    timings = timing_cache or job.timing_cache_in(engines.folder)
    with engines.get_or_build(job.fingerprint, lambda: job.build(timings, _say), verified=job.can_verify) as engine:
        verified = "verified" if engine.verified else "NOT verified on a GPU"
        _say(f"{options.precision} engine of {len(engine.plan) / 1e6:.1f} MB, {verified}, in {time.monotonic() - start:.1f} s")
        sys.stdout.write(f"{engines.folder / job.fingerprint.digest}.engine\n")


@app.command()
def verify(
    bundle: BundleFolder,
    precision: Precision = PrecisionChoice.fp16,
    cache: Cache = None,
    flavour: Flavour = FlavourChoice.auto,
    as_json: AsJson = False,
) -> None:
    """Holds the cached engine against ONNX Runtime: 2,048 rows, every task; exit code 1 when one fails. Needs the GPU.

    Example: python -m build_engine verify --bundle model/bundles/books --precision fp16
    """
    job = Job.on_this_gpu(Bundle.load(bundle), precision.value, flavour=flavour.value)
    with job.cached(_cache(cache)) as engine:
        report = job.verified(engine.plan)
    if as_json:
        _print(verifying.as_document(report))
    else:
        table = Table("output", "agreement", "largest difference", "smallest cosine", "")
        for found in report.findings:
            passed = "ok" if found.passed else "FAIL"
            table.add_row(
                found.output, f"{found.agreement:.5f}", f"{found.difference_max:.2g}", f"{found.cosine_min:.6f}", passed
            )
        _OUT.print(table)
    report.require()


@app.command()
def bench(
    bundle: BundleFolder,
    precision: Precision = PrecisionChoice.fp16,
    cache: Cache = None,
    flavour: Flavour = FlavourChoice.auto,
    seconds: Annotated[float, typer.Option(min=0.01, help="For each measurement.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Rows/s and latency by batch of the cached engine, with and without CUDA graphs, beside ONNX Runtime. Needs the GPU.

    Example: python -m build_engine bench --bundle model/bundles/books --json
    """
    job = Job.on_this_gpu(Bundle.load(bundle), precision.value, flavour=flavour.value)
    with job.cached(_cache(cache)) as engine:
        gpu, manifest = find_gpu(), job.bundle.manifest
        runners: dict[str, Runner] = {}
        try:
            for name, graphs in (("engine", False), ("engine, CUDA graphs", True)):
                try:
                    runners[name] = open_engine(engine.plan, manifest, flavour=job.flavour.name, gpu=gpu, cuda_graphs=graphs)
                except UsageError as error:
                    _say(f"not measured: {name}: {error}")
            runners["onnxruntime, CPU"] = OnnxRuntimeRunner(job.bundle.graph_path.read_bytes())
            sizes = benching.batches_up_to(engine.fingerprint.options["profile"]["batch_max"])
            measured = benching.bench(runners, job.rows, sizes, seconds=seconds)
        finally:
            for runner in runners.values():
                runner.close()
    if as_json:
        _print(benching.as_document(measured))
        return
    table = Table("runner", "batch", "rows/s", "p50 ms", "p99 ms", "parts, ms")
    for each in measured:
        parts = ", ".join(f"{part} {ms:.3f}" for part, ms in each.parts_ms.items())
        table.add_row(each.runner, str(each.batch), f"{each.rows_per_s:,.0f}", f"{each.p50_ms:.3f}", f"{each.p99_ms:.3f}", parts)
    _OUT.print(table)


@app.command("list")
def list_engines(bundle: BundleFolder, cache: Cache = None, as_json: AsJson = False) -> None:
    """What is in the cache: for which GPU, how old, in use or not, of this bundle or another, and what is broken.

    Example: python -m build_engine list --bundle model/bundles/books
    """
    own = Bundle.load(bundle).manifest.files["model.onnx"].sha256
    documents = []
    for entry in _cache(cache).entries():
        fingerprint = entry.details.get("fingerprint", {})
        documents.append(
            {
                "engine": entry.digest,
                "mb": round(entry.size_bytes / 1e6, 1),
                "for": f"{fingerprint.get('gpu', '?')} {fingerprint.get('compute_capability', '')}".strip(),
                "built by": f"{fingerprint.get('flavour', '?')} {fingerprint.get('version', '')}".strip(),
                "precision": fingerprint.get("options", {}).get("precision", "?"),
                "of this bundle": fingerprint.get("onnx_sha256") == own,
                "age h": round((time.time() - entry.details["built_at"]) / 3600, 1) if entry.details else None,
                "in use": entry.in_use,
                "verified": entry.details.get("verified", False),
                "problem": entry.problem,
            }
        )
    if as_json:
        _print(documents)
        return
    table = Table("engine", "MB", "for", "built by", "precision", "of this bundle", "age h", "in use", "verified", "problem")
    for document in documents:
        table.add_row(*("" if value is None else str(value) for value in document.values()))
    _OUT.print(table)


def main() -> NoReturn:
    """Runs a command; an error of ours becomes one line on standard error and its exit code."""
    try:
        app()
    except BundleError as error:
        _say(f"BundleError: {error}")
        sys.exit(2)
    except EngineError as error:
        _say(f"{type(error).__name__}: {error}")
        sys.exit(error.exit_code)
    sys.exit(0)


if __name__ == "__main__":
    main()
