"""The cover branch's start: it learns what covers alone tell of all tasks, before they join the text.

Learned together with the text from the beginning, covers stay mute: the text explains the labels long before convolutions see
anything. So the branch is trained apart, on covers that are shifted, relit and mixed so that it cannot know them by heart, from
their labels and from what a larger network sees in them (cover_teacher.py), and is not changed any more after that.
Source: Zhang et al., ICLR 2018, arXiv:1710.09412, for mixing.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model.checkpoint import Checkpoints
from model.cover_teacher import TEACHER_WIDTH, seen_by_teacher
from model.dataset import Labels, Rows
from model.losses import Target, task_losses
from model.network import Network
from model.progress import progress_bar
from model.schedule import cosine
from model.tasks import Task

_BATCH_COVERS = 128
_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 0.05
_WARM_UP_STEPS = 50
_SHIFT = 0.1  # of the cover's height and width, to either side
_SHIFT_GROUPS = 8  # covers of a batch that are shifted alike: slicing is per group
_CONTRAST, _BRIGHTNESS = 0.3, 40.0
_MIX = 0.2
_TEACHER_WEIGHT = 60.0  # of the mean squared distance from its features, against the sum of the tasks' losses
_FEATURES_BATCH = 512


def learn_covers(
    network: Network, rows: Rows, labels: Sequence[Labels], tasks: Sequence[Task], *,
    epochs: int, seed: int, index: NDArray[np.int64], teacher: bool, checkpoints: Checkpoints | None = None,
) -> None:  # fmt: skip
    """Trains `cover_branch` and `cover_head` on the covers of the rows at `index`, and freezes both.

    Without covers, or for 0 epochs, nothing is learned: the branch stays as it was drawn, and its head says nothing.
    """
    trained = torch.nn.ModuleList([network.cover_branch, network.cover_head])
    torch.nn.init.zeros_(network.cover_head.weight)
    torch.nn.init.zeros_(network.cover_head.bias)
    with_cover = index[rows.cover_of[index] >= 0]
    state = None if checkpoints is None else checkpoints.load("covers")
    if state is not None:
        trained.load_state_dict(state["weights"])
        torch.set_rng_state(state["torch_random"])  # what follows draws as it would have without an interruption
    elif epochs and len(with_cover) > 1:
        seen = _taught(rows.covers, checkpoints) if teacher else None
        _train(network, rows, labels, tasks, with_cover, seen, trained=trained, epochs=epochs, random=np.random.default_rng(seed))
        _centre(network, rows.covers[rows.cover_of[with_cover]])
        if checkpoints is not None:
            checkpoints.save("covers", {"weights": trained.state_dict(), "torch_random": torch.get_rng_state()})
    trained.requires_grad_(False)
    trained.zero_grad(set_to_none=True)  # else its last gradients would count where those of the network are clipped


def cover_features(network: Network, covers: NDArray[np.uint8]) -> Tensor:
    """What the frozen branch sees: float32 [covers, 96] of uint8 [covers, channels, height, width]."""
    network.cover_branch.eval()
    features = torch.zeros(len(covers), network.cover_projection.in_features)
    with torch.no_grad():
        for start in range(0, len(covers), _FEATURES_BATCH):
            part = torch.from_numpy(covers[start : start + _FEATURES_BATCH])
            features[start : start + _FEATURES_BATCH] = network.cover_branch(part)
    return features


def _taught(covers: NDArray[np.uint8], checkpoints: Checkpoints | None) -> Tensor:
    """What the teacher sees, float32 [covers, 1280], kept for a training that goes on from an interruption."""
    state = None if checkpoints is None else checkpoints.load("cover-teacher")
    if state is not None:
        return torch.as_tensor(state["seen"])
    seen = seen_by_teacher(covers)
    if checkpoints is not None:
        checkpoints.save("cover-teacher", {"seen": seen})
    return seen


def _train(
    network: Network, rows: Rows, labels: Sequence[Labels], tasks: Sequence[Task], with_cover: NDArray[np.int64],
    seen: Tensor | None, *, trained: torch.nn.Module, epochs: int, random: np.random.Generator,
) -> None:  # fmt: skip
    covers, branch = torch.from_numpy(rows.covers), network.cover_branch
    as_teacher = torch.nn.Linear(branch.connected.in_features, TEACHER_WIDTH)  # not kept
    learning = [*trained.parameters(), *as_teacher.parameters()]
    optimiser = torch.optim.AdamW(learning, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    batches = -(-len(with_cover) // _BATCH_COVERS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, cosine(batches * epochs, warm_up=_WARM_UP_STEPS))
    trained.train()

    def loss(logits: Tensor, index: NDArray[np.int64]) -> Tensor:
        targets = {task.name: Target.of(own.values[index], own.present[index]) for task, own in zip(tasks, labels, strict=True)}
        values, _ = task_losses(network.split(logits), targets, tasks, label_smoothing=0.0)
        return torch.stack([logits.sum() * 0.0, *values.values()]).sum()  # no row of the batch may have a label

    with progress_bar() as progress:
        bar = progress.add_task("covers", total=batches * epochs)
        for _ in range(epochs):
            for index in np.array_split(random.permutation(with_cover), batches):
                places = torch.from_numpy(rows.cover_of[index])
                pixels = _varied(covers[places], random)
                share, order = float(random.beta(_MIX, _MIX)), random.permutation(len(index))
                pooled = branch.pooled(_mixed(pixels, order, share))  # [B, 256]
                logits = network.cover_head(branch.features(pooled))  # [B, K]
                total = share * loss(logits, index) + (1 - share) * loss(logits, index[order])
                if seen is not None:
                    apart = functional.mse_loss(as_teacher(pooled), _mixed(seen[places], order, share))
                    total = total + _TEACHER_WEIGHT * apart
                optimiser.zero_grad(set_to_none=True)
                total.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                progress.advance(bar)


def _mixed(values: Tensor, order: NDArray[np.int64], share: float) -> Tensor:
    """Each row with a share of another's: float32 of the same shape."""
    return share * values + (1 - share) * values[torch.from_numpy(order)]


def _centre(network: Network, covers: NDArray[np.uint8]) -> None:
    """Makes the head's logits 0 on average: which labels are common the text's part knows already, and that a listing has a
    cover at all must tell nothing.
    """
    with torch.no_grad():
        network.cover_head.bias.sub_(network.cover_head(cover_features(network, covers)).mean(dim=0))


def _varied(covers: Tensor, random: np.random.Generator) -> Tensor:
    """The covers, shifted by up to a tenth, lighter or darker, with more or less contrast: float32 of the same shape."""
    height, width = covers.shape[2:]
    down, right = max(1, round(height * _SHIFT)), max(1, round(width * _SHIFT))
    padded = functional.pad(covers.float(), (right, right, down, down), mode="replicate")
    parts = []
    for group in torch.tensor_split(padded, min(_SHIFT_GROUPS, len(padded))):
        top, left = int(random.integers(2 * down + 1)), int(random.integers(2 * right + 1))
        parts.append(group[:, :, top : top + height, left : left + width])
    drawn = torch.from_numpy(random.random((2, len(covers), 1, 1, 1)).astype(np.float32)) - 0.5
    return ((torch.cat(parts) - 127.5) * (1 + _CONTRAST * drawn[0]) + 127.5 + _BRIGHTNESS * drawn[1]).clamp(0, 255)
