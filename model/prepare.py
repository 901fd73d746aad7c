"""What a training begins with: the table, the network that reads it, and what each row's text sums to in the table."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.batches import Examples, block_sums
from model.dataset import Labels, Rows
from model.export import quantised
from model.features import Tokens
from model.linear_start import LinearModels, factored
from model.network import Network, Shape
from model.tasks import Task, TaskFile


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the data as training sees it: `labels` in the order of the tasks."""

    rows: Rows
    tokens: Tokens
    labels: Sequence[Labels]


@dataclass(frozen=True, slots=True)
class Prepared:
    """The network at its start, the table as it is served (float32 [table rows, D]) and both parts' examples."""

    network: Network
    table: NDArray[np.float32]
    train: Examples
    valid: Examples


def prepared(
    task_file: TaskFile, tasks: Sequence[Task], models: LinearModels, *, train: Part, valid: Part, folds: NDArray[np.int64]
) -> Prepared:
    """Factors the linear models. Training rows are read through their own fold's table, `valid` through the one that ships."""
    settings = task_file.training
    start = factored(models, tasks, train.tokens, width=settings.table_width)
    table = as_served(start.table)
    shape = Shape(
        table_rows=len(table),
        table_width=settings.table_width,
        hidden_width=settings.hidden_width,
        embedding_width=settings.embedding_width,
        cover_channels=task_file.features.cover_channels,
        heads={task.name: task.width for task in tasks},
        read_only=frozenset(task.name for task in tasks if not task.entry.shapes_representation),
    )
    network = Network(shape, dropout=settings.dropout)
    with torch.no_grad():
        network.wide.weight.copy_(torch.from_numpy(start.head_weight))
        network.wide.bias.copy_(torch.from_numpy(start.head_bias))
    unseen = np.zeros(len(valid.rows), dtype=np.int64)
    return Prepared(
        network,
        table,
        train=Examples.of(train.rows, block_sums(train.tokens, start.fold_tables, folds), train.labels),
        valid=Examples.of(valid.rows, block_sums(valid.tokens, table[None], unseen), valid.labels),
    )


def as_served(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """The table after rounding to int8: calibration and the agreement with the graph must see what is served."""
    rows, scales = quantised(table)
    return rows.astype(np.float32) * scales[:, None]
