"""What training reads of the rows: sums of their tokens, fields hidden, labels that do not stand among the inputs."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model.dataset import Rows, build_vocabulary, labels_of, read_rows
from model.features import FeatureExtractor, Features, FeatureSettings
from model.tasks import Task, load_task_file, resolve

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from model.batches import (  # noqa: E402 - after the check that torch is there
    Examples,
    batch_of,
    batches_of_one_set,
    block_sums,
    field_hidden,
    randomly_hidden,
    targets_of,
)
from model.evaluate import features_of  # noqa: E402

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
    np.testing.assert_allclose(text, np.where(present[:, None], without, shown), atol=0.02)


def test_hiding_a_field_gives_what_a_listing_without_it_gives(shop: Path, task_path: Path) -> None:
    """Training's hidden fields and serving's missing fields sum to the same, to the precision of float16."""
    examples, rows, extractor, table, _ = sums_and_features(shop, task_path)
    index = np.arange(20)
    for field in (None, "publisher", "authors", "language", "currency"):
        batch = batch_of(examples, index, hidden=field_hidden(field, rows=20))
        served = summed(features_of(extractor, rows, index, hidden=field), table)
        np.testing.assert_allclose(batch.text.numpy(), served, atol=0.02)


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


def test_batches_hold_rows_of_one_set_and_every_row_once() -> None:
    """So that all rows of a batch have the labels of the same tasks."""
    sets = np.array([0, 1] * 50 + [1] * 30)
    rows = np.arange(130)[5:]
    batches = batches_of_one_set(rows, sets[rows], rows_max=16, random=np.random.default_rng(0))
    assert sorted(np.concatenate(batches).tolist()) == rows.tolist()
    assert all(len(np.unique(sets[batch])) == 1 and len(batch) <= 16 for batch in batches)
