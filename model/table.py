"""The table of embeddings as the bundle holds it: four bits a number, a scale a row. Torch-free: engines are made of it."""

import numpy as np
from numpy.typing import NDArray

DIGITS, MIDDLE = 16, 7.5  # a number is one of 16 digits, which stand for -7.5 .. 7.5 times the row's scale
DIGIT_BITS = 4
# A token's weight times its row's scale is so many parts of 1, in two bytes; whose is more is beyond any text's last step.
UNITS = 65_536
OF_HIGH = 256  # units that the first of the two counts
_CUTS = (0.92, 0.85, 0.78, 0.72, 0.66, 0.6)


def quantised(table: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Rows of float32 [rows, D] as four bits a number, uint8 [rows, D / 2], and a scale each [rows].

    A byte is 16 times a digit of the row's first half and one of its second half. A row of zeros has the scale 0.
    A row's largest numbers are cut where that makes the row's error smaller; rounding again changes nothing.
    So few bits do no harm where the table is rotated, see linear_start.py.
    """
    largest = np.abs(table).max(axis=1, initial=0.0) / MIDDLE
    digits, scales = _digits(table, largest), largest.copy()
    least = _squared_error(table, digits, scales)
    for share in _CUTS:
        tried = _digits(table, largest * share)
        error = _squared_error(table, tried, largest * share)
        better = error < least
        digits[better], scales[better], least[better] = tried[better], largest[better] * share, error[better]
    upper, lower = np.split(digits, 2, axis=1)
    return (upper * DIGITS + lower).astype(np.uint8), scales.astype(np.float32)


def _digits(table: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    steps = np.divide(table, scales[:, None], out=np.zeros_like(table), where=scales[:, None] > 0)
    return np.clip(np.rint(steps + np.float32(MIDDLE)), 0, DIGITS - 1)


def _squared_error(table: NDArray[np.float32], digits: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    error: NDArray[np.float32] = np.square((digits - np.float32(MIDDLE)) * scales[:, None] - table).sum(axis=1)
    return error


def expanded(rows: NDArray[np.uint8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """What `quantised` kept of a table: float32 [rows, D]."""
    digits = np.concatenate(np.divmod(rows, DIGITS), axis=1).astype(np.float32)
    return (digits - np.float32(MIDDLE)) * scales[:, None]
