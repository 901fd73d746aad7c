"""What a language model knows of titles, as far as linear models can say it: a third part of the network's start.

The teacher is asked about titles other than those it has learned from: made-up ones, and those of other sets. Were it asked
about the training rows themselves, each row's own label would come back to it through the student, which is one for all folds;
so, too little of it does to show, and the network learns on top of what it will find of new titles. The student, like the
other linear models, is one row of coefficients a n-gram: of its own for those that the titles have, and through what its word
means (word_vectors.py). Nothing is added to what is served.
Source: Hinton et al., arXiv:1503.02531, for learning from probabilities.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional

from model.checkpoint import Checkpoints
from model.dataset import Labels, Rows
from model.features import FeatureExtractor, FeatureSettings, Vocabulary
from model.listing import Listing
from model.made_up import made_up_listings
from model.progress import progress_bar
from model.tasks import Task
from model.text import CJK_CLASS
from model.text_matrix import text_matrix
from model.text_teacher import Teacher, answers, tuned

_PASSES = 4
_BATCH = 512
_GRAM_RATE, _MEANING_RATE, _WEIGHT_DECAY = 1e-2, 2e-3, 1e-2
_MULTI_SCALE = 0.3
_MADE_UP_PER_LISTING = 10
_SCALED_BY = 10_000  # titles
_SEED = 5
_CJK = re.compile(f"[{CJK_CLASS}]")


@dataclass(frozen=True, slots=True)
class Student:
    """Linear models of the taught tasks' columns side by side, as logits.

    Attributes:
        vocabulary: whose rows the n-grams' coefficients are of.
        by_gram: float32 [K, table rows]; by_meaning: float32 [K, W], of the words' vectors; biases: float32 [K].
    """

    vocabulary: Vocabulary
    by_gram: NDArray[np.float32]
    by_meaning: NDArray[np.float32]
    biases: NDArray[np.float32]

    def weights(self, vocabulary: Vocabulary, vectors: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Coefficients float32 [K, table rows] for a vocabulary: of an n-gram that is new there only what its word means."""
        known, rows = self.vocabulary.find(vocabulary.hashes)
        weights = np.zeros((len(self.biases), vocabulary.rows), dtype=np.float32)
        weights[:, known + 1] = self.by_gram[:, rows]  # row 0 is padding
        return weights if vectors is None else weights + self.by_meaning @ vectors.T


def taught(tasks: Sequence[Task]) -> list[Task]:
    """The tasks that a language model teaches."""
    return [task for task in tasks if task.entry.taught_share > 0]


def student_of(
    train: Rows, tasks: Sequence[Task], labels: Sequence[Labels], vocabulary: Vocabulary, settings: FeatureSettings, *,
    vectors: NDArray[np.float32] | None, made_up: int, checkpoints: Checkpoints | None, progress: Callable[[str], None],
) -> Student:  # fmt: skip
    """Tunes the teacher on the labels of these tasks, asks it, and fits the student to what it answers.

    Args:
        made_up: so many titles are made up for the teacher to be asked about.
        checkpoints: where teacher, answers and student are kept, each as soon as it is there.

    Raises:
        TaskFileError: the teacher's package is not installed.
    """
    asked = {
        "taught": [[task.entry.model_dump(mode="json", include={"name", "kind", "sets", "field"}), task.labels] for task in tasks]
    }
    kept = None if checkpoints is None else checkpoints.narrowed(**asked, made_up=made_up, word_vectors=vectors is not None)

    def once(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        state = None if kept is None else kept.load(name)
        if state is None:
            state = make()
            if kept is not None:
                kept.save(name, state)
        return state

    def answered(texts: Sequence[Listing]) -> dict[str, Tensor]:
        progress(f"a language model learns {', '.join(task.name for task in tasks)}, then answers for {len(texts)} titles")
        teacher = Teacher(sum(task.width for task in tasks))
        teacher.load_state_dict(once("text-teacher", lambda: tuned(train.listings, tasks, labels).state_dict()))
        return {"logits": torch.from_numpy(answers(teacher.eval(), texts))}

    def learned() -> dict[str, Tensor]:
        texts = _asked_about(train, np.any([own.present for own in labels], axis=0), made_up=made_up)
        logits = once("text-answers", lambda: answered(texts))["logits"]
        tokens = FeatureExtractor(settings, vocabulary).tokens(texts)
        matrix = text_matrix(tokens, table_rows=vocabulary.rows, hidden=None).astype(np.float32)
        return _fitted(matrix, logits, tasks, vectors)

    with torch.random.fork_rng(devices=[]):  # what training draws must not depend on what was asked or kept
        state = {name: tensor.numpy() for name, tensor in once("text-student", learned).items()}
    return Student(vocabulary, by_gram=state["by_gram"], by_meaning=state["by_meaning"], biases=state["biases"])


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
