"""What every inference backend must do: one suite, run by each backend's own test module on the bundle that ships."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from consumer.inference import InferenceBackend, InferenceFailed
from model.bundle import Bundle
from model.features import Features

BATCH_MAX = 16  # of a pass, where a backend has one
Feed = dict[str, NDArray[Any]]
Outputs = dict[str, NDArray[np.float32]]
Golden = tuple[Feed, Outputs]


class BackendContract:
    """To be subclassed in a module with a fixture `backend`."""

    def test_answers_the_golden_inputs_with_the_golden_outputs(self, backend: InferenceBackend, golden: Golden) -> None:
        feed, expected = golden
        assert_same(backend.infer(feed), expected)

    @pytest.mark.parametrize("rows", [1, 2, 3, BATCH_MAX // 2, BATCH_MAX - 1, BATCH_MAX, BATCH_MAX + 1, 3 * BATCH_MAX])
    def test_takes_a_batch_of_any_size(self, backend: InferenceBackend, golden: Golden, rows: int) -> None:
        feed, expected = golden
        assert_same(backend.infer(some_rows(feed, slice(0, rows))), some_rows(expected, slice(0, rows)))

    def test_takes_a_batch_that_is_longer_than_all_that_fits_at_once(self, backend: InferenceBackend, golden: Golden) -> None:
        feed, expected = golden
        many = np.arange(200) % len(feed["cover"])
        assert_same(backend.infer(some_rows(feed, many)), some_rows(expected, many))

    def test_keeps_the_order_of_the_rows(self, backend: InferenceBackend, golden: Golden) -> None:
        feed, expected = golden
        shuffled = np.random.default_rng(5).permutation(len(feed["cover"]))
        assert_same(backend.infer(some_rows(feed, shuffled)), some_rows(expected, shuffled))

    def test_a_row_does_not_depend_on_the_width_of_its_batch(self, backend: InferenceBackend, golden: Golden) -> None:
        feed, expected = golden
        shortest = np.argsort(np.count_nonzero(feed["token_weights"], axis=1))[:5]
        narrow = Features(**feed).rows(shortest).as_feed()
        assert narrow["token_ids"].shape[1] < feed["token_ids"].shape[1]
        assert_same(backend.infer(narrow), some_rows(expected, shortest))

    def test_takes_rows_without_text_and_without_a_cover(self, backend: InferenceBackend, golden: Golden) -> None:
        feed, expected = golden
        bare = {name: np.zeros_like(array[:1, :1] if name.startswith("token") else array[:1]) for name, array in feed.items()}
        alone = backend.infer(bare)
        assert all(np.isfinite(array).all() for array in alone.values())
        mixed = {name: array[:3].copy() for name, array in feed.items()}
        for array in mixed.values():
            array[1] = 0
        assert_same(some_rows(backend.infer(mixed), slice(1, 2)), alone)
        assert_same(some_rows(backend.infer(mixed), slice(0, 1)), some_rows(expected, slice(0, 1)))

    def test_says_the_same_again_whatever_came_between(self, backend: InferenceBackend, golden: Golden) -> None:
        feed, expected = golden
        first = backend.infer(some_rows(feed, slice(0, 3)))
        backend.infer(some_rows(feed, slice(5, 5 + BATCH_MAX)))
        for _ in range(5):
            assert_same(backend.infer(some_rows(feed, slice(0, 3))), first, exactly=True)
        assert_same(first, some_rows(expected, slice(0, 3)))  # an answer is the caller's: later batches leave it alone

    @pytest.mark.parametrize("name", ["token_ids", "token_weights", "cover", "cover_present"])
    @pytest.mark.parametrize(
        "spoil",
        [
            pytest.param(lambda array: None, id="missing"),
            pytest.param(lambda array: array.astype(np.float64), id="dtype"),
            pytest.param(lambda array: array[:-1], id="fewer rows"),
            pytest.param(lambda array: array[..., :0], id="empty"),
            pytest.param(lambda array: array.reshape(-1), id="flat"),
        ],
    )
    def test_names_an_input_that_is_wrong_and_goes_on(
        self,
        backend: InferenceBackend,
        golden: Golden,
        name: str,
        spoil: Callable[[NDArray[Any]], NDArray[Any] | None],
    ) -> None:
        feed, expected = golden
        wrong = spoil(feed[name])
        inputs = {each: array for each, array in feed.items() if each != name} | ({} if wrong is None else {name: wrong})
        with pytest.raises(InferenceFailed, match=r"input \w+: expected .*, found") as failure:
            backend.infer(inputs)
        if name != "token_ids" or wrong is None or wrong.dtype != feed[name].dtype:
            assert f"input {name}:" in str(failure.value)  # else the next one is the first that does not go with it
        assert_same(backend.infer(some_rows(feed, slice(0, 2))), some_rows(expected, slice(0, 2)))

    def test_refuses_an_input_that_the_graph_does_not_have(self, backend: InferenceBackend, golden: Golden) -> None:
        with pytest.raises(InferenceFailed, match="input weight_of_book: the graph has none of that name"):
            backend.infer(golden[0] | {"weight_of_book": np.zeros((1, 1), np.float32)})

    def test_may_be_closed_twice_and_refuses_batches_afterwards(self, backend: InferenceBackend, golden: Golden) -> None:
        backend.infer(some_rows(golden[0], slice(0, 2)))
        backend.close()
        backend.close()
        with pytest.raises(InferenceFailed, match="closed"):
            backend.infer(some_rows(golden[0], slice(0, 2)))

    def test_says_what_it_is(self, backend: InferenceBackend) -> None:
        assert backend.name in {"onnxruntime", "tensorrt", "tensorrt_rtx"}
        assert backend.engine is None or len(backend.engine) == 32


def golden_of(bundle: Bundle) -> Golden:
    """Inputs and outputs of the bundle."""
    features, expected = bundle.golden()
    return features.as_feed(), expected


def some_rows(arrays: dict[str, NDArray[Any]], rows: slice | NDArray[np.integer[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array[rows] for name, array in arrays.items()}


def assert_same(found: Outputs, expected: Outputs, *, exactly: bool = False) -> None:
    """Same names, shapes and dtypes, and values as near as another order of additions leaves them."""
    assert {name: (array.shape, array.dtype) for name, array in found.items()} == {
        name: (array.shape, array.dtype) for name, array in expected.items()
    }
    for name, array in expected.items():
        tolerance = 0 if exactly else 1e-4
        np.testing.assert_allclose(found[name], array, rtol=tolerance, atol=tolerance / 10, err_msg=name)
