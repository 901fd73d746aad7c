"""Inputs held against what a graph takes, so that every backend refuses the same batch in the same words."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from consumer.inference import Arrays, InferenceFailed
from model.bundle import FEWEST_COVERS, TensorSpec


def batch_of(inputs: Arrays, expected: Sequence[TensorSpec]) -> int:
    """The rows of a batch.

    Args:
        expected: the graph's inputs; a dimension that has a name takes any size of one or more, the same wherever it stands.
            That of covers is the batch's: a graph may take fewer, but whoever asks a backend gives one for each row.

    Raises:
        InferenceFailed: an input is missing, unknown, or of another dtype or shape; the message names it.
    """
    sizes: dict[str, int] = {}
    for each in expected:
        spec = each.model_copy(update={"shape": tuple("batch" if size in FEWEST_COVERS else size for size in each.shape)})
        array = inputs.get(spec.name)
        if array is None:
            raise InferenceFailed(f"input {spec.name}: expected {_described(spec)}, found none")
        fits = array.ndim == len(spec.shape) and all(
            size >= 1 and size == (sizes.setdefault(dimension, size) if isinstance(dimension, str) else dimension)
            for size, dimension in zip(array.shape, spec.shape, strict=True)
        )
        if array.dtype != np.dtype(spec.dtype) or not fits:
            raise InferenceFailed(
                f"input {spec.name}: expected {_described(spec, sizes)}, found {array.dtype} {_listed(array.shape)}"
            )
    if unknown := set(inputs) - {spec.name for spec in expected}:
        raise InferenceFailed(f"input {min(unknown)}: the graph has none of that name, but {', '.join(s.name for s in expected)}")
    return int(inputs[expected[0].name].shape[0])


def _described(spec: TensorSpec, sizes: dict[str, int] | None = None) -> str:
    known = sizes or {}
    shape = [f"{each} = {known[each]}" if isinstance(each, str) and each in known else each for each in spec.shape]
    return f"{spec.dtype} {_listed(shape)}"


def _listed(shape: Sequence[Any]) -> str:
    return f"[{', '.join(map(str, shape))}]"
