"""The graph an engine is compiled from, made from the bundle's own when the engine is built.

TensorRT 11 and TensorRT-RTX know only strongly typed networks: precision is what the ONNX file says. The bundle ships one graph.

* Rows are expanded here to their digits as numbers, in fp16 or fp32: the bundle has four bits a number, and unpacking them in
  every pass would be arithmetic without need on a GPU, whose memory holds the rows as they are used.
* What the bundle computes in bytes is computed here in fp32, of the same whole numbers, which fp32 and TF32 hold: sums of them
  are the bundle's to the last bit, and are rounded to the same steps (model/steps.py).
* What depends on no input is computed here, once.
* fp16: the hidden layers. The sum over tokens, norms, means, softmax, what reads the text and the layers that give logits stay
  fp32: with fp16 logits three tasks instead of one flipped an argmax in 2,048 rows. So does the cover branch, which reaches the
  logits without a hidden layer: in fp16 four of 2,048 rows had another likeliest author. And so does what reads words in order,
  which reaches them the same way.
* Inputs and outputs keep the types of the bundle's graph.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from build_engine.errors import GraphError
from model.bundle import FEWEST_COVERS
from model.table import OF_HIGH, UNITS, expanded

Precision = Literal["fp16", "fp32"]
MASK = 3e4  # fp16 ends at 65,504: an infinite mask becomes this, and sums of two masks stay finite
_LAYER_OPS = {"Conv", "Gemm"}
# MatMul is the sum over tokens and what the bundle multiplies as bytes. What Split cuts apart, not only layers may read.
_FP32_OPS = {"MatMul", "Split", "Softmax", "Exp", "ReduceL2", "ReduceMean", "ReduceSum", "LayerNormalization"}


def engine_graph(path: Path, *, precision: Precision, tokens: int) -> onnx.ModelProto:
    """Reads the bundle's graph and rewrites it for TensorRT.

    Args:
        path: the bundle's graph with packed rows, as `model.export` writes it.
        tokens: every row of an engine has so many, padded; only the batch varies.

    Raises:
        GraphError: the file is no ONNX, or the rows are not where the export puts them.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, OSError) as error:
        raise GraphError(f"{path}: not an ONNX graph: {error}") from error
    _expand_rows(model.graph, np.dtype(np.float16 if precision == "fp16" else np.float32))
    _fold(model.graph)
    _round_in_numbers(model.graph)
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


def _expand_rows(graph: onnx.GraphProto, dtype: np.dtype[Any]) -> None:
    """Packed rows become numbers of `dtype`, which one product sums; what unpacked them is gone.

    A bundle before books@0.15.0 does not round what its layers read: its rows are expanded to digits × scale.
    """
    table, scales = _initializer(graph, "table"), _initializer(graph, "scales")
    packed = numpy_helper.to_array(table)
    if packed.dtype != np.uint8 or not any(node.op_type == "BitShift" for node in graph.node):  # what takes the digits apart
        raise GraphError(
            f"expected a table of uint8, two numbers a byte, and a graph that takes them apart; found {packed.dtype} "
            f"{packed.shape}: export the bundle with this version"
        )
    reader = _reader_of_sums(graph)
    if reader.op_type == "QuantizeLinear":
        rows, sums = expanded(packed, np.ones(len(packed), dtype=np.float32)), _sum_of_digits(graph, reader.input[0])
        _rename(graph, next(node.output[0] for node in graph.node if reader.output[0] in node.input), "text")
    else:
        rows, sums = expanded(packed, numpy_helper.to_array(scales)), _sum_of_rows(graph)
        _rename(graph, reader.input[0], "text")
    table.CopyFrom(numpy_helper.from_array(rows.astype(dtype), "table"))
    made = sums[-1].output[0]
    kept = [node for node in graph.node if made not in node.output]
    del graph.node[:]
    graph.node.extend([*sums, *kept])
    _drop_unused(graph)


def _reader_of_sums(graph: onnx.GraphProto) -> onnx.NodeProto:
    """The first node that rounds what depends on the table's rows, or multiplies it as a layer: it reads their sums."""
    reached = {"table"}
    for node in graph.node:
        if reached.intersection(node.input):
            if node.op_type == "QuantizeLinear" or node.op_type in _LAYER_OPS:
                assert isinstance(node, onnx.NodeProto)
                return node
            reached.update(node.output)
    raise GraphError("expected a layer that reads the sums of table, found none: export the bundle with this version")


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _made(operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], name=output, **attributes)


def _sum_of_rows(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The sum over tokens of weight × row, named "text"."""
    graph.initializer.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "sum.axis"))
    return [
        _made("Gather", ["table", "token_ids"], "sum.rows"),  # [B, T, D]
        _made("Cast", ["sum.rows"], "sum.numbers", to=TensorProto.FLOAT),
        _made("Unsqueeze", ["token_weights", "sum.axis"], "sum.weights"),  # [B, 1, T]
        _made("MatMul", ["sum.weights", "sum.numbers"], "sum.product"),  # [B, 1, D]
        _made("Squeeze", ["sum.product", "sum.axis"], "text"),  # [B, D]
    ]


def _sum_of_digits(graph: onnx.GraphProto, text: str) -> list[onnx.NodeProto]:
    """The same in the whole numbers of `model.text_sum`, named `text`."""
    constants = {
        "axis": np.array([1], dtype=np.int64), "units": np.float32(UNITS), "least": np.float32(0), "most": np.float32(UNITS - 1),
        "of_high": np.float32(OF_HIGH), "of_bytes": np.array([[[OF_HIGH / UNITS], [1 / UNITS]]], dtype=np.float32),
    }  # fmt: skip
    graph.initializer.extend(numpy_helper.from_array(np.asarray(each), f"sum.{name}") for name, each in constants.items())
    return [
        _made("Gather", ["scales", "token_ids"], "sum.scales"),  # [B, T]
        _made("Mul", ["token_weights", "sum.scales"], "sum.weights"),
        _made("Mul", ["sum.weights", "sum.units"], "sum.in_units"),
        _made("Round", ["sum.in_units"], "sum.rounded"),
        _made("Clip", ["sum.rounded", "sum.least", "sum.most"], "sum.whole"),
        _made("Div", ["sum.whole", "sum.of_high"], "sum.highs"),
        _made("Floor", ["sum.highs"], "sum.high"),
        _made("Mul", ["sum.high", "sum.of_high"], "sum.of_the_high"),
        _made("Sub", ["sum.whole", "sum.of_the_high"], "sum.low"),
        _made("Unsqueeze", ["sum.high", "sum.axis"], "sum.first"),  # [B, 1, T]
        _made("Unsqueeze", ["sum.low", "sum.axis"], "sum.second"),  # [B, 1, T]
        _made("Concat", ["sum.first", "sum.second"], "sum.bytes", axis=1),  # [B, 2, T]
        _made("Gather", ["table", "token_ids"], "sum.rows"),  # [B, T, D]
        _made("Cast", ["sum.rows"], "sum.digits", to=TensorProto.FLOAT),
        _made("MatMul", ["sum.bytes", "sum.digits"], "sum.products"),  # [B, 2, D]
        _made("Mul", ["sum.products", "sum.of_bytes"], "sum.parts"),
        _made("ReduceSum", ["sum.parts", "sum.axis"], text, keepdims=0),  # [B, D]
    ]


def _fold(graph: onnx.GraphProto) -> None:
    """What depends on no input becomes numbers: what the bundle keeps in narrower types, and what it makes of weights alone."""
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kept: list[onnx.NodeProto] = []
    folded: set[str] = set()
    for node in graph.node:
        if not node.input or any(name and name not in known for name in node.input):
            kept.append(node)
            continue
        given = {name: known[name] for name in node.input if name}
        found = dict(zip(node.output, ReferenceEvaluator(node).run(None, given), strict=True))
        folded.update(found)
        known |= found
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(known[name]), name) for name in sorted(folded))
    _drop_unused(graph)


def _round_in_numbers(graph: onnx.GraphProto) -> None:
    """Where numbers are rounded to bytes of steps and read back, they are rounded to the steps; TensorRT knows no such bytes."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    bytes_of = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "DequantizeLinear":
            nodes += [] if node.op_type == "QuantizeLinear" else [node]
            continue
        source, name = bytes_of[node.input[0]], node.output[0]
        step, middle = (tensors[each] for each in source.input[1:3])
        ends = np.iinfo(middle.dtype)
        constants = {
            "count": 1 / step, "step": step, "least": np.float32(ends.min) - middle, "most": np.float32(ends.max) - middle
        }  # fmt: skip
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(each, dtype=np.float32), f"{name}.{part}") for part, each in constants.items()
        )
        nodes += [
            _made("Mul", [source.input[0], f"{name}.count"], f"{name}.steps"),
            _made("Round", [f"{name}.steps"], f"{name}.rounded"),
            _made("Clip", [f"{name}.rounded", f"{name}.least", f"{name}.most"], f"{name}.cut"),
            _made("Mul", [f"{name}.cut", f"{name}.step"], name),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)


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
    of_text.remove("text")
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
