"""The sum of a listing's rows as a product of bytes."""

import numpy as np
import pytest

from model.table import expanded, quantised

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from model.text_sum import weighted_sum  # noqa: E402 - after the check that torch is there

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("tokens", [1, 40, 320])
def test_the_sum_is_that_of_the_unpacked_rows_to_the_nearest_step(tokens: int) -> None:
    """For weights of one size and of very different ones; padding, the row of zeros, adds nothing."""
    random = np.random.default_rng(tokens)
    table = random.normal(size=(500, 64), scale=0.5 if tokens < 300 else 0.2).astype(np.float32)
    table[0] = 0
    packed, scales = quantised(table)
    ids = random.integers(0, 500, size=(6, tokens)).astype(np.int32)
    weights = random.random((6, tokens)).astype(np.float32)
    weights[3:] **= 6
    ids[:, tokens // 2 + 1 :], weights[:, tokens // 2 + 1 :] = 0, 0
    found = weighted_sum(*(torch.from_numpy(each) for each in (packed, scales, ids, weights))).numpy()
    sums = np.einsum("bt,btd->bd", weights, expanded(packed, scales)[ids])
    assert np.abs(found - np.clip(sums, -8, 8 - 1 / 16)).max() < 1 / 32 + 1e-3
    digits = np.concatenate(np.divmod(packed, 16), axis=1) - 7.5
    whole = np.rint(weights * scales[ids] * np.float32(65_536))  # as bytes count weights
    exactly = np.einsum("bt,btd->bd", whole.astype(np.float64), digits[ids]) / 65_536
    np.testing.assert_array_equal(found, np.clip(np.rint(exactly * 16) / 16, -8, 8 - 1 / 16))


def test_what_is_beyond_the_last_step_is_cut_to_it() -> None:
    """And not carried over into another byte, neither in a weight nor in the sum."""
    packed, scales = quantised(np.array([[0] * 4, [3, -3, 1, -1]], dtype=np.float32))
    ids, weights = torch.ones(1, 6, dtype=torch.int32), torch.full((1, 6), 1000.0)
    found = weighted_sum(torch.from_numpy(packed), torch.from_numpy(scales), ids, weights)
    assert found.tolist() == [[7.9375, -8.0, 7.9375, -8.0]]


def test_a_listing_without_tokens_sums_to_zero() -> None:
    packed, scales = quantised(np.ones((2, 4), dtype=np.float32))
    ids, weights = torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 3)
    assert not weighted_sum(torch.from_numpy(packed), torch.from_numpy(scales), ids, weights).any()
