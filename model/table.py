"""The table of embeddings as the bundle holds it: four bits a number, a scale a row. Torch-free: engines are made of it."""

import numpy as np
from numpy.typing import NDArray

DIGITS, MIDDLE = 16, 7.5  # a number is one of 16 digits, which stand for -7.5 .. 7.5 times the row's scale
# A byte of two digits has a sign, so that sums of bytes stay small and lose nothing of their digits.
_OFFSET = 128


def quantised(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rows of float32 [rows, D] as four bits a number, int8 [rows, D / 2], and a scale each [rows].

    A byte is 16 times a digit of the row's first half and one of its second half, less 128. A row of zeros has the scale 0.
    So few bits do no harm where the table is rotated, see linear_start.py.
    """
    scales = np.abs(table).max(axis=1, initial=0.0) / MIDDLE
    steps = np.divide(table, scales[:, None], out=np.zeros_like(table), where=scales[:, None] > 0)
    upper, lower = np.split(np.clip(np.rint(steps + MIDDLE), 0, DIGITS - 1), 2, axis=1)
    return (upper * DIGITS + lower - _OFFSET).astype(np.int8), scales.astype(np.float32)


def expanded(rows: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """What `quantised` kept of a table: float32 [rows, D]."""
    digits = np.concatenate(np.divmod(rows.astype(np.int16) + _OFFSET, DIGITS), axis=1).astype(np.float32)
    return (digits - np.float32(MIDDLE)) * scales[:, None]
