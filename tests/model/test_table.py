"""The table as the bundle holds it."""

import numpy as np
from numpy.typing import NDArray

from model.table import expanded, quantised


def test_rows_survive_rounding_to_four_bits() -> None:
    """The error is that of steps of a third of the numbers' spread, two numbers are in a byte, and rows of zeros stay zero."""
    table: NDArray[np.float32] = np.random.default_rng(0).normal(size=(50, 256)).astype(np.float32)
    table[0] = 0
    rows, scales = quantised(table)
    assert (rows.dtype, rows.shape) == (np.uint8, (50, 128))
    error = np.square(expanded(rows, scales) - table)[1:].mean()
    assert error < 0.0125  # the least that equal steps reach on normal numbers is .0115
    assert not expanded(rows, scales)[0].any()


def test_a_rows_largest_numbers_are_cut_only_where_that_makes_its_error_smaller() -> None:
    """Of many numbers a few large ones give way; of few none does."""
    many = np.random.default_rng(0).normal(size=(20, 512)).astype(np.float32)
    _, scales = quantised(many)
    uncut = np.abs(many).max(axis=1) / 7.5
    assert (scales < uncut).all()
    few = np.array([[-30.0, 30.0, 2.0, -2.0], [0.015, -0.015, 0.001, -0.001]], dtype=np.float32)
    np.testing.assert_allclose(expanded(*quantised(few))[:, :2], few[:, :2], rtol=1e-6)


def test_rounding_again_changes_nothing() -> None:
    """What is judged and what is exported are the same table."""
    table = np.random.default_rng(1).normal(size=(40, 64)).astype(np.float32)
    once = expanded(*quantised(table))
    np.testing.assert_allclose(expanded(*quantised(once)), once, rtol=1e-6)
