"""Batches for training: what each row's text sums to in the table, fields hidden at random, covers only where there are any.

The table does not change while the network learns, so a row's sum is made once, one for each field that may be hidden: a
block. A field's block is what its tokens change, so leaving it out is what the extractor gives for a listing without the
field: without authors the title's words grow, too, and no two fields change each other. What is read of the words in order is
no such sum: it is made once for each set of hidden fields that changes which tokens are the first. A task whose label is read
from an input field counts only in rows where that field is hidden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.dataset import Labels, Rows
from model.features import Tokens
from model.losses import Target
from model.network import Network
from model.steps import MIDDLE, in_steps
from model.tasks import Task
from model.text import FAMILIES_OF_FIELD
from model.text_matrix import text_matrix, without
from model.word_order import WordOrder, leading_words, order_features

# The first block is the title's; then one for each field.
BLOCK_OF_FIELD = {field: place for place, field in enumerate(FAMILIES_OF_FIELD, start=1)}
BLOCKS = 1 + len(BLOCK_OF_FIELD)
# The fields that may stand among the first tokens; the number of a set of them has a bit for each.
_IN_ORDER = ("authors", "description")


@dataclass(frozen=True, slots=True)
class Order:
    """What the branch for words in order sees.

    Attributes:
        features: float16 [rows, 4, 96], where authors and description are shown, authors or description hidden, both hidden.
        of_none: float32 [96], where the title is hidden, too.
    """

    features: Tensor
    of_none: Tensor

    @classmethod
    def of(cls, branch: WordOrder, tokens: Tokens, word_of_row: NDArray[np.int32]) -> "Order":
        """What `branch` sees in these listings, through a table whose rows are these words."""
        shown = leading_words(tokens, word_of_row)
        whole = order_features(branch, shown).half()  # [rows, 96]
        features = whole[:, None].repeat(1, 2 ** len(_IN_ORDER), 1)
        for number in range(1, features.shape[1]):
            fields = [field for bit, field in enumerate(_IN_ORDER) if number >> bit & 1]
            words = leading_words(without(tokens, fields), word_of_row)
            other = np.flatnonzero((words != shown).any(axis=1))
            features[torch.from_numpy(other), number] = order_features(branch, words[other]).half()
        with torch.no_grad():
            return cls(features, branch.of_no_words())

    def batch(self, index: NDArray[np.int64], hidden: NDArray[np.bool_]) -> Tensor:
        """float32 [B, 96] of the rows at `index`, the blocks bool [B, BLOCKS] hidden."""
        number = sum(hidden[:, BLOCK_OF_FIELD[field]].astype(np.int64) << bit for bit, field in enumerate(_IN_ORDER))
        found = self.features[torch.from_numpy(index), torch.from_numpy(np.asarray(number))].float()  # [B, 96]
        return torch.where(torch.from_numpy(hidden[:, :1]), self.of_none, found)


@dataclass(frozen=True, slots=True)
class Examples:
    """All rows of a part.

    Attributes:
        sums: float16 [rows, BLOCKS, D], what the tokens of each block sum to in the table.
        covers: float32 [covers, 96], what the cover branch sees, and `cover_of` int64 [rows], position in it or -1.
        labels: of each task, in the order of the tasks.
        sets: int64 [rows], the number of each row's set.
        order: of the words in order, None where the network has no such branch.
    """

    sums: Tensor
    covers: Tensor
    cover_of: NDArray[np.int64]
    labels: tuple[Labels, ...]
    sets: NDArray[np.int64]
    order: Order | None = None

    @classmethod
    def of(cls, rows: Rows, sums: Tensor, labels: Sequence[Labels], *, covers: Tensor, order: Order | None = None) -> "Examples":
        _, sets = np.unique(rows.sets, return_inverse=True)
        return cls(sums=sums, covers=covers, cover_of=rows.cover_of, labels=tuple(labels), sets=sets, order=order)

    def __len__(self) -> int:
        return len(self.sums)


def block_sums(tokens: Tokens, tables: NDArray[np.float32], table_of: NDArray[np.int64]) -> Tensor:
    """What each row's tokens sum to, block by block: float16 [rows, BLOCKS, D].

    Args:
        tables: float32 [tables, table rows, D]; table_of: int64 [rows], through which of them each row is read.
    """
    table_rows = tables.shape[1]
    sums = torch.zeros(len(tokens.counts), BLOCKS, tables.shape[2], dtype=torch.float16)
    whole = text_matrix(tokens, table_rows=table_rows, hidden=None)
    for block, field in enumerate([None, *BLOCK_OF_FIELD]):
        if field is None:
            matrix = text_matrix(without(tokens, BLOCK_OF_FIELD), table_rows=table_rows, hidden=None)
        else:
            matrix = whole - text_matrix(tokens, table_rows=table_rows, hidden=field)
        filled = np.diff(matrix.indptr) > 0
        for place, table in enumerate(tables):
            own = np.flatnonzero(filled & (table_of == place))
            sums[torch.from_numpy(own), block] = torch.from_numpy((matrix[own].astype(np.float32) @ table).astype(np.float16))
    return sums


@dataclass(frozen=True, slots=True)
class Batch:
    """What the network reads of some rows.

    Attributes:
        text: float32 [B, D], in steps as it is served.
        covers: float32 [covers, 96] and cover_rows: int64 [covers], the row each belongs to.
        order: float32 [B, 96], or None where the network does not read words in order.
    """

    text: Tensor
    covers: Tensor
    cover_rows: Tensor
    order: Tensor | None


def batch_of(
    examples: Examples,
    index: NDArray[np.int64],
    *,
    hidden: NDArray[np.bool_],
    cover_shown: NDArray[np.bool_] | None = None,
) -> Batch:
    """Assembles the rows at `index`.

    Args:
        hidden: bool [B, BLOCKS], the blocks that are left out of each row.
        cover_shown: bool [B]; by default every cover is.
    """
    shown = torch.from_numpy(~hidden).float()
    cover_of = examples.cover_of[index]
    with_cover = np.flatnonzero((cover_of >= 0) if cover_shown is None else (cover_of >= 0) & cover_shown)
    return Batch(
        text=in_steps(torch.einsum("bkd,bk->bd", examples.sums[torch.from_numpy(index)].float(), shown), middle=MIDDLE),  # [B, D]
        covers=examples.covers[torch.from_numpy(cover_of[with_cover])],
        cover_rows=torch.from_numpy(with_cover),
        order=None if examples.order is None else examples.order.batch(index, hidden),
    )


def run(network: Network, batch: Batch) -> tuple[Tensor, Tensor]:
    """The network on a batch: logits [B, K] and the embedding [B, E]."""
    features = torch.cat([batch.covers, torch.zeros(1, network.cover_projection.in_features)])  # [C, 96], the last of no row
    cover_of = torch.full((len(batch.text),), len(batch.covers))  # [B]
    cover_of[batch.cover_rows] = torch.arange(len(batch.covers))
    present = torch.zeros(len(batch.text), 1).index_fill(0, batch.cover_rows, 1.0)  # [B, 1]
    logits, embedding = network(batch.text, features, cover_of, present, batch.order)
    return logits, embedding


def batches_of_one_set(
    rows: NDArray[np.int64], sets: NDArray[np.int64], *, rows_max: int, random: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Every row once, in batches of nearly equal size that each hold rows of one set, in random order.

    All rows of such a batch have the labels of the same tasks, so that a task's gradient comes from a full batch.
    """
    batches: list[NDArray[np.int64]] = []
    for each in np.unique(sets):
        own = random.permutation(rows[sets == each])
        batches += np.array_split(own, -(-len(own) // rows_max))
    return [batches[place] for place in random.permutation(len(batches))]


def randomly_hidden(
    probabilities: Mapping[str, float], *, rows: int, random: np.random.Generator, all_text: float = 0.0
) -> NDArray[np.bool_]:
    """Draws which fields are hidden in each row, and with the probability `all_text` every one: bool [rows, BLOCKS]."""
    hidden = np.zeros((rows, BLOCKS), dtype=np.bool_)
    for field, block in BLOCK_OF_FIELD.items():
        hidden[:, block] = random.random(rows) < probabilities.get(field, 0.0)
    hidden[random.random(rows) < all_text] = True
    return hidden


def field_hidden(field: str | None, *, rows: int) -> NDArray[np.bool_]:
    """One field hidden in every row, or none: bool [rows, BLOCKS]."""
    hidden = np.zeros((rows, BLOCKS), dtype=np.bool_)
    if field is not None:
        hidden[:, BLOCK_OF_FIELD[field]] = True
    return hidden


def targets_of(
    examples: Examples, tasks: Sequence[Task], index: NDArray[np.int64], *, hidden: NDArray[np.bool_]
) -> dict[str, Target]:
    """The labels that count in this batch: none where the field it is read from is among the inputs."""
    targets = {}
    for task, labels in zip(tasks, examples.labels, strict=True):
        present = labels.present[index]
        if task.hidden_input is not None:
            present = present & hidden[:, BLOCK_OF_FIELD[task.hidden_input]]
        targets[task.name] = Target.of(labels.values[index], present)
    return targets
