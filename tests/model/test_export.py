"""What the graph keeps in narrower types than it computes in."""

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the train extra is not installed")
pytest.importorskip("torch", reason="the train extra is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - after the check that it is there

from build_engine.precision import _widen  # noqa: E402
from model.export import _narrow  # noqa: E402

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
    return helper.make_graph(nodes, "graph", [], [], initializers)


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
    _widen(graph)
    before, after = ({each.name: numpy_helper.to_array(each) for each in one.initializer} for one in (a_graph(), graph))
    assert before.keys() == after.keys()
    for name, numbers in before.items():
        assert numbers.dtype == after[name].dtype
        np.testing.assert_array_equal(numbers, after[name])
    assert [node.op_type for node in graph.node] == [node.op_type for node in a_graph().node]


def test_the_shipped_bundle_s_large_layers_are_kept_so() -> None:
    """Training rounds them before it calibrates."""
    graph = onnx.load(SHIPPED).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert types["network.text_projection.weight.narrow"] == TensorProto.FLOAT16
    assert types["words.narrow"] == TensorProto.INT16
    of_layers = {node.input[1] for node in graph.node if node.op_type == "Gemm"}
    whole = [tensor.name for tensor in graph.initializer if tensor.name in of_layers and np.prod(tensor.dims) >= 1024]
    assert not whole
