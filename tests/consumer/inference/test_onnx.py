"""The ONNX Runtime backend keeps the contract."""

from collections.abc import Iterator

import numpy as np
import pytest

from consumer.inference import InferenceFailed
from consumer.inference.onnx import OnnxRuntimeBackend
from model.bundle import Bundle
from tests.consumer.inference.contract import BackendContract, Golden, some_rows


@pytest.fixture
def backend(shipped: Bundle) -> Iterator[OnnxRuntimeBackend]:
    opened = OnnxRuntimeBackend(shipped.graph_path, threads=1)
    yield opened
    opened.close()


class TestOnnxRuntime(BackendContract):
    """The contract on ONNX Runtime."""


def test_an_id_beyond_the_table_fails_the_batch_and_only_it(backend: OnnxRuntimeBackend, golden: Golden) -> None:
    feed = {name: array.copy() for name, array in some_rows(golden[0], slice(0, 2)).items()}
    feed["token_ids"][1, 0] = np.iinfo(np.int32).max
    with pytest.raises(InferenceFailed, match=r"onnxruntime: .*out of"):
        backend.infer(feed)
    backend.infer(some_rows(golden[0], slice(0, 2)))
