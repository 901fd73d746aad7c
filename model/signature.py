"""The content hash: equal exactly when two versions of a listing look the same to the model and to the assembly.

Most changes to a catalogue are of stock and price, which the model never sees. A hash beside the stored prediction lets
the pipeline reuse it without asking the model again.
"""

import hashlib
import struct
from collections.abc import Iterator

from model.listing import Listing

DIGEST_BYTES = 16


def content_hash(listing: Listing, *, cover_url: str | None = None) -> str:
    """Hashes title, authors, publisher, description, language, year, format, currency and cover of a listing.

    Args:
        cover_url: where the cover is fetched, if the model sees one that is not in the listing: its URL stands for it.

    Every part is written as its length and its bytes, an absent one as the length -1, and the authors are preceded by
    their number: no two different contents share an encoding ("a" + "bc" is not "ab" + "c").

    Returns:
        The hex digits of a 128-bit BLAKE2b digest.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"listing-content")
    for part in _parts(listing, cover_url):
        if part is None:
            digest.update(struct.pack("<q", -1))
        else:
            digest.update(struct.pack("<q", len(part)))
            digest.update(part)
    return digest.hexdigest()


def _parts(listing: Listing, cover_url: str | None) -> Iterator[bytes | None]:
    yield _bytes_of(listing.title)
    yield struct.pack("<q", len(listing.authors))
    for author in listing.authors:
        yield _bytes_of(author)
    yield _bytes_of(listing.publisher)
    yield _bytes_of(listing.description)
    yield _bytes_of(listing.language)
    yield None if listing.year is None else struct.pack("<q", listing.year)
    yield _bytes_of(listing.format)
    yield _bytes_of(listing.currency)
    # A digest of its own, so that a caller that stored the cover's digest could hash without the image.
    yield None if listing.cover is None else hashlib.blake2b(listing.cover, digest_size=DIGEST_BYTES).digest()
    if cover_url is not None:  # no part where there is none: such a listing hashes as it did before there were URLs
        yield _bytes_of(cover_url)


def _bytes_of(text: str | None) -> bytes | None:
    # JSON may carry a lone surrogate, which strict UTF-8 refuses.
    return None if text is None else text.encode("utf-8", "surrogatepass")
