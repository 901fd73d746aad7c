"""Inference: what the pipeline asks of a backend, and which one it gets."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from consumer.errors import EnricherError

Arrays = Mapping[str, NDArray[Any]]


class InferenceFailed(Exception):
    """The backend could not run this batch; a smaller one, without the record at fault, may go through."""


class OutOfMemory(InferenceFailed):
    """This batch did not fit; that says nothing of its records before one of them failed alone."""


class BackendUnavailable(EnricherError):
    """The backend that the settings ask for cannot run here, and falling back is not allowed."""

    exit_code = 3


class InferenceBackend(Protocol):
    """Runs the bundle's graph. Made, used and closed on one thread: a GPU context belongs to its thread."""

    name: str

    def infer(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """One pass over a batch.

        Args:
            inputs: the graph's inputs by name, first axis the batch (`model.features.Features.as_feed`).
        Returns:
            The graph's outputs by name, float32, first axis the batch.
        Raises:
            InferenceFailed: this batch cannot be run.
        """
        ...

    def close(self) -> None:
        """Frees what the backend holds."""
        ...
