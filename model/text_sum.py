"""The weighted sum of a listing's table rows, as the served graph computes it: a product of bytes.

Rows as numbers, of four bytes each, would be most of what a pass on a CPU reads and writes, and half of its time. So the rows
stay bytes, the weights become three bytes each, and ONNX Runtime multiplies both as they are. On a GPU none of this is wanted:
build_engine replaces it by one product of numbers.
"""

import torch
from torch import Tensor
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - registers dequantize_per_tensor

from model.table import DIGIT_BITS, DIGITS, MIDDLE

_BYTE_MAX = 255
_BYTES = 3  # a weight; of two, each 1 / 65,025 of the largest, the engine's probabilities stood apart by up to .0001
_LEAST = 1e-30  # a listing without tokens has no weights to divide by


def weighted_sum(packed: Tensor, scales: Tensor, token_ids: Tensor, token_weights: Tensor) -> Tensor:
    """Sums the tokens' rows, each times its weight.

    Args:
        packed: uint8 [rows, D / 2], two digits a byte; scales: float32 [rows]; both as of `table.quantised`.
        token_ids: int32 [B, T]; token_weights: float32 [B, T], none below 0.
    Returns:
        float32 [B, D], as of the unpacked rows with each weight cut to 1 / 255³ of the listing's largest.
    """
    batch, tokens = token_ids.shape
    flat = token_ids.reshape(-1)  # [B * T]
    weights = token_weights * scales.index_select(0, flat).reshape(batch, tokens)  # [B, T]
    largest = weights.amax(dim=1, keepdim=True).clamp(min=_LEAST)  # [B, 1]
    rest, in_bytes = weights / largest, []  # [B, T], 0 .. 1
    for _ in range(_BYTES):
        rest = rest * _BYTE_MAX  # [B, T]
        in_bytes.append(rest.floor())  # [B, T]
        rest = rest - in_bytes[-1]  # [B, T]
    multipliers = torch.stack(in_bytes, dim=1).to(torch.uint8)  # [B, 3, T]
    # The digits of the whole table, not of a batch's rows: ONNX Runtime takes them apart once, as it opens the graph.
    digits = torch.cat([torch.bitwise_right_shift(packed, DIGIT_BITS), torch.bitwise_and(packed, DIGITS - 1)], dim=1)
    rows = digits.index_select(0, flat).reshape(batch, tokens, -1)  # uint8 [B, T, D], 0 .. 15
    # Whole numbers that float32 holds, so torch's sums of numbers are ONNX Runtime's sums of bytes.
    sums = _numbers(multipliers, 0) @ _numbers(rows, DIGITS // 2)  # [B, 3, D]
    of_bytes = torch.tensor([[[float(_BYTE_MAX) ** -place] for place in range(1, _BYTES + 1)]])  # [1, 3, 1]
    text = (sums * of_bytes).sum(dim=1) * largest  # [B, D]
    return text + (DIGITS // 2 - MIDDLE) * weights.sum(dim=1, keepdim=True)  # [B, D]


def _numbers(values: Tensor, middle: int) -> Tensor:
    """uint8 to float32, less `middle`, in one step of ONNX."""
    found: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor(values, 1.0, middle, 0, _BYTE_MAX, torch.uint8)
    return found
