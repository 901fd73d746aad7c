"""The engine's graph: one in the bundle, rewritten without changing what it computes."""

from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from build_engine.errors import GraphError
from build_engine.precision import Precision, as_fp16, engine_graph
from build_engine.runner import OnnxRuntimeRunner
from build_engine.verify import Rows, compare, verify
from model.bundle import Bundle
from model.table import expanded, quantised

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
    giving_logits = ("network.deep.heads.", "network.deep.beside.")
    assert fp32 == {name for name in layers if name.startswith((*of_cover, *in_order, *giving_logits))}
    assert {name.removeprefix("network.").removesuffix(".weight.fp16") for name in set(layers) - fp32} == {
        "stack.0", "stack.2", "text_gate", "hidden", "to_embedding", "deep.views",
    }  # fmt: skip
    products = {node.input[1]: types[node.output[0]] for node in fp16.graph.node if node.op_type == "MatMul"}
    for name in ("text_projection", "wide", "broad", "deep.beside.broad"):  # of whole numbers, exact in fp32
        assert products[f"network.{name}.weight"] == TensorProto.FLOAT


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
    of_words = sum(np.prod(each.dims) for each in fp16.graph.initializer if each.dims[:1] == [20_001])
    assert fp16.ByteSize() < numbers * 2 * 1.1 + of_words * 4


def test_rows_are_the_packed_rows_s_digits(shipped: Bundle) -> None:
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(shipped.graph_path).graph.initializer}
    graph = engine_graph(shipped.graph_path, precision="fp32", tokens=TOKENS).graph
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert np.array_equal(after["table"] * before["scales"][:, None], expanded(before["table"], before["scales"]))
    assert np.array_equal(after["scales"], before["scales"])


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_text_is_rounded_to_the_steps_that_the_bundle_rounds_it_to(shipped: Bundle, rows: Rows, precision: Precision) -> None:
    """To the last bit, and so are what reads it and the broad layer: nothing lies near a border here and beyond it there."""
    bundled = onnx.load(shipped.graph_path)
    text = next(node for node in bundled.graph.node if node.op_type == "QuantizeLinear").output[0]
    text = next(node for node in bundled.graph.node if text in node.input).output[0]
    readers = [node.output[0] for node in bundled.graph.node if node.op_type == "MatMul" and text in node.input]
    broad = [node.output[0] for node in bundled.graph.node if "network.deep.beside.broad.weight" in node.input]
    assert len(readers) == 3
    assert len(broad) == 1
    names = [text, *readers, *broad]
    graph = engine_graph(shipped.graph_path, precision=precision, tokens=TOKENS)
    feed = rows.features.rows(slice(0, 512)).as_feed()
    expected = outputs_of(bundled, names, feed)
    for name in ("token_ids", "token_weights"):
        feed[name] = np.pad(feed[name], ((0, 0), (0, TOKENS - feed[name].shape[1])))
    found = outputs_of(graph, ["text", *readers, *broad], feed)
    assert np.abs(expected[0]).max() > 2
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def outputs_of(model: onnx.ModelProto, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Some tensors of a graph."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    asked.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(asked.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(names, feed))


def test_masks_that_fp16_cannot_hold_become_minus_30000() -> None:
    found = as_fp16(np.array([-np.inf, -1e9, np.inf, 65_504, 0.1], np.float32))
    assert found.tolist() == [-30_000, -30_000, 30_000, 65_504, float(np.float16(0.1))]


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xffno graph")
    with pytest.raises(GraphError, match="not an ONNX graph"):
        engine_graph(tmp_path / "model.onnx", precision="fp16", tokens=TOKENS)


def test_a_graph_without_packed_rows_is_refused(shipped: Bundle, tmp_path: Path) -> None:
    onnx.save(engine_graph(shipped.graph_path, precision="fp32", tokens=TOKENS), tmp_path / "model.onnx")
    with pytest.raises(GraphError, match="expected a table of uint8"):
        engine_graph(tmp_path / "model.onnx", precision="fp16", tokens=TOKENS)


def test_a_bundle_whose_layers_read_sums_as_they_are_can_still_be_built(tmp_path: Path) -> None:
    """One before books@0.15.0: a service that goes back to it needs its engine."""
    random = np.random.default_rng(0)
    packed, scales = quantised(random.normal(size=(30, 8)).astype(np.float32))
    layer = random.normal(size=(8, 5)).astype(np.float32)
    constants = {"table": packed, "scales": scales, "layer": layer, "axis": np.array([1])}
    constants |= {"bits": np.uint8(4), "low": np.uint8(15), "middle": np.float32(7.5)}
    steps = [
        ("BitShift", ["table", "bits"], "upper", {"direction": "RIGHT"}), ("BitwiseAnd", ["table", "low"], "lower", {}),
        ("Concat", ["upper", "lower"], "digits", {"axis": 1}), ("Gather", ["digits", "token_ids"], "rows", {}),
        ("Cast", ["rows"], "numbers", {"to": TensorProto.FLOAT}), ("Sub", ["numbers", "middle"], "centred", {}),
        ("Gather", ["scales", "token_ids"], "scale", {}), ("Mul", ["token_weights", "scale"], "scaled", {}),
        ("Unsqueeze", ["scaled", "axis"], "weights", {}), ("MatMul", ["weights", "centred"], "product", {}),
        ("Squeeze", ["product", "axis"], "sums", {}), ("Gemm", ["sums", "layer"], "out", {}),
    ]  # fmt: skip
    inputs = [
        onnx.helper.make_tensor_value_info(name, dtype, ["batch", "tokens"])
        for name, dtype in (("token_ids", TensorProto.INT32), ("token_weights", TensorProto.FLOAT))
    ]
    output = onnx.helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 5])
    nodes = [onnx.helper.make_node(operator, read, [name], **more) for operator, read, name, more in steps]
    initializers = [numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items()]
    graph = onnx.helper.make_graph(nodes, "graph", inputs, [output], initializers)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), tmp_path / "old.onnx"
    )
    feed = {
        "token_ids": random.integers(0, 30, (4, 6)).astype(np.int32),
        "token_weights": random.random((4, 6)).astype(np.float32),
    }
    expected = OnnxRuntimeRunner((tmp_path / "old.onnx").read_bytes()).infer(feed)["out"]
    for precision, apart in (("fp32", 1e-5), ("fp16", 2e-2)):
        engine = engine_graph(tmp_path / "old.onnx", precision=cast(Precision, precision), tokens=6)
        assert not {node.op_type for node in engine.graph.node} & {"BitShift", "Round"}
        np.testing.assert_allclose(OnnxRuntimeRunner(engine.SerializeToString()).infer(feed)["out"], expected, atol=apart)
