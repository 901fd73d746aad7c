"""ONNX Runtime's backend: rows of like length together, covers apart, answers in the order of the rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumer.inference.onnx import _PADDING_MAX, ROWS_AT_ONCE, OnnxRuntimeBackend, _cuts

onnx = pytest.importorskip("onnx", reason="the train extra is not installed")


def a_graph(path: Path, *, covers: str) -> Path:
    """answer = sum of weights + present * mean of the cover; `covers` names the cover's first dimension."""
    helper, types = onnx.helper, onnx.TensorProto
    inputs = [
        helper.make_tensor_value_info("token_ids", types.INT32, ["batch", "tokens"]),
        helper.make_tensor_value_info("token_weights", types.FLOAT, ["batch", "tokens"]),
        helper.make_tensor_value_info("cover", types.UINT8, [covers, 1, 2, 2]),
        helper.make_tensor_value_info("cover_present", types.FLOAT, ["batch", 1]),
    ]
    nodes = [
        helper.make_node("Cast", ["cover"], ["pixels"], to=types.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], ["each"]),
        *(_spread() if covers == "leading_covers" else [helper.make_node("Identity", ["each"], ["column"])]),
        helper.make_node("Mul", ["column", "cover_present"], ["seen"]),
        helper.make_node("ReduceSum", ["token_weights", "one"], ["sum"], keepdims=1),
        helper.make_node("Add", ["sum", "seen"], ["answer"]),
    ]
    one = helper.make_tensor("one", types.INT64, [1], [1])
    more = [helper.make_tensor("none", types.FLOAT, [1, 1], [0.0]), helper.make_tensor("0", types.INT64, [], [0])]
    more += [helper.make_tensor("1", types.INT64, [], [1]), helper.make_tensor("first", types.INT64, [], [0])]
    output = helper.make_tensor_value_info("answer", types.FLOAT, ["batch", 1])
    graph = helper.make_graph(nodes, "tiny", inputs, [output], [one, *more])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _spread() -> list[Any]:
    """Each leading row's own cover, then nothing, as the graphs that ship do it."""
    helper = onnx.helper
    return [
        helper.make_node("Concat", ["each", "none"], ["all"], axis=0),
        helper.make_node("Shape", ["cover_present"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["rows"]),
        helper.make_node("Shape", ["cover"], ["cover_shape"]),
        helper.make_node("Gather", ["cover_shape", "first"], ["covers"]),
        helper.make_node("Range", ["0", "rows", "1"], ["places"]),
        helper.make_node("Min", ["places", "covers"], ["own"]),
        helper.make_node("Gather", ["all", "own"], ["column"]),
    ]


def some_rows(count: int, *, with_cover: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    present = (random.random((count, 1)) < with_cover).astype(np.float32)
    weights = random.random((count, 9)).astype(np.float32)
    for row in range(count):
        weights[row, random.integers(0, 10) :] = 0  # some have no token at all
    covers = random.integers(0, 256, (count, 1, 2, 2)).astype(np.uint8) * present[:, :, None, None].astype(np.uint8)
    return {"token_ids": (weights > 0).astype(np.int32), "token_weights": weights, "cover": covers, "cover_present": present}


@pytest.mark.parametrize("covers", ["leading_covers", "covers", "batch"])
@pytest.mark.parametrize("count", [1, 7, ROWS_AT_ONCE * 3 + 5])
@pytest.mark.parametrize("with_cover", [0.0, 0.3, 1.0])
def test_each_row_gets_its_own_answer(tmp_path: Path, covers: str, count: int, with_cover: float) -> None:
    """In the order of the rows, whatever is grouped, and with a graph whose covers are not apart as well."""
    rows = some_rows(count, with_cover=with_cover)
    backend = OnnxRuntimeBackend(a_graph(tmp_path / "graph.onnx", covers=covers), threads=1)
    expected = rows["token_weights"].sum(axis=1) + rows["cover"].reshape(count, -1).mean(axis=1)
    np.testing.assert_allclose(backend.infer(rows)["answer"][:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(("covers", "a_pass"), [("leading_covers", 0), ("covers", 1)])
def test_covers_that_are_not_there_are_not_computed(tmp_path: Path, covers: str, a_pass: int) -> None:
    """Rows without a cover need none in a pass; with an older bundle's graph they share a single one of zeros."""
    rows = some_rows(200, with_cover=0.25)
    backend = OnnxRuntimeBackend(a_graph(tmp_path / "graph.onnx", covers=covers), threads=1)
    run, seen = backend._session.run, 0

    def counted(names: list[str], feed: dict[str, Any]) -> Any:
        nonlocal seen
        seen += len(feed["cover"])
        return run(names, feed)

    backend._session.run = counted
    backend.infer(rows)
    with_cover = int(rows["cover_present"].sum())
    assert seen == with_cover + a_pass * -(-(200 - with_cover) // ROWS_AT_ONCE)


def test_long_rows_do_not_pad_short_ones() -> None:
    """A few long descriptions among short titles make a pass of their own; rows of like length are cut by number alone."""
    assert _cuts([20] * 50 + [300] * 10) == [50]
    assert _cuts([20] * (ROWS_AT_ONCE + 6)) == [ROWS_AT_ONCE]
    assert _cuts([20, 21, 22]) == []
    tokens = sorted(np.random.default_rng(0).integers(1, 320, 256).tolist())
    pieces = np.split(np.array(tokens), _cuts(tokens))
    assert sum(len(piece) for piece in pieces) == 256
    assert all(len(piece) <= ROWS_AT_ONCE and (piece.max() - piece).sum() <= _PADDING_MAX for piece in pieces)
