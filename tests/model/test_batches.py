"""What training reads of the rows: sums of their tokens, fields hidden, labels that do not stand among the inputs."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.dataset import Rows, build_vocabulary, labels_of, read_rows
from model.features import FeatureExtractor, Features, FeatureSettings
from model.tasks import Task, load_task_file, resolve

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from model.batches import (  # noqa: E402 - after the check that torch is there
    BLOCK_OF_FIELD,
    BLOCKS,
    Examples,
    Order,
    batch_of,
    batches_of_one_set,
    block_sums,
    field_hidden,
    randomly_hidden,
    targets_of,
)
from model.evaluate import features_of  # noqa: E402
from model.word_order import WordOrder, leading_words, order_features  # noqa: E402

pytestmark = pytest.mark.torch


def sums_and_features(shop: Path, task_path: Path) -> tuple[Examples, Rows, FeatureExtractor, NDArray[np.float32], list[Task]]:
    """The shop's validation rows as training reads them and as serving does, through a made-up table."""
    rows = read_rows([shop], part="valid", settings=FeatureSettings())
    tasks = [resolve(entry, rows.by_set()) for entry in load_task_file(task_path).task]
    extractor = FeatureExtractor(FeatureSettings(), build_vocabulary(rows.listings, FeatureSettings()))
    table = np.random.default_rng(0).normal(size=(extractor.vocabulary.rows, 12)).astype(np.float32)
    table[0] = 0
    sums = block_sums(extractor.tokens(rows.listings), table[None], np.zeros(len(rows), dtype=np.int64))
    return (
        Examples.of(rows, sums, [labels_of(task, rows) for task in tasks], covers=torch.zeros(len(rows.covers), 96)),
        rows,
        extractor,
        table,
        tasks,
    )


def summed(features: Features, table: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the served graph sums up: float32 [B, D]."""
    return np.einsum("bt,btd->bd", features.token_weights, table[features.token_ids])


def test_a_label_never_stands_among_the_inputs(shop: Path, task_path: Path) -> None:
    """Where a row's publisher counts as a label, its text is that of the listing without one; where it is an input, no label."""
    examples, rows, extractor, table, tasks = sums_and_features(shop, task_path)
    index = np.arange(len(examples))
    hidden = randomly_hidden({"publisher": 0.5}, rows=len(index), random=np.random.default_rng(0))
    text = batch_of(examples, index, hidden=hidden).text.numpy()
    present = targets_of(examples, tasks, index, hidden=hidden)["publisher"].present.numpy() > 0
    shown, without = (summed(features_of(extractor, rows, index, hidden=field), table) for field in (None, "publisher"))
    assert 0.3 < present.mean() < 0.7
    assert (np.abs(shown - without).max(axis=1) > 0.05).all()
    np.testing.assert_allclose(text, np.where(present[:, None], without, shown), atol=1 / 32 + 0.02)
    np.testing.assert_array_equal(text * 16, np.rint(text * 16))


def test_hiding_a_field_gives_what_a_listing_without_it_gives(shop: Path, task_path: Path) -> None:
    """Training's hidden fields and serving's missing fields sum to the same, to the precision of float16 and the nearest step."""
    examples, rows, extractor, table, _ = sums_and_features(shop, task_path)
    index = np.arange(20)
    for field in (None, "publisher", "authors", "language", "currency"):
        batch = batch_of(examples, index, hidden=field_hidden(field, rows=20))
        served = summed(features_of(extractor, rows, index, hidden=field), table)
        np.testing.assert_allclose(batch.text.numpy(), served, atol=1 / 32 + 0.02)


def test_some_rows_say_nothing_at_all() -> None:
    """The title is hidden only together with everything else."""
    hidden = randomly_hidden({"authors": 0.5}, rows=4000, random=np.random.default_rng(0), all_text=0.1)
    nothing = hidden.all(axis=1)
    assert 0.07 < nothing.mean() < 0.13
    np.testing.assert_array_equal(hidden[:, 0], nothing)
    assert 0.4 < hidden[~nothing][:, 1].mean() < 0.6


def test_each_row_is_read_through_its_own_table(shop: Path, task_path: Path) -> None:
    """A row of the second fold sums rows of the second table."""
    _, rows, extractor, table, _ = sums_and_features(shop, task_path)
    tokens = extractor.tokens(rows.listings)
    table_of = np.arange(len(rows)) % 2
    mixed = block_sums(tokens, np.stack([table, -table]), table_of)
    plain = block_sums(tokens, table[None], np.zeros_like(table_of))
    assert torch.equal(mixed[0::2], plain[0::2])
    assert torch.equal(mixed[1::2], -plain[1::2])


def test_words_in_order_are_those_of_what_is_shown(shop: Path, task_path: Path) -> None:
    """With authors, without them as serving reads a listing that has none, and of no words where all text is hidden."""
    examples, rows, extractor, _, _ = sums_and_features(shop, task_path)
    tokens = extractor.tokens(rows.listings)
    words = np.zeros(extractor.vocabulary.rows, dtype=np.int32)
    ordered = np.unique(tokens.ids[tokens.is_word])
    words[ordered] = 1 + np.arange(len(ordered))
    branch = WordOrder(len(ordered)).requires_grad_(False)
    torch.nn.init.normal_(branch.vectors)
    examples = dataclasses.replace(examples, order=Order.of(branch, tokens, words))
    index = np.arange(30)
    found = {}
    for field in (None, "authors", "description", "publisher"):
        order = batch_of(examples, index, hidden=field_hidden(field, rows=30)).order
        assert order is not None
        missing: dict[str, Any] = {} if field is None else {field: () if field == "authors" else None}
        served = extractor.tokens([dataclasses.replace(rows.listings[row], **missing) for row in index])
        np.testing.assert_allclose(order, order_features(branch, leading_words(served, words)), atol=2e-3)
        found[field] = order
    assert (found[None] != found["authors"]).any(dim=1).all()
    assert torch.equal(found[None], found["publisher"])
    hidden = np.zeros((30, BLOCKS), dtype=np.bool_)
    hidden[:10] = True
    hidden[10:20, BLOCK_OF_FIELD["authors"]] = True
    mixed = batch_of(examples, index, hidden=hidden).order
    assert mixed is not None
    assert torch.equal(mixed[:10], branch.of_no_words().repeat(10, 1))
    assert torch.equal(mixed[10:20], found["authors"][10:20])
    assert torch.equal(mixed[20:], found[None][20:])


def test_without_the_branch_no_words_are_read(shop: Path, task_path: Path) -> None:
    examples, *_ = sums_and_features(shop, task_path)
    assert batch_of(examples, np.arange(5), hidden=field_hidden(None, rows=5)).order is None


def test_batches_hold_rows_of_one_set_and_every_row_once() -> None:
    """So that all rows of a batch have the labels of the same tasks."""
    sets = np.array([0, 1] * 50 + [1] * 30)
    rows = np.arange(130)[5:]
    batches = batches_of_one_set(rows, sets[rows], rows_max=16, random=np.random.default_rng(0))
    assert sorted(np.concatenate(batches).tolist()) == rows.tolist()
    assert all(len(np.unique(sets[batch])) == 1 and len(batch) <= 16 for batch in batches)
