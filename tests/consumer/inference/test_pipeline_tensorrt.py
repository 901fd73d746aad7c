"""The pipeline with a real TensorRT backend on the software CUDA driver: what it answers, and what a lost device means to it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from consumer.inference import DeviceLost
from consumer.inference.device import Device
from consumer.serving import ServedModel, open_model
from consumer.settings import ModelSettings, Settings
from model.bundle import Bundle
from tests.consumer.inference.stand_in_engines import a_fingerprint, a_plan, publish
from tests.consumer.journey import Journey, event_of
from tests.examples import a_change_event, a_numbered_book
from tests.software_cuda import stand_in
from tests.software_cuda.control import CudaError, SoftCuda

pytestmark = pytest.mark.integration

MakeJourney = Callable[..., Journey]


@pytest.fixture
def served(shipped: Bundle, tmp_path: Path, soft_cuda: SoftCuda, stand_in_tensorrt: ModuleType) -> Iterator[ServedModel]:
    """The shipped bundle as the service opens it, on an engine from its cache."""
    device = Device()
    device.close()
    publish(tmp_path, a_fingerprint(shipped, device.gpu), a_plan(shipped))
    settings = Settings(model=ModelSettings(backend="tensorrt", allow_fallback=False, engine_cache=tmp_path))
    model = open_model(settings, shipped, epoch=4)
    yield model
    model.close()
    model.thread.shutdown()


def a_journey(journey: MakeJourney, served: ServedModel, *, books: int) -> Journey:
    one = journey()
    one.model = served
    one.kafka.publish(*(a_change_event(a_numbered_book(number), offset=number) for number in range(books)))
    return one


def test_events_and_store_name_the_engine(journey: MakeJourney, served: ServedModel) -> None:
    one = a_journey(journey, served, books=40).run()
    events = [event_of(output) for output in one.kafka.outputs]
    assert [event["source_offset"] for event in events] == list(range(40))
    assert {(event["engine"], event["model_epoch"]) for event in events} == {(served.identity.engine, 4)}
    assert served.identity.engine is not None
    assert {getattr(state, "engine", "") for state in one.store.states.values()} == {served.identity.engine}


def test_a_row_that_is_not_finite_is_rejected_alone(journey: MakeJourney, served: ServedModel) -> None:
    def spoil(outputs: dict[str, Any]) -> None:
        outputs["group"][2] = np.nan

    one = a_journey(journey, served, books=5)
    stand_in.behaviour().spoil = spoil
    said = one.run().said()
    assert [answer for _, _, answer in sorted(said)].count("dead letter: inference") == 1
    assert (0, 2, "dead letter: inference") in said


def test_nothing_of_a_batch_is_committed_when_the_device_is_lost(journey: MakeJourney, served: ServedModel) -> None:
    """The pipeline ends with DeviceLost, exit code 1: a restart reads the batch again."""
    one = a_journey(journey, served, books=5)
    stand_in.behaviour().kernel_error = CudaError.ILLEGAL_ADDRESS
    with pytest.raises(DeviceLost, match="illegal memory access") as lost:
        one.run()
    assert lost.value.exit_code == 1
    assert one.kafka.outputs == []
    assert one.store.states == {}
