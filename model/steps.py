"""Numbers as bytes count them, so that layers multiply bytes: four times as many at once on a CPU as of float32.

What such a layer reads is a multiple of 1/16, of which a byte holds 256, and each of its weights a whole number from -63 to 63 of
the column's step, a power of two. Then all its sums are whole numbers of one step, which float32 holds: a CPU that multiplies
bytes, torch and an engine that multiplies float32 find the same, to the last bit. Were they only near one another, numbers near
the middle between two steps would be rounded apart, and there always are some.
Larger weights would do no harm here, but overflow the sum of two products on a CPU without VNNI.
"""

import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - registers quantize_per_tensor and its inverse

STEP = 1 / 16
BYTE_MAX = 255
MIDDLE = 128  # the byte of 0, where numbers may be negative
WEIGHT_MAX = 63


def in_steps(numbers: Tensor, *, middle: int) -> Tensor:
    """float32 of any shape to the nearest steps: -8 .. 7.94 for the middle 128, 0 .. 15.94 for 0; beyond, the last of them."""
    found: Tensor = torch.ops.quantized_decomposed.quantize_per_tensor(numbers, STEP, middle, 0, BYTE_MAX, torch.uint8)
    return of_bytes(found, middle=middle, step=STEP)


def of_bytes(values: Tensor, *, middle: int, step: float = 1.0) -> Tensor:
    """uint8 or int8 to float32: so many steps beyond the middle, in one step of ONNX."""
    low, high = (-MIDDLE, MIDDLE - 1) if values.dtype == torch.int8 else (0, BYTE_MAX)
    found: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor(values, step, middle, low, high, values.dtype)
    return found


def column_steps(weights: Tensor) -> Tensor:
    """The least powers of two that hold each column of a layer in 63 steps, float32 [out, 1], of its weights [out, in]."""
    largest = weights.abs().amax(dim=1, keepdim=True)  # [out, 1]
    return torch.where(largest > 0, torch.exp2(torch.ceil(torch.log2(largest / WEIGHT_MAX))), 1.0)


def round_layer(layer: nn.Linear) -> None:
    """Rounds a layer's weights to steps of their columns, and its biases to what sums of products are multiples of."""
    with torch.no_grad():
        steps = column_steps(layer.weight)  # [out, 1]
        layer.weight.copy_((layer.weight / steps).round() * steps)
        if layer.bias is not None:
            of_sums = steps[:, 0] * STEP  # [out]
            layer.bias.copy_((layer.bias / of_sums).round() * of_sums)
