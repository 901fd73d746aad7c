"""What the graph computes in bytes, or keeps in narrower types than it computes in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="the train extra is not installed")
torch = pytest.importorskip("torch", reason="the train extra is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - after the check that it is there

from build_engine.precision import _fold, _round_in_numbers  # noqa: E402
from model.export import _narrow  # noqa: E402
from model.steps import STEP, round_layer  # noqa: E402

pytestmark = pytest.mark.torch

SHIPPED = Path(__file__).parents[2] / "model" / "bundles" / "books" / "model.onnx"


def a_graph() -> onnx.GraphProto:
    """Layers whose weights half precision holds, holds not, and which something else reads, too; words; few weights."""
    halves = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float16).astype(np.float32)
    weights = {"exact": halves, "inexact": halves + np.float32(1e-6), "read_elsewhere": halves, "few": halves[:, :8]}
    initializers = [numpy_helper.from_array(each, name) for name, each in weights.items()]
    initializers.append(numpy_helper.from_array(np.arange(2000, dtype=np.int32), "words"))
    nodes = [helper.make_node("Gemm", ["text", name], [f"{name}.out"]) for name in weights]
    nodes += [helper.make_node("Relu", ["read_elsewhere"], ["more"]), helper.make_node("Gather", ["words", "ids"], ["read"])]
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in nodes]
    return helper.make_graph(nodes, "graph", [], outputs, initializers)


def test_what_a_narrower_type_holds_without_loss_is_kept_in_it() -> None:
    graph = a_graph()
    _narrow(graph)
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert types == {
        "exact.narrow": TensorProto.FLOAT16, "inexact": TensorProto.FLOAT, "read_elsewhere": TensorProto.FLOAT,
        "few": TensorProto.FLOAT, "words.narrow": TensorProto.INT16,
    }  # fmt: skip


def test_an_engine_s_graph_widens_it_to_the_same_numbers() -> None:
    graph = a_graph()
    _narrow(graph)
    _fold(graph)
    before, after = ({each.name: numpy_helper.to_array(each) for each in one.initializer} for one in (a_graph(), graph))
    del before["read_elsewhere"]  # nothing but weights: folded with what reads it
    for name, numbers in before.items():
        assert numbers.dtype == after[name].dtype
        np.testing.assert_array_equal(numbers, after[name])


def of_steps(layer: torch.nn.Linear) -> onnx.ModelProto:
    """A layer over text in steps, as torch's exporter writes it; its weights are the parameter itself."""
    weights = {"w": layer.weight.detach().numpy(), "b": layer.bias.detach().numpy()}
    constants = {"step": np.float32(STEP), "middle": np.uint8(128)}
    nodes = [
        helper.make_node("QuantizeLinear", ["numbers", "step", "middle"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "step", "middle"], ["text"]),
        helper.make_node("Gemm", ["text", "w", "b"], ["out"], transB=1),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name, width in (("numbers", layer.in_features), ("out", layer.out_features))
    ]
    initializers = [numpy_helper.from_array(np.asarray(each), name) for name, each in (weights | constants).items()]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model: onnx.ModelProto, numbers: NDArray[np.float32], *, kept: Path | None = None) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    if kept is not None:
        options.optimized_model_filepath = str(kept)
        options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: Sequence[NDArray[np.float32]] = session.run(None, {"numbers": numbers})
    return found[0]


@pytest.fixture
def layer() -> torch.nn.Linear:
    torch.manual_seed(0)
    found = torch.nn.Linear(480, 70)
    round_layer(found)
    return found


def test_a_layer_of_steps_multiplies_bytes_and_finds_the_same_to_the_last_bit(layer: torch.nn.Linear, tmp_path: Path) -> None:
    """In ONNX Runtime, and as an engine multiplies its numbers; also where no sum of two products stays within 16 bits."""
    numbers = np.random.default_rng(0).normal(scale=3, size=(50, 480)).astype(np.float32)
    with torch.no_grad():
        layer.weight[0] = 63.0
        layer.weight[1] = torch.tensor([63.0, -63.0]).repeat(240)
    round_layer(layer)
    numbers[0], numbers[1] = 8.0, -8.0
    plain = of_steps(layer)
    expected = run(plain, numbers)
    _narrow(plain.graph)
    assert {each.name: each.data_type for each in plain.graph.initializer}["w.steps"] == TensorProto.INT8
    np.testing.assert_array_equal(run(plain, numbers, kept=tmp_path / "optimised.onnx"), expected)
    assert "MatMulIntegerToFloat" in {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    _fold(plain.graph)
    _round_in_numbers(plain.graph)
    assert not {node.op_type for node in plain.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    np.testing.assert_array_equal(run(plain, numbers), expected)


def test_a_layer_that_was_not_rounded_to_steps_stays_one_of_numbers(layer: torch.nn.Linear) -> None:
    with torch.no_grad():
        layer.weight[3, 5] += 1e-4
    model = of_steps(layer)
    _narrow(model.graph)
    assert [node.op_type for node in model.graph.node] == ["QuantizeLinear", "DequantizeLinear", "Gemm"]


def test_the_shipped_bundle_s_large_layers_are_kept_so() -> None:
    """Training rounds them before it calibrates."""
    graph = onnx.load(SHIPPED).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for name in ("text_projection", "wide", "broad", "deep.beside.broad"):
        assert types[f"network.{name}.weight.steps"] == TensorProto.INT8
    assert types["network.hidden.weight.narrow"] == TensorProto.FLOAT16
    assert types["words.narrow"] == TensorProto.INT16
    of_layers = {node.input[1] for node in graph.node if node.op_type == "Gemm"}
    whole = [tensor.name for tensor in graph.initializer if tensor.name in of_layers and np.prod(tensor.dims) >= 1024]
    assert not whole
