"""Batches for training: rows picked from the flat tokens, fields hidden at random, covers only where there are any.

Hiding a field removes the tokens of its family, which is what the extractor gives for a listing without the field (weights
are scaled within a family). A task whose label is read from an input field counts only in rows where that field is hidden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.dataset import FAMILY_OF_FIELD, Labels, Rows
from model.features import Tokens
from model.losses import Target
from model.network import Network, weighted_sum
from model.tasks import Task
from model.text import FAMILIES


@dataclass(frozen=True, slots=True)
class Examples:
    """All rows of a part: flat tokens, covers, and the labels of each task in the order of the tasks."""

    tokens: Tokens
    starts: NDArray[np.int64]
    covers: Tensor
    cover_of: NDArray[np.int64]
    labels: tuple[Labels, ...]
    sets: NDArray[np.int64]  # the number of each row's set

    @classmethod
    def of(cls, rows: Rows, tokens: Tokens, labels: Sequence[Labels]) -> "Examples":
        starts = np.cumsum(tokens.counts) - tokens.counts
        _, sets = np.unique(rows.sets, return_inverse=True)
        covers = torch.from_numpy(rows.covers)
        return cls(tokens=tokens, starts=starts, covers=covers, cover_of=rows.cover_of, labels=tuple(labels), sets=sets)

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class Batch:
    """What the network reads of some rows.

    Attributes:
        token_ids: int64 [tokens]; token_weights: float32 [tokens]; offsets: int64 [B].
        covers: uint8 [covers, channels, height, width] and cover_rows: int64 [covers], the row each belongs to.
    """

    token_ids: Tensor
    token_weights: Tensor
    offsets: Tensor
    covers: Tensor
    cover_rows: Tensor


def batch_of(
    examples: Examples,
    index: NDArray[np.int64],
    *,
    hidden: NDArray[np.bool_],
    cover_shown: NDArray[np.bool_] | None = None,
    dropout: float = 0.0,
    random: np.random.Generator | None = None,
) -> Batch:
    """Assembles the rows at `index`.

    Args:
        hidden: bool [B, families], the families whose tokens are left out of each row.
        cover_shown: bool [B]; by default every cover is.
        dropout: the share of tokens left out at random; the others are scaled up.
    """
    counts = examples.tokens.counts[index]
    row = np.repeat(np.arange(len(index)), counts)
    within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = np.repeat(examples.starts[index], counts) + within
    keep = ~hidden[row, examples.tokens.families[at]]
    if random is not None and dropout > 0:
        keep &= random.random(len(keep), dtype=np.float32) >= dropout
    at, row = at[keep], row[keep]
    kept = np.bincount(row, minlength=len(index))
    cover_of = examples.cover_of[index]
    with_cover = np.flatnonzero((cover_of >= 0) if cover_shown is None else (cover_of >= 0) & cover_shown)
    return Batch(
        token_ids=torch.from_numpy(examples.tokens.ids[at]),
        token_weights=torch.from_numpy(examples.tokens.weights[at] / np.float32(1.0 - dropout)),
        offsets=torch.from_numpy(np.cumsum(kept) - kept),
        covers=examples.covers[torch.from_numpy(cover_of[with_cover])],
        cover_rows=torch.from_numpy(with_cover),
    )


def run(network: Network, table: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The network on a batch: logits [B, K] and the embedding [B, E]."""
    text = weighted_sum(table, batch.token_ids, batch.token_weights, batch.offsets)  # [B, D]
    width = network.cover_projection.in_features
    features, present = torch.zeros(len(text), width), torch.zeros(len(text), 1)
    if len(batch.cover_rows) > (1 if network.training else 0):  # batch normalisation cannot learn from one
        features = features.index_copy(0, batch.cover_rows, network.cover_branch(batch.covers))  # [B, 96]
        present = present.index_fill(0, batch.cover_rows, 1.0)
    logits, embedding = network(text, features, present)
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


def randomly_hidden(probabilities: Mapping[str, float], *, rows: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Draws which fields are hidden in each row: bool [rows, families]."""
    hidden = np.zeros((rows, len(FAMILIES)), dtype=np.bool_)
    for field, family in FAMILY_OF_FIELD.items():
        hidden[:, family] = random.random(rows) < probabilities.get(field, 0.0)
    return hidden


def field_hidden(field: str | None, *, rows: int) -> NDArray[np.bool_]:
    """One field hidden in every row, or none: bool [rows, families]."""
    hidden = np.zeros((rows, len(FAMILIES)), dtype=np.bool_)
    if field is not None:
        hidden[:, FAMILY_OF_FIELD[field]] = True
    return hidden


def targets_of(
    examples: Examples, tasks: Sequence[Task], index: NDArray[np.int64], *, hidden: NDArray[np.bool_]
) -> dict[str, Target]:
    """The labels that count in this batch: none where the field it is read from is among the inputs."""
    targets = {}
    for task, labels in zip(tasks, examples.labels, strict=True):
        present = labels.present[index]
        if task.hidden_input is not None:
            present = present & hidden[:, FAMILY_OF_FIELD[task.hidden_input]]
        targets[task.name] = Target(
            values=torch.from_numpy(labels.values[index]),
            present=torch.from_numpy(present.astype(np.float32)),
            taught=None if labels.taught is None else torch.from_numpy(labels.taught[index].astype(np.float32)),
        )
    return targets
