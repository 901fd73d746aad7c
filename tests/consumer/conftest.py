"""Pipelines among fakes, with waits short enough for a test."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from consumer import patience, pipeline
from model.bundle import Bundle
from tests.consumer.journey import Journey
from tests.fake_model import a_tiny_bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return a_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def journey(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Journey]]:
    """`journey(partitions=2, batch={"max_records": 1})` is a pipeline with everything around it faked."""
    monkeypatch.setattr(pipeline, "IDLE_S", 0.005)
    monkeypatch.setattr(pipeline, "KEEP_ALIVE_AFTER_S", 0.0)
    monkeypatch.setattr(patience, "RETRY_S_FIRST", 0.001)
    monkeypatch.setattr(patience, "RETRY_S_MAX", 0.005)
    made: list[Journey] = []

    def make(**settings: Any) -> Journey:
        made.append(Journey(tiny_bundle, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()
