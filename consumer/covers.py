"""The cover edge: from the bytes in an event to the pixels that the model takes.

Covers are data from strangers. Format and size are checked before a pixel is decoded, so a small file that would unpack to
gigabytes is refused while it is small.
"""

import numpy as np
from numpy.typing import NDArray

from consumer.records import Change, Rejected, Stage
from model.features import FeatureSettings, InvalidCover, decode_cover


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
