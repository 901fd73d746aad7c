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


class DeviceLost(EnricherError):
    """The GPU, or this process's context on it, is gone: every later call would fail. The process ends; a restart is clean."""


class InferenceBackend(Protocol):
    """Runs the bundle's graph. Made, used and closed on one thread: a GPU context belongs to its thread.

    Attributes:
        engine: fingerprint of the TensorRT engine, or None where the graph itself runs.
    """

    name: str
    engine: str | None

    def infer(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """One pass over a batch.

        Args:
            inputs: the graph's inputs by name, first axis the batch of one row or more (`model.features.Features.as_feed`).
        Returns:
            The graph's outputs by name, float32, first axis the batch.
        Raises:
            InferenceFailed: this batch cannot be run; where an input is wrong, the message names it.
            DeviceLost: nothing can be run any more.
        """
        ...

    def close(self) -> None:
        """Frees what the backend holds; may be called again."""
        ...
