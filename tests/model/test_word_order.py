"""A listing's words in order: where they stand among its tokens, and what the branch that reads them makes of them."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from model.dataset import build_vocabulary
from model.features import FeatureExtractor, FeatureSettings, Tokens
from model.listing import Listing
from model.text import DESCRIPTION, FAMILIES, NAME, NO_PLACE, WORD, grams_of
from tests.model.examples import a_novel, a_shelf, an_extractor

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from build_engine.precision import Precision, engine_graph  # noqa: E402 - after the check that torch is there
from build_engine.runner import OnnxRuntimeRunner  # noqa: E402
from model.calibrate import Calibration  # noqa: E402
from model.evaluate import open_session  # noqa: E402
from model.export import ServingGraph, difference, export_graph  # noqa: E402
from model.network import Network, Shape  # noqa: E402
from model.tasks import Task, TaskEntry  # noqa: E402
from model.text_matrix import without  # noqa: E402
from model.word_order import READ, WordOrder, leading_words, order_features, word_of_row  # noqa: E402

pytestmark = pytest.mark.torch

TITLE = "the cat and the dog and the bird"
FIRST_TIMES = ["the", "cat", "and", "dog", "bird"]
NAMES = ("Zeno Quill", "Ada Stone")


def knowing(*listings: Listing, **settings: Any) -> FeatureExtractor:
    """Knows every gram of these listings."""
    chosen = FeatureSettings(**settings)
    return FeatureExtractor(chosen, build_vocabulary(listings * 3, chosen))


def row_of_word(extractor: FeatureExtractor, word: str, *, of_name: bool = False) -> int:
    """A word's row of the table."""
    listing = Listing(listing_id="w", authors=(word,)) if of_name else Listing(listing_id="w", title=word)
    grams = grams_of([listing], extractor.settings)
    own = (grams.slots % len(FAMILIES) == (NAME if of_name else WORD)) & (grams.places != NO_PLACE)
    _, rows = extractor.vocabulary.find(grams.hashes[own])
    return int(rows[0])


def test_words_come_first_in_the_order_they_are_read() -> None:
    """Those of the title before those of names; a word that is repeated stands where it stands for the first time."""
    listing = Listing(listing_id="x", title=TITLE, authors=NAMES, description="a bird and a cat", publisher="Quill")
    extractor = knowing(listing)
    tokens = extractor.tokens([listing])
    names = sorted(row_of_word(extractor, word, of_name=True) for name in NAMES for word in name.split())
    assert tokens.words.tolist() == [4 + 5]
    assert tokens.ids[:9].tolist() == [*(row_of_word(extractor, word) for word in FIRST_TIMES), *names]
    assert tokens.families[:9].tolist() == [WORD] * 5 + [NAME] * 4
    assert (tokens.weights > 0).all()


def test_the_description_and_whole_fields_come_last() -> None:
    """So that what is hidden of them moves no other token, and words of the description follow all of title and authors."""
    tokens = an_extractor().tokens([a_novel()])
    later = np.isin(tokens.families, [DESCRIPTION])
    whole = np.isin(tokens.families, [FAMILIES.index(name) for name in ("publisher", "format", "language", "currency", "year")])
    first_described, first_whole = np.flatnonzero(later)[0], np.flatnonzero(whole)[0]
    assert later[first_described:first_whole].all()
    assert whole[first_whole:].all()
    rest = slice(int(tokens.words[0]), first_described)
    assert (np.diff(tokens.ids[rest]) >= 0).all()


def test_rows_with_too_many_tokens_keep_words_in_order() -> None:
    """The words among the heaviest tokens come first, in the order of the title, and are counted."""
    title = " ".join(f"word{number}" for number in range(30))
    listing = Listing(listing_id="x", title=title)
    large, small = knowing(listing), knowing(listing, tokens_max=12)
    whole, kept = large.tokens([listing]), small.tokens([listing])
    assert kept.counts.tolist() == [12]
    assert 0 < kept.words[0] < whole.words[0] == 30
    order = whole.ids[:30].tolist()
    places = [order.index(each) for each in kept.ids[: kept.words[0]].tolist()]
    assert places == sorted(places)


def test_the_order_does_not_depend_on_the_batch() -> None:
    """Ids, weights and the count of words are bit for bit those of the listing alone."""
    extractor = an_extractor()
    shelf = a_shelf() * 60
    together = extractor.tokens(shelf)
    ends = np.cumsum(together.counts)
    for row in (0, 1, 4, 5, len(shelf) - 6, len(shelf) - 2):
        alone = extractor.tokens([shelf[row]])
        own = slice(ends[row] - together.counts[row], ends[row])
        np.testing.assert_array_equal(together.ids[own], alone.ids)
        np.testing.assert_array_equal(together.weights[own], alone.weights)
        assert together.words[row] == alone.words[0]


def test_what_is_kept_of_tokens_is_counted_again() -> None:
    tokens = an_extractor().tokens([a_novel(), a_novel(authors=())])
    left = tokens.kept(tokens.families != NAME)
    assert left.words.tolist() == [5, 5]
    assert left.counts.sum() == len(left.ids) == len(left.weights) == len(left.families)
    assert left.ids[:5].tolist() == tokens.ids[tokens.listings == 1][:5].tolist()
    nothing = tokens.kept(np.zeros(len(tokens.ids), dtype=np.bool_))
    assert nothing.words.tolist() == nothing.counts.tolist() == [0, 0]


def test_leading_words_are_those_of_the_first_tokens() -> None:
    """Numbers from 1 on; 0 for what is no ordered word; no more than 16; none where there are no tokens."""
    counts = np.array([3, 0, 20])
    ids = np.array([5, 2, 9, *range(1, 21)])
    zeros = np.zeros(len(ids), dtype=np.int64)
    tokens = Tokens(ids=ids, weights=zeros.astype(np.float32), families=zeros, counts=counts, words=counts)
    numbers = np.zeros(30, dtype=np.int32)
    numbers[[2, 5, 16, 17]] = [1, 2, 3, 4]
    found = leading_words(tokens, numbers)
    assert found.dtype == np.int32
    assert found[0].tolist() == [2, 1] + [0] * 14
    assert not found[1].any()
    assert found[2].tolist() == [0, 1, 0, 0, 2] + [0] * 10 + [3]
    empty = tokens.kept(zeros > 0)
    assert not leading_words(empty, numbers).any()


def test_words_are_found_by_their_hashes_in_another_vocabulary() -> None:
    """One that has fewer rows; a word that has none there is none."""
    extractor = an_extractor()
    rows = np.array([3, 8, 20, 30])
    hashes = extractor.vocabulary.hashes[rows - 1]
    assert np.flatnonzero(word_of_row(hashes, extractor.vocabulary)).tolist() == rows.tolist()
    fewer = extractor.vocabulary.kept(np.array([2, 8, 30, 31]))
    assert word_of_row(hashes, fewer).tolist() == [0, 0, 2, 4, 0]


def a_branch(words: int) -> WordOrder:
    torch.manual_seed(0)
    branch = WordOrder(words)
    with torch.no_grad():
        branch.vectors[1:] = torch.randn(words, branch.vectors.shape[1])
    return branch.requires_grad_(False)


def test_order_matters_and_padding_does_not() -> None:
    """The row of no word may hold anything; words that are turned round say something else, also across a gap."""
    branch = a_branch(9)
    words = np.zeros((4, READ), dtype=np.int32)
    words[:3, :3] = [[1, 2, 3], [3, 2, 1], [1, 3, 2]]
    before = order_features(branch, words)
    assert before.shape == (4, 96)
    assert all((before[one] - before[other]).abs().max() > 1e-3 for one, other in ((0, 1), (0, 2), (0, 3)))
    branch.vectors[0] = 100.0
    assert torch.equal(order_features(branch, words), before)
    assert torch.equal(before[3], branch.of_no_words())
    assert len(order_features(branch, words[:0])) == 0
    torch.testing.assert_close(order_features(branch, words, rows_max=3), before)


def a_graph(extractor: FeatureExtractor) -> ServingGraph:
    """Of one task, untrained, that reads every word of the title as an ordered one."""
    task = Task(entry=TaskEntry(name="subject", kind="single", sets=("shop",), field="category"), labels=("a", "b", "c"))
    tokens = extractor.tokens(a_shelf())
    ordered = np.unique(tokens.ids[tokens.is_word])
    torch.manual_seed(0)
    # Wide enough for the exporter not to take its digits apart already.
    table = np.random.default_rng(0).normal(size=(extractor.vocabulary.rows, 128), scale=0.1).astype(np.float32)
    table[0] = 0
    shape = Shape(
        len(table), 128, 8, 8, cover_channels=1, heads={"subject": 3}, ordered=frozenset({"subject"}), ordered_words=len(ordered)
    )
    network = Network(shape, dropout=0.0).eval()
    branch = a_branch(len(ordered))
    with torch.no_grad():
        branch.vectors.copy_(branch.vectors.half())
    network.begin_order(branch.state_dict(), {"subject": torch.randn(3, 96)})
    words = word_of_row(extractor.vocabulary.hashes[ordered - 1], extractor.vocabulary)
    return ServingGraph(network, table, [task], {"subject": Calibration()}, {}, words=words).eval()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[ServingGraph, Path]:
    """The graph in torch and its ONNX file."""
    extractor, path = an_extractor(), tmp_path_factory.mktemp("served") / "graph.onnx"
    graph = a_graph(extractor)
    export_graph(graph, path, settings=extractor.settings, output_names=["subject", "embedding"])
    return graph, path


SHELF = [*a_shelf(), a_novel(title="A Tale"), a_novel(title=None, authors=(), publisher=None)]


def test_the_graph_reads_the_words_that_training_reads(served: tuple[ServingGraph, Path]) -> None:
    """Listings with fewer tokens than are read, with a description, in batches of any size; ONNX Runtime as torch."""
    extractor = an_extractor()
    graph, path = served
    session = open_session(path, threads=1)
    branch, words = graph.network.word_order, graph.get_buffer("words").numpy()
    assert branch is not None
    for listings in (SHELF, SHELF[1:2], SHELF[2:3], SHELF[-1:]):
        features = extractor.extract(listings, [None] * len(listings))
        assert difference(graph, session, features) < 1e-5
        with torch.no_grad():
            found = graph._of_order(branch, torch.from_numpy(features.token_ids))
        trained = order_features(branch, leading_words(extractor.tokens(listings), words))
        torch.testing.assert_close(found, trained)


def test_engines_read_words_in_order_in_fp32(served: tuple[ServingGraph, Path]) -> None:
    """The table's rows are found beside the words', and what reads the words is the bundle's to the bit's rounding."""
    _, path = served
    extractor = an_extractor()
    features = extractor.extract(SHELF, [None] * len(SHELF))
    feed = features.as_feed()
    expected = open_session(path, threads=1).run(None, feed)
    for name in ("token_ids", "token_weights"):
        feed[name] = np.pad(feed[name], ((0, 0), (0, 320 - feed[name].shape[1])))
    for precision, apart in (("fp32", 1e-5), ("fp16", 2e-3)):
        graph = engine_graph(path, precision=cast(Precision, precision), tokens=320)
        found = OnnxRuntimeRunner(graph.SerializeToString()).infer(feed)
        for own, name in zip(expected, ("subject", "embedding"), strict=True):
            np.testing.assert_allclose(found[name], own, atol=apart)
        types = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
        giving = ("network.word_order.", "network.deep.heads.", "network.deep.beside.")
        read = {name: types[name] for name in types if name.startswith(giving)}
        assert len(read) == 7
        assert set(read.values()) == {1}  # float32


def test_the_graph_reads_a_listing_that_lacks_a_field_as_training_reads_it_hidden() -> None:
    extractor = an_extractor()
    words = a_graph(extractor).get_buffer("words").numpy()
    listings = [*a_shelf(), a_novel(title=None, description="two cities, a tale of"), a_novel(title="Cities", publisher=None)]
    for fields in (["authors"], ["description"], ["authors", "description"], ["publisher", "year"], ["language", "format"]):
        missing: dict[str, Any] = {field: () if field == "authors" else None for field in fields}
        absent = extractor.tokens([dataclasses.replace(each, **missing) for each in listings])
        hidden = without(extractor.tokens(listings), fields)
        np.testing.assert_array_equal(leading_words(hidden, words), leading_words(absent, words))
        if not {"authors", "description"} & set(fields):
            np.testing.assert_array_equal(leading_words(hidden, words), leading_words(extractor.tokens(listings), words))
