"""ONNX Runtime: the backend where there is no GPU."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from consumer.inference import Arrays, InferenceFailed

# onnxruntime's exceptions share no base of their own.
_ERRORS = (
    state.EPFail,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.RuntimeException,
    state.NotImplemented,
    MemoryError,
    ValueError,
)


onnxruntime.disable_telemetry_events()  # a shop's service tells nobody else what it runs


class OnnxRuntimeBackend:
    """The bundle's fp32 graph on the CPU.

    Args:
        graph: the ONNX file.
        threads: cores that one pass may use.
    """

    name = "onnxruntime"

    def __init__(self, graph: Path, *, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin between batches would take the cores that decoding and the client need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def infer(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """See `InferenceBackend.infer`."""
        try:
            results = self._session.run(self._outputs, dict(inputs))
        except _ERRORS as error:
            raise InferenceFailed(f"onnxruntime: {error}") from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """The session frees its memory with its last reference."""
        del self._session
