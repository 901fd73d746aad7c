"""The sum of a listing's rows as a product of bytes."""

import numpy as np
import pytest

from model.table import expanded, quantised

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from model.text_sum import weighted_sum  # noqa: E402 - after the check that torch is there

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("tokens", [1, 40, 320])
def test_the_sum_is_that_of_the_unpacked_rows(tokens: int) -> None:
    """For weights of one size and of very different ones; padding, the row of zeros, adds nothing."""
    random = np.random.default_rng(tokens)
    table = random.normal(size=(500, 64)).astype(np.float32)
    table[0] = 0
    packed, scales = quantised(table)
    ids = random.integers(0, 500, size=(6, tokens)).astype(np.int32)
    weights = random.random((6, tokens)).astype(np.float32)
    weights[3:] **= 6
    ids[:, tokens // 2 + 1 :], weights[:, tokens // 2 + 1 :] = 0, 0
    found = weighted_sum(*(torch.from_numpy(each) for each in (packed, scales, ids, weights))).numpy()
    rows = expanded(packed, scales)
    np.testing.assert_allclose(found, np.einsum("bt,btd->bd", weights, rows[ids]), atol=2e-5)


def test_a_listing_without_tokens_sums_to_zero() -> None:
    packed, scales = quantised(np.ones((2, 4), dtype=np.float32))
    ids, weights = torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 3)
    assert not weighted_sum(torch.from_numpy(packed), torch.from_numpy(scales), ids, weights).any()
