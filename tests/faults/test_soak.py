"""The soak's verdict finds what grows, and lets what comes and goes pass."""

from dataclasses import replace

import pytest

from tests.faults.soak import Sample, judge

STEADY = [
    Sample(seconds=n, events=n * 100, memory_mb=200 + n % 3, descriptors=40, threads=14 + n % 2, redis_connections=3)
    for n in range(100)
]


def test_a_steady_service_passes() -> None:
    """A thread that comes and goes, memory that moves a little, and a start that was different."""
    assert judge([replace(STEADY[0], memory_mb=90, descriptors=10), *STEADY[1:]], 10_000) == []


@pytest.mark.parametrize("name", ["descriptors", "threads", "redis_connections"])
def test_what_grows_by_one_is_found(name: str) -> None:
    """Slowly, in the last third only."""
    grown = [replace(one, **{name: getattr(one, name) + (one.events > 7_000)}) for one in STEADY]
    assert [complaint.split(":")[0] for complaint in judge(grown, 10_000)] == [name]


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_memory_that_leaves_its_band_is_found(share: float) -> None:
    """At the end, by ten per cent."""
    found = judge([*STEADY[:-1], replace(STEADY[-1], memory_mb=200 * share)], 10_000)
    assert len(found) == 1
    assert found[0].startswith("memory:")
