"""The cover edge: from the bytes in an event to the pixels that the model takes.

Covers are data from strangers. Format and size are checked before a pixel is decoded, so a small file that would unpack to
gigabytes is refused while it is small.
"""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from consumer.records import Change, CoverUse, Rejected, Stage
from model.features import FeatureSettings, InvalidCover, decode_cover
from model.listing import Listing


def cover_pixels(change: Change, settings: FeatureSettings, *, bytes_max: int) -> NDArray[np.uint8] | Rejected | None:
    """The listing's cover as uint8 [channels, height, width]; None where it has none; the rejected record where it is broken."""
    cover = change.listing.cover if change.listing is not None else None
    if not cover:
        return None
    if len(cover) > bytes_max:
        return Rejected(change.record, Stage.COVER, f"cover: at most {bytes_max} bytes (covers.max_bytes), found {len(cover)}")
    try:
        return decode_cover(cover, settings)
    except InvalidCover as error:
        return Rejected(change.record, Stage.COVER, f"cover: {error}")


def url_to_fetch(listing: Listing) -> str | None:
    """Where the listing's cover is to be fetched; None where its bytes came along, or it has none."""
    return None if listing.cover else listing.cover_url or None


def urls_to_fetch(listings: Mapping[str, Listing]) -> dict[str, str]:
    """Listing id to where its cover is to be fetched, of those that need it."""
    return {key: url for key, listing in listings.items() if (url := url_to_fetch(listing))}


def covers_used(listings: Mapping[str, Listing], urls: Mapping[str, str], fetched: Collection[str]) -> dict[str, CoverUse]:
    """Listing id to whether a prediction sees its cover; `urls` were to be fetched, and those in `fetched` were."""
    return {key: cover_use(one, url=urls.get(key), fetched=urls.get(key) in fetched) for key, one in listings.items()}


def cover_use(listing: Listing, *, url: str | None, fetched: bool) -> CoverUse:
    """Whether a prediction sees the listing's cover; `url`, if any, was to be fetched."""
    if url is None:
        return CoverUse.USED if listing.cover else CoverUse.NONE
    return CoverUse.USED if fetched else CoverUse.MISSING
