"""The weighted sum of a listing's table rows, as the served graph computes it: a product of bytes.

Rows as numbers, of four bytes each, would be most of what a pass on a CPU reads and writes, and half of its time. So the rows
stay bytes, the weights become two bytes each, and ONNX Runtime multiplies both as they are. All of it is whole numbers, so that
every machine finds the same sum and rounds it to the same step (steps.py). On a GPU, build_engine multiplies them as float32.
"""

import torch
from torch import Tensor

from model.steps import MIDDLE as BYTE_MIDDLE
from model.steps import in_steps, of_bytes
from model.table import DIGIT_BITS, DIGITS, MIDDLE, OF_HIGH, UNITS


def weighted_sum(packed: Tensor, scales: Tensor, token_ids: Tensor, token_weights: Tensor) -> Tensor:
    """Sums the tokens' rows, each times its weight.

    Args:
        packed: uint8 [rows, D / 2], two digits a byte; scales: float32 [rows]; both as of `table.quantised`.
        token_ids: int32 [B, T]; token_weights: float32 [B, T], none below 0.
    Returns:
        float32 [B, D] in steps of 1/16.
    """
    batch, tokens = token_ids.shape
    flat = token_ids.reshape(-1)  # [B * T]
    weights = token_weights * scales.index_select(0, flat).reshape(batch, tokens)  # [B, T]
    whole = (weights * UNITS).round().clamp(0, UNITS - 1)  # [B, T]
    high = (whole / OF_HIGH).floor()  # [B, T]
    in_bytes = torch.stack([high, whole - high * OF_HIGH], dim=1)  # [B, 2, T]
    # The digits of the whole table, not of a batch's rows: ONNX Runtime takes them apart once, as it opens the graph.
    digits = torch.cat([torch.bitwise_right_shift(packed, DIGIT_BITS), torch.bitwise_and(packed, DIGITS - 1)], dim=1)
    rows = digits.to(torch.int8).index_select(0, flat).reshape(batch, tokens, -1)  # [B, T, D], 0 .. 15
    # Whole numbers that float32 holds, so torch's sums of numbers are ONNX Runtime's sums of bytes.
    sums = of_bytes(in_bytes.to(torch.uint8), middle=0) @ of_bytes(rows, middle=DIGITS // 2)  # [B, 2, D]
    sums = sums + (DIGITS // 2 - MIDDLE) * in_bytes.sum(dim=2, keepdim=True)  # [B, 2, D], halves
    of_weights = torch.tensor([[[OF_HIGH / UNITS], [1 / UNITS]]])  # [1, 2, 1]
    return in_steps((sums * of_weights).sum(dim=1), middle=BYTE_MIDDLE)  # [B, D]
