"""What happens in the demo's shop, in order: what is published when, and what is measured meanwhile.

opening    a few listings, until the service has joined its group; not measured
burst      most listings at once, with the broken events in the middle: throughput
steady     the rest at a paced rate, as a shop's day goes: latency
changes    prices, a late older version, deletions: the model is not asked again
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from consumer.demo.broken import BrokenEvent
from consumer.demo.catalogue import DemoListing

OPENING_LISTINGS = 8
# A few hundred listings are answered in one or two transactions, whose length would be all that is measured. So each is
# offered under several ids: the model is asked for each.
BURST_EVENTS = 2_000
BURST_COPIES_MAX = 5
STEADY_PER_S = 40
STEADY_LISTINGS_MAX = 160
PRICE_CHANGES = 40
DELETIONS = 2


class TimeIsUp(Exception):
    """The time that was given is over; what has been seen by then is the result."""


class Shop(Protocol):
    """What a scenario needs of the running demo; `running.RunningShop` is the real one. Each call may raise TimeIsUp."""

    def publish(self, listing: DemoListing, *, version: int, changes: dict[str, Any] | None = None) -> None: ...
    def publish_broken(self, events: Sequence[BrokenEvent]) -> None: ...
    def delete(self, listing_id: str, *, version: int) -> None: ...
    def wait_until_answered(self, phase: str) -> None:
        """Raises: EnricherError, when the service stopped or answers no more."""


@dataclass(slots=True)
class Figures:
    """What was measured. Times are of `time.monotonic`; `burst_s` is None when the burst was not answered in time."""

    burst_listings: int = 0
    burst_broken: int = 0
    burst_s: float | None = None
    steady_sent_s: dict[tuple[str, int], float] = field(default_factory=dict)
    is_complete: bool = False


def play(shop: Shop, listings: Sequence[DemoListing], broken: Sequence[BrokenEvent], *, version: int) -> Figures:
    """Runs the four acts, as far as time allows.

    Args:
        version: what all listings have at first; updates count on from it.
    """
    opening, burst, steady = split(listings)
    figures = Figures()
    try:
        for listing in opening:
            shop.publish(listing, version=version)
        shop.wait_until_answered("the service joins its group")
        _play_burst(shop, burst, broken, version=version, figures=figures)
        _play_steady(shop, steady, version=version, figures=figures)
        _play_changes(shop, listings, version=version)
        figures.is_complete = True
    except TimeIsUp:
        pass
    return figures


def split(listings: Sequence[DemoListing]) -> tuple[list[DemoListing], list[DemoListing], list[DemoListing]]:
    """Opening, burst and steady listings; together all of them."""
    opening_end = min(OPENING_LISTINGS, len(listings) // 3)
    steady_start = len(listings) - min(STEADY_LISTINGS_MAX, max(1, len(listings) // 3))
    steady_start = max(steady_start, opening_end)
    return list(listings[:opening_end]), list(listings[opening_end:steady_start]), list(listings[steady_start:])


def events_in_all(listings: Sequence[DemoListing], broken: Sequence[BrokenEvent]) -> int:
    """How many events `play` publishes."""
    opening, burst, steady = split(listings)
    changes = min(PRICE_CHANGES, len(listings)) + 1 + min(DELETIONS, len(listings))
    return len(opening) + len(_copies(burst)) + len(broken) + len(steady) + changes


def _copies(burst: Sequence[DemoListing]) -> list[DemoListing]:
    """The listings, then all of them again under ids of their own."""
    copies = min(BURST_COPIES_MAX, max(1, BURST_EVENTS // max(1, len(burst))))
    again = [
        DemoListing({**one.values, "listing_id": f"{one.listing_id}.{copy}"}, one.cover)
        for copy in range(2, copies + 1)
        for one in burst
    ]
    return [*burst, *again]


def _play_burst(
    shop: Shop, burst: Sequence[DemoListing], broken: Sequence[BrokenEvent], *, version: int, figures: Figures
) -> None:
    offered = _copies(burst)
    middle = len(offered) // 2
    started_s = time.monotonic()
    for listing in offered[:middle]:
        shop.publish(listing, version=version)
    shop.publish_broken(broken)
    for listing in offered[middle:]:
        shop.publish(listing, version=version)
    shop.wait_until_answered("all at once")
    figures.burst_s = time.monotonic() - started_s
    figures.burst_listings, figures.burst_broken = len(offered), len(broken)


def _play_steady(shop: Shop, steady: Sequence[DemoListing], *, version: int, figures: Figures) -> None:
    started_s = time.monotonic()
    for number, listing in enumerate(steady):
        due_s = started_s + number / STEADY_PER_S
        time.sleep(max(0.0, due_s - time.monotonic()))
        figures.steady_sent_s[(listing.listing_id, version)] = time.monotonic()
        shop.publish(listing, version=version)
    shop.wait_until_answered("one by one")


def _play_changes(shop: Shop, listings: Sequence[DemoListing], *, version: int) -> None:
    repriced = listings[:PRICE_CHANGES]
    for listing in repriced:
        price = round(float(listing.values.get("price") or 10.0) * 0.9, 2)
        shop.publish(listing, version=version + 1, changes={"price": price})
    shop.wait_until_answered("new prices")
    shop.publish(repriced[0], version=version - 1)
    shop.wait_until_answered("an old version")
    for listing in list(listings)[-DELETIONS:]:
        shop.delete(listing.listing_id, version=version + 1)
    shop.wait_until_answered("deletions")


def latencies_ms(figures: Figures, received_s: Callable[[tuple[str, int]], float | None]) -> list[float]:
    """From publish to enriched, in ascending order, of the steady listings that were enriched."""
    pairs = ((sent_s, received_s(key)) for key, sent_s in figures.steady_sent_s.items())
    return sorted((got_s - sent_s) * 1000 for sent_s, got_s in pairs if got_s is not None)


def percentile(ascending: Sequence[float], share: float) -> float:
    """The nearest-rank percentile, e.g. `share` 0.99; of at least one value."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]
