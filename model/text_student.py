"""What a language model knows of titles, as far as linear models can say it: a third part of the network's start.

The teacher is asked about titles other than those it has learned from: made-up ones, and those of other sets. Were it asked
about the training rows themselves, each row's own label would come back to it through the student, which is one for all folds;
so, too little of it does to show, and the network learns on top of what it will find of new titles. The student, like the
other linear models, is one row of coefficients a n-gram: of its own for those that the titles have, and through what its word
means (word_vectors.py): of these, nothing is added to what is served. What the order of the words tells beyond them, a small
branch of the network learns after the student (word_order.py).
Source: Hinton et al., arXiv:1503.02531, for learning from probabilities.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional

from model.checkpoint import Checkpoints
from model.dataset import Labels, Rows
from model.features import FeatureExtractor, FeatureSettings, Tokens, Vocabulary
from model.listing import Listing
from model.made_up import made_up_listings
from model.progress import progress_bar
from model.tasks import Task
from model.text import CJK_CLASS
from model.text_matrix import text_matrix
from model.text_teacher import Teacher, answers, tuned
from model.word_order import FEATURES, VECTOR_WIDTH, WordOrder, leading_words, word_of_row

_PASSES = 4
_BATCH = 512
_GRAM_RATE, _MEANING_RATE, _WEIGHT_DECAY = 1e-2, 2e-3, 1e-2
_MULTI_SCALE = 0.3
_MADE_UP_PER_LISTING = 10
_SCALED_BY = 10_000  # titles
_ORDER_PASSES, _ORDER_RATE = 8, 2e-3
_VECTOR_SIZE = 0.3  # of a word's numbers, as learning begins
_SEED = 5
_BRANCH = "branch."  # before the names of a branch's own state
_CJK = re.compile(f"[{CJK_CLASS}]")


@dataclass(frozen=True, slots=True)
class Student:
    """Linear models of the taught tasks' columns side by side, as logits.

    Attributes:
        vocabulary: whose rows the n-grams' coefficients are of.
        by_gram: float32 [K, table rows]; by_meaning: float32 [K, W], of the words' vectors; biases: float32 [K].
        ordered: int64 [words], the vocabulary's rows of the words that are read in order, ascending.
        order: the state of the `WordOrder` that reads them; None where there are none.
        by_order: float32 [K, 96], what its features add to the logits.
    """

    vocabulary: Vocabulary
    by_gram: NDArray[np.float32]
    by_meaning: NDArray[np.float32]
    biases: NDArray[np.float32]
    ordered: NDArray[np.int64]
    order: dict[str, Tensor] | None
    by_order: NDArray[np.float32]

    def word_of_row(self, vocabulary: Vocabulary) -> NDArray[np.int32]:
        """Which of the ordered words each row of a vocabulary's table is, int32 [table rows], from 1 on; 0 is none of them."""
        return word_of_row(self.vocabulary.hashes[self.ordered - 1], vocabulary)  # row 0 is padding

    def weights(self, vocabulary: Vocabulary, vectors: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Coefficients float32 [K, table rows] for a vocabulary: of an n-gram that is new there only what its word means."""
        known, rows = self.vocabulary.find(vocabulary.hashes)
        weights = np.zeros((len(self.biases), vocabulary.rows), dtype=np.float32)
        weights[:, known + 1] = self.by_gram[:, rows]  # row 0 is padding
        return weights if vectors is None else weights + self.by_meaning @ vectors.T


def taught(tasks: Sequence[Task]) -> list[Task]:
    """The tasks that a language model teaches."""
    return [task for task in tasks if task.entry.taught_share > 0]


def shares_taught(tasks: Sequence[Task]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The columns of all tasks that a language model teaches, int64 [K], and the share of what it teaches each takes."""
    shares = np.concatenate([np.full(task.width, task.entry.taught_share, dtype=np.float32) for task in tasks])
    columns = np.flatnonzero(shares)
    return columns, shares[columns]


def student_of(
    train: Rows, tasks: Sequence[Task], labels: Sequence[Labels], vocabulary: Vocabulary, settings: FeatureSettings, *,
    vectors: NDArray[np.float32] | None, made_up: int, ordered_words: int, checkpoints: Checkpoints | None,
    progress: Callable[[str], None],
) -> Student:  # fmt: skip
    """Tunes the teacher on the labels of these tasks, asks it, and fits the student to what it answers.

    Args:
        made_up: so many titles are made up for the teacher to be asked about.
        ordered_words: at most so many words are read in order.
        checkpoints: where teacher, answers and student are kept, each as soon as it is there.

    Raises:
        TaskFileError: the teacher's package is not installed.
    """
    asked = {
        "taught": [[task.entry.model_dump(mode="json", include={"name", "kind", "sets", "field"}), task.labels] for task in tasks]
    }
    kept = None if checkpoints is None else checkpoints.narrowed(**asked, made_up=made_up, word_vectors=vectors is not None)

    def once(name: str, make: Callable[[], dict[str, Tensor]], **more: int) -> dict[str, Tensor]:
        own = None if kept is None else kept.narrowed(**more)
        state = None if own is None else own.load(name)
        if state is None:
            state = make()
            if own is not None:
                own.save(name, state)
        return state

    def answered(texts: Sequence[Listing]) -> dict[str, Tensor]:
        progress(f"a language model learns {', '.join(task.name for task in tasks)}, then answers for {len(texts)} titles")
        teacher = Teacher(sum(task.width for task in tasks))
        teacher.load_state_dict(once("text-teacher", lambda: tuned(train.listings, tasks, labels).state_dict()))
        return {"logits": torch.from_numpy(answers(teacher.eval(), texts))}

    @cache
    def read() -> tuple[Tokens, csr_matrix, Tensor]:
        texts = _asked_about(train, np.any([own.present for own in labels], axis=0), made_up=made_up)
        logits = once("text-answers", lambda: answered(texts))["logits"]
        tokens = FeatureExtractor(settings, vocabulary).tokens(texts)
        return tokens, text_matrix(tokens, table_rows=vocabulary.rows, hidden=None).astype(np.float32), logits

    def learned() -> dict[str, Tensor]:
        _, matrix, logits = read()
        return _fitted(matrix, logits, tasks, vectors)

    def learned_order() -> dict[str, Tensor]:
        tokens, matrix, logits = read()
        return _order_fitted(tokens, _said(linear, matrix, vectors), logits, tasks, vectors, words_max=ordered_words)

    with torch.random.fork_rng(devices=[]):  # what training draws must not depend on what was asked or kept
        linear = {name: tensor.numpy() for name, tensor in once("text-student", learned).items()}
        state = once("text-order", learned_order, ordered_words=ordered_words)
    order = {name.removeprefix(_BRANCH): tensor for name, tensor in state.items() if name.startswith(_BRANCH)}
    return Student(
        vocabulary, by_gram=linear["by_gram"], by_meaning=linear["by_meaning"], biases=linear["biases"],
        ordered=state["ordered"].numpy(), order=order or None, by_order=state["by_order"].numpy(),
    )  # fmt: skip


def _asked_about(train: Rows, labelled: NDArray[np.bool_], *, made_up: int) -> list[Listing]:
    """Titles that the teacher has not learned from and can read, each with and without its authors, and made-up ones."""
    pairs = [Listing(listing_id=each.listing_id, title=each.title, authors=each.authors) for each in train.listings]
    known = [each for each, has_label in zip(pairs, labelled, strict=True) if has_label]
    others = [
        each for each, has_label in zip(pairs, labelled, strict=True) if not has_label and not _CJK.search(each.title or "")
    ]
    bare = [Listing(listing_id=each.listing_id, title=each.title) for each in others]
    count = min(made_up, _MADE_UP_PER_LISTING * len(known))  # a quick try of few rows shall be quick
    return made_up_listings(known, others, count=count, seed=_SEED) + bare + others


def _fitted(matrix: csr_matrix, logits: Tensor, tasks: Sequence[Task], vectors: NDArray[np.float32] | None) -> dict[str, Tensor]:
    """What `Student` holds, fitted to the teacher's probabilities.

    Args:
        matrix: float32 [titles, table rows]; logits: float16 [titles, K], the teacher's.
    """
    random = np.random.default_rng(_SEED)
    meanings = np.zeros((matrix.shape[1], 0), dtype=np.float32) if vectors is None else vectors
    sample = matrix[random.permutation(matrix.shape[0])[:_SCALED_BY]] @ meanings
    scale = float(sample.std(axis=0).mean()) if sample.size else 1.0
    grams = nn.EmbeddingBag(matrix.shape[1], logits.shape[1], mode="sum", sparse=True)
    by_meaning = nn.Parameter(torch.zeros(logits.shape[1], meanings.shape[1]))
    biases = nn.Parameter(torch.zeros(logits.shape[1]))
    nn.init.zeros_(grams.weight)
    optimizers: list[tuple[Any, float]] = [
        (torch.optim.SparseAdam(list(grams.parameters())), _GRAM_RATE),
        (torch.optim.AdamW([by_meaning, biases], weight_decay=_WEIGHT_DECAY), _MEANING_RATE),
    ]
    steps = _PASSES * -(-matrix.shape[0] // _BATCH)
    with progress_bar() as progress:
        bar = progress.add_task("titles, the student learns", total=steps)
        for step in range(steps):
            place = step * _BATCH % (steps // _PASSES * _BATCH)
            if place == 0:
                order = random.permutation(matrix.shape[0])
            batch = order[place : place + _BATCH]
            rows = matrix[batch]
            said = functional.linear(torch.from_numpy(rows @ meanings / scale), by_meaning, biases) + grams(
                *(torch.from_numpy(each.astype(np.int64)) for each in (rows.indices, rows.indptr[:-1])),
                per_sample_weights=torch.from_numpy(rows.data),
            )
            loss = _apart(said, logits[torch.from_numpy(batch)].float(), tasks)
            for optimizer, rate in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * (1 - step / steps)
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer, _ in optimizers:
                optimizer.step()
            progress.advance(bar)
    return {
        "by_gram": grams.weight.detach().T.contiguous(),
        "by_meaning": by_meaning.detach() / scale,
        "biases": biases.detach(),
    }


def _said(linear: Mapping[str, NDArray[np.float32]], matrix: csr_matrix, vectors: NDArray[np.float32] | None) -> Tensor:
    """The linear student's logits float32 [titles, K]; `linear` as of `_fitted`, the matrix float32 [titles, table rows]."""
    weights = linear["by_gram"].T if vectors is None else linear["by_gram"].T + vectors @ linear["by_meaning"].T
    return torch.from_numpy(matrix @ np.ascontiguousarray(weights) + linear["biases"])


def _order_fitted(
    tokens: Tokens, said: Tensor, logits: Tensor, tasks: Sequence[Task], vectors: NDArray[np.float32] | None, *, words_max: int
) -> dict[str, Tensor]:
    """What `Student` holds of words in order, fitted to what is left of the teacher's probabilities.

    Args:
        tokens: of the titles; said: float32 [titles, K], the linear student's logits; logits: float16 [titles, K], the teacher's.
    """
    ordered, words = _most_read(tokens, words_max)
    if not len(ordered):
        return {"ordered": torch.from_numpy(ordered), "by_order": torch.zeros(logits.shape[1], FEATURES)}
    torch.manual_seed(_SEED)  # whether the linear student was kept must not matter
    branch, head = WordOrder(len(ordered)), nn.Linear(FEATURES, logits.shape[1], bias=False)
    nn.init.zeros_(head.weight)
    with torch.no_grad():
        branch.vectors[1:] = torch.from_numpy(_first_vectors(ordered, vectors))
    optimizer = torch.optim.AdamW([*branch.parameters(), *head.parameters()], lr=_ORDER_RATE, weight_decay=_WEIGHT_DECAY)
    steps_a_pass = -(-len(words) // _BATCH)
    steps = _ORDER_PASSES * steps_a_pass
    with progress_bar() as progress:
        bar = progress.add_task("titles, words in order", total=steps)
        for step in range(steps):
            if step % steps_a_pass == 0:
                mixed = torch.randperm(len(words))
            batch = mixed[step % steps_a_pass * _BATCH :][:_BATCH]
            loss = _apart(said[batch] + head(branch(words[batch])), logits[batch].float(), tasks)
            optimizer.param_groups[0]["lr"] = _ORDER_RATE * (1 - step / steps)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            progress.advance(bar)
    with torch.no_grad():
        branch.vectors.copy_(branch.vectors.half())  # as the graph holds them
    state = {f"{_BRANCH}{name}": tensor for name, tensor in branch.state_dict().items()}
    return state | {"ordered": torch.from_numpy(ordered), "by_order": head.weight.detach()}


def _most_read(tokens: Tokens, words_max: int) -> tuple[NDArray[np.int64], Tensor]:
    """The words that titles and names have most often, int64 [words], and each title's leading ones, int32 [titles, 16]."""
    times = np.bincount(tokens.ids[tokens.is_word], minlength=int(tokens.ids.max(initial=0)) + 1)
    ordered = np.sort(np.argsort(-times, kind="stable")[: min(words_max, np.count_nonzero(times))])
    numbers = np.zeros(len(times), dtype=np.int32)
    numbers[ordered] = 1 + np.arange(len(ordered))
    return ordered, torch.from_numpy(leading_words(tokens, numbers))


def _first_vectors(ordered: NDArray[np.int64], vectors: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Vectors float32 [words, 48] to begin with: what is most of the words' vectors given; at random where there are none."""
    begun = np.random.default_rng(_SEED).normal(scale=_VECTOR_SIZE, size=(len(ordered), VECTOR_WIDTH))
    if vectors is not None:
        known = np.flatnonzero(vectors[ordered].any(axis=1))
        if len(known):
            meanings = vectors[ordered[known]].astype(np.float64)
            meanings -= meanings.mean(axis=0)
            _, directions = np.linalg.eigh(meanings.T @ meanings)  # ascending
            largest = meanings @ directions[:, ::-1][:, :VECTOR_WIDTH]
            begun[known] = 0.0
            begun[known, : largest.shape[1]] = largest * _VECTOR_SIZE / (largest.std() or 1.0)
    return begun.astype(np.float32)


def _apart(said: Tensor, logits: Tensor, tasks: Sequence[Task]) -> Tensor:
    """How far the student's logits are from the teacher's, both float32 [titles, K]: cross-entropies, a mean over titles."""
    widths = [task.width for task in tasks]
    loss = said.new_zeros(())
    for task, own, truth in zip(tasks, torch.split(said, widths, dim=1), torch.split(logits, widths, dim=1), strict=True):
        if task.entry.kind == "multi":
            each = functional.binary_cross_entropy_with_logits(own, truth.sigmoid(), reduction="none").sum(dim=1)
            loss = loss + _MULTI_SCALE * each.mean()
        else:
            loss = loss + functional.cross_entropy(own, truth.softmax(dim=1))
    return loss
