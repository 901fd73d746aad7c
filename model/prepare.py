"""What a training begins with: the table, the network that reads it, and what each row's text sums to in the table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.batches import Examples, Order, block_sums
from model.checkpoint import Checkpoints
from model.cover_start import cover_features, learn_covers
from model.dataset import Labels, Rows, build_vocabulary, labels_of
from model.features import PAD_ID, FeatureExtractor, Tokens, Vocabulary
from model.linear_models import LinearModels, Recipe, linear_models
from model.linear_start import factored, importance
from model.network import Network, Shape
from model.table import expanded, quantised
from model.tasks import Task, TaskFile
from model.text_student import Student, shares_taught, student_of, taught
from model.text_teacher import weights_folder
from model.word_vectors import word_vectors


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the data as training sees it: `labels` in the order of the tasks."""

    rows: Rows
    tokens: Tokens
    labels: Sequence[Labels]


@dataclass(frozen=True, slots=True)
class Prepared:
    """The network at its start, the table as it is served (float32 [table rows, D]) and both parts' examples.

    Attributes:
        directions: float32 [K, D], which make a table of coefficients; biases: float32 [K], of the linear models.
    """

    network: Network
    table: NDArray[np.float32]
    train: Examples
    valid: Examples
    directions: NDArray[np.float32]
    biases: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Modelled:
    """Every gram that may get a row of the table, the training rows in these grams, and the linear models over them.

    Attributes:
        student: what joined them of what a language model knows; None where it teaches no task.
    """

    vocabulary: Vocabulary
    seen: Part
    models: LinearModels
    student: Student | None


def part_of(rows: Rows, extractor: FeatureExtractor, tasks: Sequence[Task]) -> Part:
    return Part(rows, extractor.tokens(rows.listings), [labels_of(task, rows) for task in tasks])


def modelled(
    task_file: TaskFile, tasks: Sequence[Task], train: Rows, *, folds: NDArray[np.int64],
    checkpoints: Checkpoints | None, progress: Callable[[str], None], recipes: Sequence[Recipe] | None = None,
    student: Student | None = None,
) -> Modelled:  # fmt: skip
    """Fits the linear models, and where a language model teaches a task its student.

    Args:
        recipes, student: of a fit before this one, which then need not be found again.
    """
    if (pupils := taught(tasks)) and student is None:
        weights_folder()  # a missing package ends a training at its start, not after its linear models
    settings, by_meaning = task_file.features, task_file.training.word_vectors
    vocabulary = build_vocabulary(train.listings, settings)
    seen = part_of(train, FeatureExtractor(settings, vocabulary), tasks)
    vectors = word_vectors(train.listings, vocabulary, settings, progress=progress) if by_meaning else None
    models = linear_models(
        tasks, seen.labels, seen.tokens, vectors=vectors, table_rows=vocabulary.rows, folds=folds, recipes=recipes,
        checkpoints=None if checkpoints is None else checkpoints.narrowed(word_vectors=by_meaning), progress=progress,
    )  # fmt: skip
    if pupils:
        if student is None:
            own = [each for task, each in zip(tasks, seen.labels, strict=True) if task in pupils]
            student = student_of(
                train, pupils, own, vocabulary, settings, vectors=vectors, made_up=task_file.training.made_up_titles,
                ordered_words=task_file.training.ordered_words, checkpoints=checkpoints, progress=progress,
            )  # fmt: skip
        columns, shares = shares_taught(tasks)
        models = models.joined(columns, shares[:, None] * student.weights(vocabulary, vectors), shares * student.biases)
    return Modelled(vocabulary, seen, models, student)


def pruned(
    whole: Modelled, tasks: Sequence[Task], *, rows_max: int, progress: Callable[[str], None]
) -> tuple[Vocabulary, LinearModels]:
    """The grams that the linear models of all tasks lean on most, where there are too many."""
    if whole.vocabulary.rows <= rows_max:
        return whole.vocabulary, whole.models
    moved = importance(whole.models, tasks, whole.seen.tokens)
    rows = np.sort(np.argsort(-moved[1:], kind="stable")[: rows_max - 1] + 1)
    share = moved[rows].sum() / moved.sum()
    progress(f"kept {rows_max} of {whole.vocabulary.rows} table rows, which make {share:.2%} of the linear models' decisions")
    return whole.vocabulary.kept(rows), whole.models.kept(np.concatenate([[PAD_ID], rows]))


def prepared(
    task_file: TaskFile, tasks: Sequence[Task], models: LinearModels, *, train: Part, valid: Part, folds: NDArray[np.int64],
    seed: int, rows: NDArray[np.int64] | None = None, checkpoints: Checkpoints | None = None,
    ordered: tuple[Student, Vocabulary] | None = None,
) -> Prepared:  # fmt: skip
    """Factors the linear models, lets the cover branch learn by itself, and takes over what reads words in order.

    Training rows are read through their own fold's table, `valid` through the one that ships.

    Args:
        rows: the training rows whose covers are learned from; by default all.
        checkpoints: where what was learned of covers is kept.
        ordered: the student whose branch reads words in order, and the vocabulary that the tokens are of; None for no branch.
    """
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
        stacked=frozenset(task.name for task in tasks if task.entry.kind == "regression" and task.edges),
        ordered=frozenset(task.name for task in taught(tasks)),
        ordered_words=len(ordered[0].ordered) if ordered else 0,
        broad=frozenset(task.name for task in tasks if task.entry.broad),
        broad_width=settings.broad_width,
    )
    network = Network(shape, dropout=settings.dropout)
    with torch.no_grad():
        network.wide.weight.copy_(torch.from_numpy(start.head_weight))
        network.wide.bias.copy_(torch.from_numpy(start.head_bias))
    rows = np.arange(len(train.rows)) if rows is None else rows
    learn_covers(
        network, train.rows, train.labels, tasks, epochs=settings.cover_epochs, teacher=settings.cover_teacher, seed=seed,
        index=rows, checkpoints=checkpoints,
    )  # fmt: skip
    words = None
    if ordered and ordered[0].order is not None:
        words = ordered[0].word_of_row(ordered[1])
        _, shares = shares_taught(tasks)
        by_order = torch.split(torch.from_numpy(shares[:, None] * ordered[0].by_order), [task.width for task in taught(tasks)])
        network.begin_order(ordered[0].order, {task.name: own for task, own in zip(taught(tasks), by_order, strict=True)})
    network.round_as_served(branches_only=True)
    unseen = np.zeros(len(valid.rows), dtype=np.int64)
    examples = _examples(network, train, block_sums(train.tokens, start.fold_tables, folds), words)
    present = {task.name: torch.from_numpy(own.present) for task, own in zip(tasks, train.labels, strict=True)}
    network.begin_stack(examples.sums.sum(dim=1, dtype=torch.float32), present)
    return Prepared(
        network,
        table,
        train=examples,
        valid=_examples(network, valid, block_sums(valid.tokens, table[None], unseen), words),
        directions=start.directions,
        biases=start.head_bias,
    )


def _examples(network: Network, part: Part, sums: Tensor, words: NDArray[np.int32] | None) -> Examples:
    """The part as the network reads it; `words` int32 [table rows] as of `Student.word_of_row`."""
    order = None if network.word_order is None or words is None else Order.of(network.word_order, part.tokens, words)
    return Examples.of(part.rows, sums, part.labels, covers=cover_features(network, part.rows.covers), order=order)


def as_served(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """The table after rounding: calibration and the agreement with the graph must see what is served."""
    return expanded(*quantised(table))
