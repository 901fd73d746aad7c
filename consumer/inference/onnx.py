"""ONNX Runtime: the backend where there is no GPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from consumer.inference import Arrays, InferenceFailed, OutOfMemory
from consumer.inference.tensors import batch_of
from model.bundle import FEWEST_COVERS, TensorSpec

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
# Its arena says so in words only.
_NO_MEMORY = ("Failed to allocate memory", "bad_alloc")
_DTYPES: dict[str, Literal["int32", "float32", "uint8"]] = {
    "tensor(int32)": "int32",
    "tensor(float)": "float32",
    "tensor(uint8)": "uint8",
}


# Tokens are padded to the longest row: rows of like length go together, as many as fit the caches. On 2,048 real listings a batch
# of 256 took 75 µs a row in one piece and 55 µs so. Rows with a cover go apart from those without, which need no convolutions.
ROWS_AT_ONCE = 64
# A few long descriptions would pad 60 short titles to 300 tokens: where that adds more tokens than a pass of its own costs, the
# long ones go apart.
_PADDING_MAX = 2500
_TOKENS = ("token_ids", "token_weights")


class OnnxRuntimeBackend:
    """The bundle's graph on the CPU.

    Args:
        graph: the ONNX file.
        threads: cores that one pass may use.
    """

    name = "onnxruntime"
    engine: str | None = None

    def __init__(self, graph: Path, *, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin between batches would take the cores that decoding and the client need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        found = session.get_inputs()
        self._inputs = [TensorSpec(name=each.name, dtype=_DTYPES[each.type], shape=tuple(each.shape)) for each in found]
        self._outputs = [output.name for output in session.get_outputs()]
        self._session: onnxruntime.InferenceSession | None = session
        first = {each.name: each.shape[0] for each in found}
        self._fewest_covers = FEWEST_COVERS.get(str(first.get("cover")))  # None: an old bundle's graph, which needs one a row

    def infer(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """See `InferenceBackend.infer`."""
        batch_of(inputs, self._inputs)
        tokens = np.count_nonzero(inputs["token_weights"], axis=1)
        with_cover = inputs["cover_present"][:, 0] > 0
        groups = [np.ones(len(tokens), dtype=np.bool_)] if self._fewest_covers is None else [with_cover, ~with_cover]
        parts: list[Arrays] = []
        taken: list[NDArray[np.intp]] = []
        for group in groups:
            members = np.flatnonzero(group)
            members = members[np.argsort(tokens[members], kind="stable")]
            for rows in np.split(members, _cuts(tokens[members].tolist())) if len(members) else ():
                taken.append(rows)
                parts.append(self._run(self._part(inputs, rows, tokens_max=int(tokens[rows[-1]]))))
        back = np.argsort(np.concatenate(taken), kind="stable")
        return {name: np.concatenate([part[name] for part in parts])[back] for name in self._outputs}

    def _part(self, inputs: Arrays, rows: NDArray[np.intp], *, tokens_max: int) -> Arrays:
        """Some rows, all with a cover or all without, and no more columns of tokens than they use."""
        part = {name: array[rows, : max(1, tokens_max)] if name in _TOKENS else array[rows] for name, array in inputs.items()}
        if self._fewest_covers is not None and not part["cover_present"].any():
            part["cover"] = part["cover"][: self._fewest_covers]
        return part

    def _run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        if self._session is None:
            raise InferenceFailed("onnxruntime: the backend is closed")
        try:
            results = self._session.run(self._outputs, dict(inputs))
        except _ERRORS as error:
            memory = isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)
            raise (OutOfMemory if memory else InferenceFailed)(f"onnxruntime: {error}") from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """The session frees its memory with its last reference."""
        self._session = None


def _cuts(tokens: Sequence[int]) -> list[int]:
    """Where rows with so many tokens each, ascending, are cut into passes."""
    cuts, first, padding = [], 0, 0
    for place in range(1, len(tokens)):
        padding += (tokens[place] - tokens[place - 1]) * (place - first)  # all rows before are padded to this one
        if place - first >= ROWS_AT_ONCE or padding > _PADDING_MAX:
            cuts.append(place)
            first, padding = place, 0
    return cuts
