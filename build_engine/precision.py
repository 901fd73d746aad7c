"""The graph an engine is compiled from, made from the bundle's fp32 graph when the engine is built.

TensorRT 11 and TensorRT-RTX know only strongly typed networks: precision is what the ONNX file says. The bundle ships one graph.

* Rows are expanded here to rows × scale, in fp16 or fp32: the bundle has four bits a number, and unpacking them in
  every pass would be arithmetic without need on a GPU, whose memory holds the rows as they are used.
* fp16: the hidden layers. The sum over tokens, norms, means, softmax and the layers that give logits stay fp32: they are a
  twentieth of the work, and with fp16 logits three tasks instead of one flipped an argmax in 2,048 rows. So does the cover
  branch, which reaches the logits without a hidden layer: in fp16 four of 2,048 rows had another likeliest author. And so does
  what reads words in order, which reaches them the same way.
* Inputs and outputs keep the types of the bundle's graph.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from build_engine.errors import GraphError
from model.bundle import FEWEST_COVERS
from model.table import expanded

Precision = Literal["fp16", "fp32"]
MASK = 3e4  # fp16 ends at 65,504: an infinite mask becomes this, and sums of two masks stay finite
_LAYER_OPS = {"Conv", "Gemm"}
# MatMul is the weighted sum over a row's tokens.
_FP32_OPS = {"MatMul", "Softmax", "Exp", "ReduceL2", "ReduceMean", "ReduceSum", "LayerNormalization"}


def engine_graph(path: Path, *, precision: Precision, tokens: int) -> onnx.ModelProto:
    """Reads the bundle's graph and rewrites it for TensorRT.

    Args:
        path: the fp32 graph with packed rows, as `model.export` writes it.
        tokens: every row of an engine has so many, padded; only the batch varies.

    Raises:
        GraphError: the file is no ONNX, or the rows are not where the export puts them.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, OSError) as error:
        raise GraphError(f"{path}: not an ONNX graph: {error}") from error
    _widen(model.graph)
    _expand_rows(model.graph, np.dtype(np.float16 if precision == "fp16" else np.float32))
    _fix_dimensions(model.graph, tokens)
    del model.graph.value_info[:]  # the types noted there are no longer true
    if precision == "fp16":
        _halve(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _initializer(graph: onnx.GraphProto, name: str) -> TensorProto:
    for tensor in graph.initializer:
        if tensor.name == name:
            assert isinstance(tensor, TensorProto)
            return tensor
    raise GraphError(f"expected the initializer {name} in the graph, found none: export the bundle with this version")


def _widen(graph: onnx.GraphProto) -> None:
    """What the bundle keeps in a narrower type becomes the numbers that the graph reads."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == "Cast" and (tensor := tensors.get(node.input[0])):
            dtype = helper.tensor_dtype_to_np_dtype(helper.get_node_attr_value(node, "to"))
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), node.output[0]))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _expand_rows(graph: onnx.GraphProto, dtype: np.dtype[Any]) -> None:
    """Packed rows and a scale each become rows of `dtype`, which one product sums; what unpacked them is gone."""
    table, scales = _initializer(graph, "table"), _initializer(graph, "scales")
    packed = numpy_helper.to_array(table)
    if packed.dtype != np.uint8 or not any(node.op_type == "BitShift" for node in graph.node):  # what takes the digits apart
        raise GraphError(
            f"expected a table of uint8, two numbers a byte, and a graph that takes them apart; found {packed.dtype} "
            f"{packed.shape}: export the bundle with this version"
        )
    rows = expanded(packed, numpy_helper.to_array(scales))
    table.CopyFrom(numpy_helper.from_array(rows.astype(dtype), "table"))
    text = _read_by_layers(graph, "table")
    for node in graph.node:
        node.input[:] = ["text" if name == text else name for name in node.input]
    axis = numpy_helper.from_array(np.array([1], dtype=np.int64), "text.axis")
    graph.initializer.append(axis)
    sums = [
        helper.make_node("Gather", ["table", "token_ids"], ["text.rows"], name="text.rows", axis=0),  # [B, T, D]
        helper.make_node("Cast", ["text.rows"], ["text.numbers"], name="text.numbers", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["token_weights", axis.name], ["text.weights"], name="text.weights"),  # [B, 1, T]
        helper.make_node("MatMul", ["text.weights", "text.numbers"], ["text.sum"], name="text.sum"),  # [B, 1, D]
        helper.make_node("Squeeze", ["text.sum", axis.name], ["text"], name="text"),  # [B, D]
    ]
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*sums, *nodes])
    _drop_unused(graph)


def _read_by_layers(graph: onnx.GraphProto, name: str) -> str:
    """What the first layer that depends on a tensor reads: the sum of the rows."""
    reached = {name}
    for node in graph.node:
        if reached.intersection(node.input):
            if node.op_type in _LAYER_OPS:
                text: str = node.input[0]
                return text
            reached.update(node.output)
    raise GraphError(f"expected a layer that reads the sums of {name}, found none: export the bundle with this version")


def _drop_unused(graph: onnx.GraphProto) -> None:
    wanted = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    initializers = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(initializers)


def _fix_dimensions(graph: onnx.GraphProto, tokens: int) -> None:
    """Every row has `tokens` tokens, and an engine takes a cover for each row."""
    for value in graph.input:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == "tokens":
                dimension.dim_value = tokens
            elif dimension.dim_param in FEWEST_COVERS:
                dimension.dim_param = "batch"


def _halve(model: onnx.ModelProto) -> None:
    """Casts where fp32 meets fp16; weights are stored in the type they are used in."""
    graph, dtypes = model.graph, _dtypes(model)
    halves = _nodes_in_fp16(graph, dtypes)
    is_half = {name for index in halves for name in graph.node[index].output}
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()
    for index, node in enumerate(graph.node):
        for place, name in enumerate(node.input):
            if dtypes.get(name) != TensorProto.FLOAT or (name in is_half) == (index in halves):
                continue
            other = f"{name}.{'fp16' if index in halves else 'fp32'}"
            node.input[place] = other
            if other not in made:
                made.add(other)
                _convert(graph, nodes, name, other, to_half=index in halves)
        nodes.append(node)
    for output in graph.output:
        if output.name in is_half:
            raise GraphError(f"expected {output.name} to be computed in fp32, found it among the inputs of a layer")
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)


def _convert(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], name: str, other: str, *, to_half: bool) -> None:
    for tensor in graph.initializer:
        if tensor.name == name:
            graph.initializer.append(numpy_helper.from_array(as_fp16(numpy_helper.to_array(tensor)), other))
            return
    to = TensorProto.FLOAT16 if to_half else TensorProto.FLOAT
    nodes.append(helper.make_node("Cast", [name], [other], name=f"cast.{other}", to=to))


def as_fp16(array: NDArray[Any]) -> NDArray[np.float16]:
    """Rounds to fp16; what fp16 cannot hold, minus infinity among it, becomes ±`MASK`."""
    beyond = np.abs(array) > np.finfo(np.float16).max
    return np.where(beyond, np.sign(array) * MASK, array).astype(np.float16)


def _dtypes(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor by name."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    dtypes = {value.name: value.type.tensor_type.elem_type for value in values}
    return dtypes | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def _nodes_in_fp16(graph: onnx.GraphProto, dtypes: dict[str, int]) -> set[int]:
    """Positions of the nodes that compute in fp16: those after the text's sum from which a layer is still to come, but the
    sensitive ones.

    So the layers that give logits, and all after them, are fp32; and so are the branches of cover and words in order, since each
    task adds what they say straight to its logits.
    """
    of_text = {"text"}
    for node in graph.node:
        if of_text.intersection(node.input) and node.op_type != "Shape":  # how many rows there are is not what they say
            of_text.update(node.output)
    before_a_layer: set[str] = set()
    halves = set()
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        leads_to_a_layer = bool(before_a_layer.intersection(node.output))
        if leads_to_a_layer or node.op_type in _LAYER_OPS:
            before_a_layer.update(node.input)
        computes = node.op_type not in _FP32_OPS | {"Cast"} and all(dtypes[name] == TensorProto.FLOAT for name in node.output)
        if (
            leads_to_a_layer
            and computes
            and of_text.intersection(node.output)
            and any(dtypes.get(name) == TensorProto.FLOAT for name in node.input)
        ):
            halves.add(index)
    return halves
