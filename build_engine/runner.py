"""What runs a graph or an engine, as verify and bench see it."""

import pkgutil
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from build_engine.errors import Unavailable
from build_engine.flavour import FlavourName, Gpu
from model.bundle import Manifest

Arrays = Mapping[str, NDArray[Any]]
# Named, not imported: the service's package knows this one, never the reverse.
ENGINE_RUNNER = "consumer.inference.tensorrt:open_engine"


class Runner(Protocol):
    """Made, used and closed on one thread: a GPU context belongs to its thread."""

    def infer(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """One pass: the graph's inputs by name to its outputs by name, first axis the batch."""
        ...

    def close(self) -> None:
        """Frees what the runner holds."""
        ...


@runtime_checkable
class TimedRunner(Protocol):
    """A runner that knows the parts of a pass.

    Attributes:
        parts_ms: of the last `infer`, by name: `host_to_device`, `compute`, `device_to_host`; taken by events on the stream.
    """

    parts_ms: Mapping[str, float]


class OnnxRuntimeRunner:
    """A graph on the CPU.

    Args:
        graph: an ONNX model, serialized.
        threads: cores that one pass may use.
    """

    def __init__(self, graph: bytes, *, threads: int = 2) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def infer(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """See `Runner.infer`."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    def close(self) -> None:
        """The session goes with its last reference."""


def runs_engines() -> bool:
    """Whether there is a backend for `open_engine`; whether it finds its driver shows only when it opens one."""
    try:
        pkgutil.resolve_name(ENGINE_RUNNER)
    except (ImportError, AttributeError):
        return False
    return True


def open_engine(plan: bytes, manifest: Manifest, *, flavour: FlavourName, gpu: Gpu | None, cuda_graphs: bool = False) -> Runner:
    """An engine on the GPU of this machine.

    Raises:
        Unavailable: there is no GPU, or no backend that runs engines.
        UsageError: CUDA graphs are asked for where the flavour does not capture them.
    """
    if gpu is None:
        raise Unavailable("an engine runs only on a GPU, and nvidia-smi shows none")
    try:
        opener = pkgutil.resolve_name(ENGINE_RUNNER)
    except (ImportError, AttributeError) as error:
        raise Unavailable(f"nothing here runs an engine: {ENGINE_RUNNER}: {error}") from error
    runner: Runner = opener(plan, manifest, flavour=flavour, cuda_graphs=cuda_graphs)
    return runner
