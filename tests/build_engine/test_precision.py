"""The engine's graph: one in the bundle, rewritten without changing what it computes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from build_engine.errors import GraphError
from build_engine.precision import Precision, as_fp16, engine_graph
from build_engine.runner import OnnxRuntimeRunner
from build_engine.verify import Rows, compare, verify
from model.bundle import Bundle
from model.table import expanded

TOKENS = 320


@pytest.fixture(scope="module")
def fp16(shipped: Bundle) -> onnx.ModelProto:
    return engine_graph(shipped.graph_path, precision="fp16", tokens=TOKENS)


@pytest.fixture(scope="module")
def types(fp16: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor of the fp16 graph."""
    graph = onnx.shape_inference.infer_shapes(fp16, strict_mode=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values} | {
        each.name: each.data_type for each in graph.initializer
    }


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_graph_gives_what_the_bundles_own_gives(shipped: Bundle, rows: Rows, precision: Precision) -> None:
    graph = engine_graph(shipped.graph_path, precision=precision, tokens=TOKENS).SerializeToString()
    reference = OnnxRuntimeRunner(shipped.graph_path.read_bytes())
    verify(OnnxRuntimeRunner(graph), reference, rows, shipped.manifest, precision=precision, batch=512).require()


def test_the_fp16_graph_gives_the_golden_outputs(shipped: Bundle, fp16: onnx.ModelProto) -> None:
    features, expected = shipped.golden()
    feed = features.as_feed()
    for name in ("token_ids", "token_weights"):
        feed[name] = np.pad(feed[name], ((0, 0), (0, TOKENS - feed[name].shape[1])))
    found = OnnxRuntimeRunner(fp16.SerializeToString()).infer(feed)
    kinds = Rows(features, ("golden",) * len(features))
    report = compare(shipped.manifest, expected=expected, found=found, rows=kinds, precision="fp16")
    assert report.passed
    # A label may change only where it stands on its threshold.
    for task in shipped.manifest.tasks:
        if task.kind == "multi":
            changed = (expected[task.name] >= task.thresholds) != (found[task.name] >= task.thresholds)
            assert (np.abs(expected[task.name] - task.thresholds)[changed] < 1e-3).all()
    several = {task.name for task in shipped.manifest.tasks if task.kind == "multi"}
    assert all(finding.agreement == 1.0 for finding in report.findings if finding.output not in several)


def test_golden_rows_stand_off_the_borders_between_labels(shipped: Bundle) -> None:
    """Else half precision may rightly find another label best, and the engine would be called wrong."""
    _, expected = shipped.golden()
    for task in shipped.manifest.tasks:
        if task.kind in ("single", "ordinal"):
            second, best = np.sort(expected[task.name], axis=1)[:, -2:].T
            assert (best - second).min() > 1e-3, task.name


def test_inputs_and_outputs_keep_their_types_and_only_the_batch_varies(shipped: Bundle, fp16: onnx.ModelProto) -> None:
    numbers = {"int32": TensorProto.INT32, "float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
    for specs, values in ((shipped.manifest.inputs, fp16.graph.input), (shipped.manifest.outputs, fp16.graph.output)):
        assert [(spec.name, numbers[spec.dtype]) for spec in specs] == [
            (value.name, value.type.tensor_type.elem_type) for value in values
        ]
    for value in fp16.graph.input:
        batch, *rest = value.type.tensor_type.shape.dim
        assert batch.dim_param == "batch"
        assert all(dimension.dim_value > 0 for dimension in rest)


def test_layers_are_fp16_but_for_those_of_the_cover_and_those_that_give_logits(
    fp16: onnx.ModelProto, types: dict[str, int]
) -> None:
    layers = {node.input[1]: types[node.output[0]] for node in fp16.graph.node if node.op_type in {"Conv", "Gemm"}}  # by weight
    fp32 = {name for name, dtype in layers.items() if dtype == TensorProto.FLOAT}
    of_cover = ("network.cover_branch.", "network.cover_projection.", "network.cover_gate.", "network.cover_head.")
    in_order = ("network.word_order.",)
    giving_logits = ("network.wide.", "network.deep.heads.")
    assert fp32 == {name for name in layers if name.startswith((*of_cover, *in_order, *giving_logits))}
    assert {name.removeprefix("network.").removesuffix(".weight.fp16") for name in set(layers) - fp32} == {
        "text_projection", "stack.0", "stack.2", "text_gate", "hidden", "to_embedding", "deep.views",
    }  # fmt: skip


@pytest.mark.parametrize("operator", ["MatMul", "Softmax", "ReduceL2", "ReduceMean", "Exp", "Sigmoid", "Div"])
def test_sensitive_parts_compute_in_fp32(fp16: onnx.ModelProto, types: dict[str, int], operator: str) -> None:
    in_fp16 = {"sigmoid"}  # the cover's gate
    outputs = {node.output[0] for node in fp16.graph.node if node.op_type == operator} - in_fp16
    assert outputs
    assert {types[output] for output in outputs} == {TensorProto.FLOAT}


def test_no_weight_is_there_twice(fp16: onnx.ModelProto, shipped: Bundle) -> None:
    large = [tensor.name for tensor in fp16.graph.initializer if np.prod(tensor.dims) > 100]
    assert len({name.removesuffix(".fp16") for name in large}) == len(large)
    numbers = shipped.extractor().vocabulary.rows * shipped.manifest.settings["training"]["table_width"]
    assert fp16.ByteSize() < numbers * 2 * 1.1


def test_rows_are_the_packed_rows_by_their_scales(shipped: Bundle) -> None:
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(shipped.graph_path).graph.initializer}
    graph = engine_graph(shipped.graph_path, precision="fp32", tokens=TOKENS).graph
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert np.array_equal(after["table"], expanded(before["table"], before["scales"]))
    assert "scales" not in after


def test_masks_that_fp16_cannot_hold_become_minus_30000() -> None:
    found = as_fp16(np.array([-np.inf, -1e9, np.inf, 65_504, 0.1], np.float32))
    assert found.tolist() == [-30_000, -30_000, 30_000, 65_504, float(np.float16(0.1))]


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xffno graph")
    with pytest.raises(GraphError, match="not an ONNX graph"):
        engine_graph(tmp_path / "model.onnx", precision="fp16", tokens=TOKENS)


def test_a_graph_without_packed_rows_is_refused(shipped: Bundle, tmp_path: Path) -> None:
    onnx.save(engine_graph(shipped.graph_path, precision="fp32", tokens=TOKENS), tmp_path / "model.onnx")
    with pytest.raises(GraphError, match="expected the initializer scales"):
        engine_graph(tmp_path / "model.onnx", precision="fp16", tokens=TOKENS)
