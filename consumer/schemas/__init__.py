"""The Avro schemas of the topics, as text. Each is whole in itself: it can be registered as it is.

They evolve backward-compatibly: a new field has a default, only a field with a default is removed.
"""

from importlib.resources import files

LISTING = files(__name__).joinpath("listing.avsc").read_text(encoding="utf-8")
LISTING_ENVELOPE = files(__name__).joinpath("listing_envelope.avsc").read_text(encoding="utf-8")
ENRICHED_LISTING = files(__name__).joinpath("enriched_listing.avsc").read_text(encoding="utf-8")
