"""TensorRT: a bundle's engine on the GPU, in the service's process.

A batch is cut into passes of the size that the engine was tuned for. Slots take them in turn, each with its own stream,
execution context and memory: while one slot computes, the next one's inputs are copied in and the former one's outputs out. A
pass is rounded up to one of a few sizes; the rows that fill it up are zero, and so are tokens beyond a batch's width.

The feature code does not write into pinned memory itself. Features are made on another thread, for batches that may still be
bisected or dropped, while pinned memory must be freed by the thread that owns the context; and a batch's width is known only
when they are made. So there is one copy into pinned memory, the one that pads. All inputs of a pass lie side by side there,
and so do all outputs: one transfer each way, however many tasks a bundle has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from traceback import clear_frames
from typing import Any

import numpy as np
from numpy.typing import NDArray

from build_engine.errors import EngineError, UsageError
from build_engine.flavour import Flavour, FlavourName, TensorRTError, collecting_logger, find_flavour, required
from consumer.inference import Arrays, InferenceFailed
from consumer.inference.device import Bytes, Device, Lane, quietly
from consumer.inference.tensors import batch_of
from model.bundle import Manifest, TensorSpec

SLOTS = 2
PARTS = ("host_to_device", "compute", "device_to_host")
_ALIGNMENT = 256  # of addresses that TensorRT is given


class WrongEngine(EngineError):
    """The engine's inputs and outputs are not the bundle's; the message names the tensor, what was expected and found."""


def open_engine(plan: bytes, manifest: Manifest, *, flavour: FlavourName, cuda_graphs: bool = False) -> "TensorRtBackend":
    """An engine on the GPU of this machine, for this thread; what `build_engine verify` and `bench` run.

    Args:
        cuda_graphs: each shape is captured once and then replayed. Only `tensorrt_rtx` does so by itself.

    Raises:
        UsageError: CUDA graphs are asked for and the flavour is `tensorrt`.
        Unavailable: there is no TensorRT, no pycuda, no driver or no GPU.
        TensorRTError, WrongEngine: see `TensorRtBackend`.
    """
    if cuda_graphs and flavour != "tensorrt_rtx":
        raise UsageError(f"CUDA graphs: pycuda has no calls for them, and only tensorrt_rtx captures by itself, not {flavour}")
    return TensorRtBackend(Device(), plan, manifest, find_flavour(flavour), cuda_graphs=cuda_graphs)


class TensorRtBackend:
    """A deserialized engine with its slots. `infer` and `close` belong to the thread that made it.

    Args:
        device: closed with the backend, also where this constructor fails.
        plan: the engine's bytes, whose sha256 was compared: they are data from outside.
        engine: their fingerprint.

    Attributes:
        parts_ms: of the last `infer`, by name (`PARTS`), summed over its passes, which overlap; by events on the streams.

    Raises:
        TensorRTError: the engine cannot be loaded, with what TensorRT logged.
        WrongEngine: its names, dtypes or shapes are not the manifest's.
    """

    def __init__(
        self,
        device: Device,
        plan: bytes,
        manifest: Manifest,
        flavour: Flavour,
        *,
        engine: str | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self.name: str = flavour.name
        self.engine = engine
        self.parts_ms: Mapping[str, float] = dict.fromkeys(PARTS, 0.0)
        self._device = device
        self._manifest = manifest
        self._lines: list[str] = []
        self._slots: list[_Slot] = []
        # Freed in the reverse order: contexts before their engine, it before its runtime, which must not outlive the logger.
        self._logger: Any = None
        self._runtime: Any = None
        self._loaded: Any = None
        try:
            self._load(plan, flavour)
            self._ports = _checked_ports(_tensors_of(self._loaded, flavour.trt), manifest)
            for _ in range(SLOTS):
                self._slots.append(_Slot(device, self._context(flavour.trt, cuda_graphs=cuda_graphs), self._ports))
                self._slots[-1].choose_profile()
        except BaseException as error:
            clear_frames(error.__traceback__)  # what they name would outlive the context
            self.close()
            if isinstance(error, (*device.errors, _Refused, TypeError, RuntimeError, MemoryError)):  # the last three: from C++
                what = f"{flavour.name} {flavour.version}: the engine cannot be made ready: {error}"
                raise TensorRTError(what, self._lines) from error
            raise

    def _load(self, plan: bytes, flavour: Flavour) -> None:
        self._logger = collecting_logger(flavour, self._lines)
        self._runtime = required(flavour.trt.Runtime(self._logger), "no runtime was made", self._lines)
        loaded = self._runtime.deserialize_cuda_engine(plan)
        self._loaded = required(loaded, "the engine cannot be deserialized", self._lines)

    def _context(self, trt: Any, *, cuda_graphs: bool) -> Any:
        if cuda_graphs:
            config = required(self._loaded.create_runtime_config(), "no runtime configuration was made", self._lines)
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            return required(self._loaded.create_execution_context(config), "no execution context was made", self._lines)
        return required(self._loaded.create_execution_context(), "no execution context was made", self._lines)

    def infer(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """See `InferenceBackend.infer`.

        Raises:
            OutOfMemory, InferenceFailed: this batch failed; nothing of it is under way any more.
            DeviceLost: the context is gone.
            RuntimeError: called on another thread than the one that owns the GPU's context.
        """
        self._device.require_own_thread()
        if not self._slots:
            raise InferenceFailed("the backend is closed")
        rows = batch_of(inputs, self._manifest.inputs)
        for port in self._ports.inputs:
            if (width := inputs[port.name].shape[1]) > port.shape[0]:
                raise InferenceFailed(f"input {port.name}: expected at most {port.shape[0]} a row, found {width}")
        self._lines.clear()
        try:
            return self._passes(inputs, rows)
        except self._device.errors + (_Refused,) as error:  # noqa: RUF005  a display of both is no tuple of types to mypy
            raise self._device.translated(error) from error

    def _passes(self, inputs: Arrays, rows: int) -> dict[str, NDArray[np.float32]]:
        outputs = {port.name: np.empty((rows, *port.shape), np.float32) for port in self._ports.outputs}
        taken_ms = np.zeros(len(PARTS))
        under_way: list[tuple[_Slot, slice]] = []
        for index, start in enumerate(range(0, rows, self._ports.sizes[-1])):
            slot, span = self._slots[index % SLOTS], slice(start, min(start + self._ports.sizes[-1], rows))
            if len(under_way) == SLOTS:
                former, of = under_way.pop(0)
                taken_ms += former.collect(of, outputs)
            slot.submit(inputs, span, self._lines)
            under_way.append((slot, span))
        for former, of in under_way:
            taken_ms += former.collect(of, outputs)
        self.parts_ms = dict(zip(PARTS, taken_ms.tolist(), strict=True))
        return outputs

    def close(self) -> None:
        """Frees contexts, engine, memory and streams and gives the GPU's context back; may be called again."""
        self._device.require_own_thread()
        for slot in self._slots:
            slot.close()
        self._slots = []
        self._loaded = None
        self._runtime = None
        self._logger = None
        self._device.close()


class _Refused(Exception):
    """A call of TensorRT answered no; the message has what it logged."""


@dataclass(frozen=True, slots=True)
class _Port:
    """An input or output of the engine: `shape` is a row's."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Ports:
    """All inputs and outputs, and the sizes that a pass may have, ascending."""

    inputs: tuple[_Port, ...]
    outputs: tuple[_Port, ...]
    sizes: tuple[int, ...]


class _Slot:
    """One execution context with a lane to and from it."""

    def __init__(self, device: Device, context: Any, ports: _Ports) -> None:
        self._errors = device.errors
        self._context = context
        self._ports = ports
        self._bytes_in, self._bytes_out = (_area(each, ports.sizes[-1]) for each in (ports.inputs, ports.outputs))
        self._size = 0  # that the context has shapes and addresses for
        self._views_in: dict[str, NDArray[Any]] = {}
        self._views_out: dict[str, NDArray[Any]] = {}
        self._lane: Lane | None = Lane(device, bytes_in=self._bytes_in, bytes_out=self._bytes_out)

    @property
    def lane(self) -> Lane:
        assert self._lane is not None, "closed"
        return self._lane

    def choose_profile(self) -> None:
        """The engine's one profile; every context but the first must be told. Raises: _Refused."""
        _accepted(self._context.set_optimization_profile_async(0, self.lane.stream), "the optimization profile", [])
        self.lane.synchronize()

    def submit(self, inputs: Arrays, span: slice, lines: Sequence[str]) -> None:
        """Copies rows into pinned memory and queues their pass; to be collected before the next. Raises: _Refused."""
        rows = span.stop - span.start
        size = next(size for size in self._ports.sizes if size >= rows)
        if size != self._size:
            self._prepare(size, lines)
        for port in self._ports.inputs:
            view, array = self._views_in[port.name], inputs[port.name]
            width = array.shape[1]
            view[:rows, :width] = array[span]
            view[:rows, width:] = 0
            view[rows:] = 0  # what a larger pass left is no input: an id of it may name no row of the table
        lane = self.lane
        lane.copy_in(self._bytes_in)
        _accepted(self._context.execute_async_v3(lane.stream), "the pass", lines)
        lane.copy_out(self._bytes_out)

    def _prepare(self, size: int, lines: Sequence[str]) -> None:
        lane, self._size = self.lane, 0
        for port in self._ports.inputs:
            _accepted(self._context.set_input_shape(port.name, (size, *port.shape)), f"the shape of {port.name}", lines)
        views: list[dict[str, NDArray[Any]]] = []
        for ports, host, device in (
            (self._ports.inputs, lane.host_in, lane.device_in),
            (self._ports.outputs, lane.host_out, lane.device_out),
        ):
            views.append({})
            for port, offset in zip(ports, _offsets(ports, size), strict=False):
                _accepted(self._context.set_tensor_address(port.name, device + offset), f"the address of {port.name}", lines)
                views[-1][port.name] = _view(host, offset, port, size)
        self._views_in, self._views_out = views
        self._bytes_in, self._bytes_out = (_area(each, size) for each in (self._ports.inputs, self._ports.outputs))
        self._size = size

    def collect(self, span: slice, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
        """Waits for the pass and copies its rows out of pinned memory; milliseconds by part."""
        taken_ms = self.lane.wait()
        for name, array in outputs.items():
            array[span] = self._views_out[name][: span.stop - span.start]
        return taken_ms

    def close(self) -> None:
        """Waits for the lane and frees all; may be called again."""
        lane, self._lane = self._lane, None
        self._views_in, self._views_out = {}, {}
        if lane is not None:
            quietly(self._errors, lane.synchronize)  # an interrupt may have left work on it
            self._context = None  # while its stream is there, and before the memory that it was told of
            lane.close()


def _accepted(answer: bool, what: str, lines: Sequence[str]) -> None:
    if not answer:
        raise _Refused("; ".join([f"TensorRT refused {what}", *lines]))


# ── where a tensor lies ─────────────────────────────────────────────────────────────────────────────────────────


def _offsets(ports: Sequence[_Port], size: int) -> list[int]:
    """Where each port's rows begin in an area for `size` rows, and one past the last, in bytes."""
    sizes = (size * prod(port.shape) * port.dtype.itemsize for port in ports)
    return list(accumulate((-(-each // _ALIGNMENT) * _ALIGNMENT for each in sizes), initial=0))


def _area(ports: Sequence[_Port], size: int) -> int:
    return _offsets(ports, size)[-1]


def _view(area: Bytes, offset: int, port: _Port, size: int) -> NDArray[Any]:
    count = size * prod(port.shape) * port.dtype.itemsize
    return area[offset : offset + count].view(port.dtype).reshape(size, *port.shape)


# ── what an engine takes and gives ──────────────────────────────────────────────────────────────────────────────


def _tensors_of(engine: Any, trt: Any) -> dict[str, "_Tensor"]:
    """All inputs and outputs by name. Plain values: an engine that an error's frames held would outlive the context."""
    found: dict[str, _Tensor] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        batches = tuple(int(shape[0]) for shape in engine.get_tensor_profile_shape(name, 0)) if is_input else ()
        dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
        found[name] = _Tensor(is_input, dtype, tuple(map(int, engine.get_tensor_shape(name))), batches)
    return found


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor as the engine describes it; `batches` are the smallest, the one tuned for and the largest, of an input."""

    is_input: bool
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    batches: tuple[int, ...]


def _checked_ports(found: Mapping[str, _Tensor], manifest: Manifest) -> _Ports:
    """What an engine takes and gives, held against the manifest. Raises: WrongEngine."""
    for kind, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        given = {name for name, tensor in found.items() if tensor.is_input == (kind == "inputs")}
        if given != (wanted := {spec.name for spec in specs}):
            raise WrongEngine(f"engine: expected the {kind} {_names(wanted)}, found {_names(given)}")
    inputs, outputs = (tuple(_port(spec, found[spec.name]) for spec in specs) for specs in (manifest.inputs, manifest.outputs))
    tokens, tokens_max = next(port.shape[0] for port in inputs if port.name == "token_ids"), manifest.features.tokens_max
    if tokens < tokens_max:
        raise WrongEngine(f"engine: expected at least {tokens_max} tokens a row, as the bundle's features have, found {tokens}")
    smallest, tuned, _ = found[inputs[0].name].batches
    powers = (1 << power for power in range(tuned.bit_length()))
    return _Ports(inputs, outputs, tuple(sorted({smallest, tuned, *(power for power in powers if power >= smallest)})))


def _port(spec: TensorSpec, found: _Tensor) -> _Port:
    fits = len(found.shape) == len(spec.shape) >= 2 and all(
        size == dimension or (isinstance(dimension, str) and size >= 1)
        for size, dimension in zip(found.shape[1:], spec.shape[1:], strict=True)
    )
    if found.dtype != np.dtype(spec.dtype) or not fits or found.shape[0] != -1:
        expected = (-1, *spec.shape[1:])
        raise WrongEngine(f"engine: {spec.name}: expected {spec.dtype} {expected}, found {found.dtype} {found.shape}")
    return _Port(spec.name, found.dtype, found.shape[1:])


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
