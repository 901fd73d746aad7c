"""Two servers of one run never share a port, though neither listens yet."""

import random
from collections.abc import Iterator, Sequence

import pytest

from tests.infrastructure.servers import free_port


def test_a_port_is_handed_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = free_port()
    drawn: Iterator[int] = iter([taken, taken])

    def first_the_taken_one(ports: Sequence[int]) -> int:
        return next(drawn, None) or real_choice(ports)

    real_choice = random.choice
    monkeypatch.setattr(random, "choice", first_the_taken_one)
    assert free_port() != taken
    assert next(drawn, None) is None  # both were drawn
