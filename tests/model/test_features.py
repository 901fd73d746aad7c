"""What the model sees of a listing."""

import dataclasses
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.dataset import build_vocabulary
from model.features import PAD_ID, FeatureExtractor, Features, FeatureSettings, Vocabulary, _chunks
from model.listing import Listing
from model.text import FAMILIES, FAMILIES_OF_FIELD, INPUT_FIELDS, WORD, grams_of, language_code
from tests.model.examples import a_chinese_classic, a_novel, a_shelf, an_empty_listing, an_extractor

TEXTS = st.one_of(
    st.none(),
    st.text(max_size=40),
    st.text(alphabet="ab cé-红楼梦こ́\x00\n\ud800ﬁß", max_size=20),
)
LISTINGS = st.builds(
    Listing,
    listing_id=st.just("x"),
    title=TEXTS,
    authors=st.lists(TEXTS.filter(lambda text: text is not None), max_size=3).map(tuple),
    publisher=TEXTS,
    description=TEXTS,
    language=st.sampled_from([None, "en", "eng", "zh"]),
    year=st.sampled_from([None, 1859, -300]),
)
EXTRACTOR = an_extractor()


def row_of(features: Features, row: int) -> tuple[list[int], list[float]]:
    """A row's tokens and weights without padding."""
    used = features.token_ids[row] != PAD_ID
    return features.token_ids[row][used].tolist(), features.token_weights[row][used].tolist()


def alone(listing: Listing, extractor: FeatureExtractor = EXTRACTOR) -> tuple[list[int], list[float]]:
    return row_of(extractor.extract([listing], [None]), 0)


@settings(max_examples=150, deadline=None)
@given(st.lists(LISTINGS, min_size=1, max_size=6))
def test_features_do_not_depend_on_the_batch_around_a_listing(listings: list[Listing]) -> None:
    """A listing's tokens and weights are bit for bit the same alone, in any batch and at any place in it."""
    extractor = FeatureExtractor(
        FeatureSettings(), build_vocabulary([*listings, *listings, *listings, *a_shelf()], FeatureSettings(), rows_max=9999)
    )
    together = extractor.extract([*a_shelf(), *listings, *a_shelf()], [None] * (len(listings) + 2 * len(a_shelf())))
    for place, listing in enumerate(listings):
        assert row_of(together, len(a_shelf()) + place) == alone(listing, extractor)


def test_a_batch_larger_than_a_chunk_equals_its_parts() -> None:
    """Hundreds of listings at once give what each gives alone."""
    many = a_shelf() * 80
    together = EXTRACTOR.extract(many, [None] * len(many))
    expected = [alone(listing) for listing in a_shelf()]
    assert [row_of(together, row) for row in range(len(many))] == expected * 80


@pytest.mark.parametrize(("scheme", "with_names"), [("grams-1", "author"), ("grams-2", "word"), ("grams-3", "word")])
def test_weights_have_length_one_within_each_family(scheme: Literal["grams-1", "grams-2", "grams-3"], with_names: str) -> None:
    """The tokens that are scaled together have the length of their family's weight; with whom, the scheme says."""
    extractor = FeatureExtractor(FeatureSettings(scheme=scheme), EXTRACTOR.vocabulary)
    tokens = extractor.tokens([a_novel()])
    together = np.where(tokens.families == FAMILIES.index("name"), FAMILIES.index(with_names), tokens.families)
    assert (together != tokens.families).any()
    for family in np.unique(together):
        own = tokens.weights[together == family].astype(np.float64)
        assert np.sqrt((own**2).sum()) == pytest.approx(extractor.settings.family_weights[FAMILIES[family]], rel=1e-6)


@pytest.mark.parametrize(("scheme", "pieces"), [("grams-1", 0), ("grams-2", 0), ("grams-3", 3 + 2 + 1)])
def test_names_without_spaces_are_taken_apart_by_the_newest_scheme(
    scheme: Literal["grams-1", "grams-2", "grams-3"], pieces: int
) -> None:
    """A name of three signs is itself, and three, two and one of one, two and three signs, none of which is a title's."""
    names = Listing(listing_id="x", authors=("曹雪芹",))
    title = Listing(listing_id="x", title="曹雪芹")
    own, others = (grams_of([listing], FeatureSettings(scheme=scheme)) for listing in (names, title))
    families = own.slots.tolist()
    assert families.count(FAMILIES.index("name")) == 1 + pieces
    assert families.count(FAMILIES.index("author")) == 1
    assert len(families) == 2 + pieces
    assert not np.isin(own.hashes, others.hashes).any()


@pytest.mark.parametrize("field", INPUT_FIELDS)
def test_a_missing_field_is_its_families_absent(field: str) -> None:
    """Taking a field from a listing removes the tokens of its families; all others stay to the bit, but for a title's words,
    which take the length that the authors' words leave.
    """
    listing = a_novel()
    missing: dict[str, Any] = {field: () if field == "authors" else None}
    with_field, without = EXTRACTOR.tokens([listing]), EXTRACTOR.tokens([dataclasses.replace(listing, **missing)])
    kept = ~np.isin(with_field.families, FAMILIES_OF_FIELD[field])
    assert kept.sum() < len(kept)
    np.testing.assert_array_equal(without.ids, with_field.ids[kept])
    grown = (without.families == WORD) & (field == "authors")
    np.testing.assert_array_equal(without.weights[~grown], with_field.weights[kept][~grown])
    assert (without.weights[grown] > with_field.weights[kept][grown]).all()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (a_novel(authors=("Dickens, Charles",)), a_novel()),
        (a_novel(title="ａ TALE of two cities"), a_novel()),
        (a_novel(language="eng"), a_novel()),
        (a_novel(language="en-GB"), a_novel()),
        (a_novel(publisher=" CHAPMAN & HALL "), a_novel()),
        (a_novel(price=3.0, page_count=400, version=9), a_novel()),
    ],
    ids=["author's order", "width and case", "language code", "language region", "publisher's case", "not an input"],
)
def test_what_means_the_same_looks_the_same(one: Listing, other: Listing) -> None:
    """Spelling that carries no meaning, and fields that are no input, do not change the features."""
    assert alone(one) == alone(other)


def test_an_empty_listing_has_no_tokens_and_is_no_error() -> None:
    """A listing with nothing but an id gives a row of padding."""
    features = EXTRACTOR.extract([an_empty_listing()], [None])
    assert features.token_ids.tolist() == [[PAD_ID]]
    assert features.token_weights.tolist() == [[0.0]]
    assert features.cover_present.tolist() == [[0.0]]


def test_no_listings_give_no_rows() -> None:
    """An empty batch is an empty batch."""
    assert len(EXTRACTOR.extract([], [])) == 0


def test_the_heaviest_tokens_are_kept_when_there_are_too_many() -> None:
    """No row has more than `tokens_max` tokens, and none left out weighs more than one kept."""
    small = FeatureExtractor(FeatureSettings(tokens_max=10), EXTRACTOR.vocabulary)
    ids, weights = alone(a_novel(), small)
    all_ids, all_weights = alone(a_novel())
    assert len(ids) == 10
    assert min(weights) >= max(w for token, w in zip(all_ids, all_weights, strict=True) if token not in ids)
    assert len(alone(a_chinese_classic(), small)[0]) <= 10


def test_a_long_description_costs_a_bounded_amount() -> None:
    """Texts are cut at the settings' limits before anything is made of them."""
    limits = FeatureSettings(description_characters_max=100)
    short = grams_of([a_novel(description="word " * 20)], limits)
    long = grams_of([a_novel(description="word " * 40_000)], limits)
    assert len(short.hashes) == len(long.hashes)


def test_characters_that_multiply_do_not_cost_gigabytes() -> None:
    """U+FDFA becomes 18 characters; hundreds of listings full of it are cut into small chunks."""
    many = [a_novel(title="\ufdfa" * 1000, description="\ufdfa" * 3000)] * 100
    chunks = list(_chunks(many))
    assert chunks[0] == (0, 13)
    assert chunks[-1][1] == 100
    assert list(_chunks([])) == []


def test_arrays_have_the_types_and_names_of_the_graph() -> None:
    """int32 ids, float32 weights, uint8 covers, float32 presence, under the names of the graph's inputs."""
    cover: NDArray[np.uint8] = np.full((1, 64, 64), 7, dtype=np.uint8)
    feed = EXTRACTOR.extract([a_novel(), an_empty_listing()], [cover, None]).as_feed()
    assert {name: (str(array.dtype), array.ndim) for name, array in feed.items()} == {
        "token_ids": ("int32", 2),
        "token_weights": ("float32", 2),
        "cover": ("uint8", 4),
        "cover_present": ("float32", 2),
    }
    assert feed["cover_present"].tolist() == [[1.0], [0.0]]
    assert feed["cover"][0].max() == 7
    assert feed["cover"][1].max() == 0


def test_rows_are_picked_without_needless_padding() -> None:
    """`rows` gives the rows asked for, as wide as the longest of them."""
    features = EXTRACTOR.extract(a_shelf(), [None] * len(a_shelf()))
    picked = features.rows(np.array([1, 2]))
    assert [row_of(picked, 0), row_of(picked, 1)] == [row_of(features, 1), row_of(features, 2)]
    assert picked.token_ids.shape[1] == len(row_of(features, 1)[0])
    assert len(features.rows(slice(0, 3))) == 3


def test_covers_of_another_shape_are_refused() -> None:
    """A cover that `decode_cover` did not make for these settings is an error that names the row."""
    with pytest.raises(ValueError, match=r"cover of row 0: expected uint8 \(1, 64, 64\)"):
        EXTRACTOR.extract([a_novel()], [np.zeros((3, 64, 64), dtype=np.uint8)])
    with pytest.raises(ValueError, match="a cover or None for each of 1 listings, found 0"):
        EXTRACTOR.extract([a_novel()], [])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=300, unique=True), st.lists(st.integers(0, 2**32 - 1), max_size=300))
def test_the_vocabulary_finds_exactly_what_it_holds(known: list[int], asked: list[int]) -> None:
    """Every known hash has its row, and no other has one."""
    hashes = np.array(sorted(known), dtype=np.uint32)
    size = len(hashes)
    vocabulary = Vocabulary(hashes=hashes, idf=np.ones(size, np.float16), families=np.zeros(size, np.uint8))
    queries = np.array([*asked, *known[:50]], dtype=np.uint32)
    positions, rows = vocabulary.find(queries)
    expected = [(place, sorted(known).index(int(q)) + 1) for place, q in enumerate(queries) if int(q) in set(known)]
    assert list(zip(positions.tolist(), rows.tolist(), strict=True)) == expected


def test_crowded_hashes_are_all_found() -> None:
    """Hashes that differ only in their lowest bits, which share a bucket, are told apart."""
    hashes = np.arange(1000, 1400, dtype=np.uint32)
    vocabulary = Vocabulary(hashes=hashes, idf=np.ones(400, np.float16), families=np.zeros(400, np.uint8))
    _, rows = vocabulary.find(hashes[::-1].copy())
    assert rows.tolist() == list(range(400, 0, -1))


def test_the_largest_hash_is_found_only_where_it_is_known() -> None:
    """The hash of all ones, next to which the table ends, is no exception."""
    for known, expected in (([2**32 - 3], []), ([2**32 - 3, 2**32 - 1], [2])):
        size = len(known)
        hashes = np.array(known, dtype=np.uint32)
        vocabulary = Vocabulary(hashes=hashes, idf=np.ones(size, np.float16), families=np.zeros(size, np.uint8))
        assert vocabulary.find(np.array([2**32 - 1], dtype=np.uint32))[1].tolist() == expected


def test_vocabulary_arrays_are_checked() -> None:
    """Unsorted hashes or a missing value would silently give other features, so they are refused."""
    two: NDArray[np.uint32] = np.array([5, 3], dtype=np.uint32)
    with pytest.raises(ValueError, match="ascending uint32"):
        Vocabulary(hashes=two, idf=np.ones(2, np.float16), families=np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match=r"expected idf as float16 \(2,\), found float16 \(1,\)"):
        Vocabulary(hashes=two[::-1].copy(), idf=np.ones(1, np.float16), families=np.zeros(2, np.uint8))


def test_language_codes_are_one_for_one_language() -> None:
    """Codes of two and three letters, regions and English names mean the same."""
    assert {language_code(text) for text in ("en", "eng", "en-US", "EN_gb", "English")} == {"en"}
    assert language_code("xx-YY") == "xx"
