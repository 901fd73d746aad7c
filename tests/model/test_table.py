"""The table as the bundle holds it."""

import numpy as np
from numpy.typing import NDArray

from model.table import expanded, quantised


def test_rows_survive_rounding_to_four_bits() -> None:
    """No number is off by more than half a step of its row's scale, two are in a byte, and rows of zeros stay zero."""
    table: NDArray[np.float32] = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    table[0] = 0
    rows, scales = quantised(table)
    assert (rows.dtype, rows.shape) == (np.int8, (50, 4))
    assert (np.abs(expanded(rows, scales) - table) <= scales[:, None] * 0.501).all()
    assert not expanded(rows, scales)[0].any()


def test_the_largest_and_the_smallest_number_of_a_row_are_kept() -> None:
    """The scale is the row's own, so that nothing is cut off."""
    table = np.array([[-30.0, 30.0, 2.0, -2.0], [0.015, -0.015, 0.001, -0.001]], dtype=np.float32)
    np.testing.assert_allclose(expanded(*quantised(table)), table, atol=2.1, rtol=0)
    np.testing.assert_allclose(expanded(*quantised(table))[:, :2], table[:, :2], rtol=1e-6)
