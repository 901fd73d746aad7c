"""The network: a listing's tokens and cover to one shared representation, and from it to every task.

    token ids, weights ─ table ─ weighted sum ─┬───────────────────────────────────────── wide logits ──┐
     │                                         ├ some tasks' own decisions ─ stack ──────────────────┐  +─ logits of each task
     │                                         ├ broad layer ────────────────────────────────────────┤  │
     └ words in order ─────────────────────────│─────────────────────────────────────────────────────┤  │
                                               └ projection ┐                                        │  │
    cover ─ convolutions ─ pooling ─ fully connected ─┬ gate ┴ hidden ─ embedding ─ views ─ mixtures ┴──┤
                                                      └─────────────────────── cover's logits · shares ─┘

The wide part alone is a linear model of the n-grams, which is what it is started from; the deep part corrects it. In the deep
part each task makes a view of the embedding and reads a learned mixture of all tasks' views. The cover branch learns to stand
alone first (cover_start.py); of what it says by itself each task takes a share. A regression with bands knows its value and its
bands from models apart, each of which tells something of the other: so it also reads both through layers of its own, the stack.
A task that a language model teaches also reads what that has taught of words in their order (word_order.py). And tasks of many
rows may read the text through a broad layer of their own: what all tasks share is narrow, since every listing pays for it.
Text and broad layer are in steps of 1/16, and as served what reads them multiplies bytes (steps.py).
Dimensions in the comments: B batch, D table width, H hidden width, E embedding width, N tasks, V view width, K columns of all
tasks together, S columns of the stacked ones, W width of the broad layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.steps import in_steps, round_layer
from model.word_order import FEATURES, WordOrder

_COVER_FEATURES = 96
_COVER_MAPS = 256
_VIEW_WIDTH = 32
_GATE_WIDTH = 32  # what the cover's gate sees of the text; all of it would be a sixth of the network's work
_OWN_VIEW = 2.0  # a task begins with about a third of its own view
_STACK_WIDTH = 128
_SPREAD_MIN = 1e-6
NARROWED_FROM = 1024  # numbers


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a network.

    Attributes:
        heads: task name to its columns, in the order of the tasks.
        read_only: tasks whose loss does not reach trunk and cover branch.
        stacked: tasks that also read their own linear decisions through layers of their own.
        ordered: tasks that also read the words in order, of which there are `ordered_words`; for 0 there is no such branch.
        broad: tasks that also read the broad layer, of `broad_width` numbers; for 0 there is no such layer.
    """

    table_rows: int
    table_width: int
    hidden_width: int
    embedding_width: int
    cover_channels: int
    heads: Mapping[str, int]
    read_only: frozenset[str] = frozenset()
    stacked: frozenset[str] = frozenset()
    ordered: frozenset[str] = frozenset()
    ordered_words: int = 0
    broad: frozenset[str] = frozenset()
    broad_width: int = 0

    @property
    def columns(self) -> int:
        return sum(self.heads.values())

    @property
    def more_read(self) -> dict[str, tuple[frozenset[str], int]]:
        """What some tasks read beside their mixture, where the network has it: which tasks, and how wide it is."""
        parts = {
            "stack": (self.stacked, _STACK_WIDTH),
            "broad": (self.broad, self.broad_width),
            "order": (self.ordered, FEATURES if self.ordered_words else 0),
        }
        return {name: (tasks, width) for name, (tasks, width) in parts.items() if tasks and width}

    @property
    def stacked_columns(self) -> int:
        return sum(width for name, width in self.heads.items() if name in self.stacked)


class CoverBranch(nn.Module):
    """Convolution, pooling, fully connected: about 10 million multiplications for a cover of 64 x 64."""

    def __init__(self, *, channels: int, dropout: float) -> None:
        super().__init__()
        widths = (channels, 16, 48, 128, _COVER_MAPS)
        # Batch normalisation is folded into the convolutions when the graph is exported.
        self.convolutions = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, kernel_size=3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in pairwise(widths)
            )
        )
        self.dropout = nn.Dropout(dropout)
        self.connected = nn.Linear(_COVER_MAPS, _COVER_FEATURES)

    def forward(self, cover: Tensor) -> Tensor:
        """uint8 [B, channels, height, width] to float32 [B, 96]."""
        return self.features(self.pooled(cover))

    def pooled(self, cover: Tensor) -> Tensor:
        """uint8 [B, channels, height, width] to float32 [B, 256], what training lets a teacher speak of, too."""
        pixels = (cover.float() - 127.5) / 64.0
        maps: Tensor = self.convolutions(pixels)  # [B, 256, height / 16, width / 16]
        return maps.mean(dim=(2, 3))  # [B, 256]

    def features(self, pooled: Tensor) -> Tensor:
        """float32 [B, 256] of `pooled` to [B, 96]."""
        return functional.relu(self.connected(self.dropout(pooled)))  # [B, 96]


class TaskMixture(nn.Module):
    """Every task reads a mixture of what all tasks see in the embedding; whom it reads, and how much, is learned."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._widths = list(shape.heads.values())
        self.views = nn.Linear(shape.embedding_width, len(self._widths) * _VIEW_WIDTH)
        self.scores = nn.Parameter(_OWN_VIEW * torch.eye(len(self._widths)))
        self.heads = nn.ModuleList(nn.Linear(_VIEW_WIDTH, width, bias=False) for width in self._widths)
        self.beside = nn.ModuleDict()  # what the parts beside the mixture add to their readers' columns
        self._readers: dict[str, list[int]] = {}
        for name, (tasks, width) in shape.more_read.items():
            self._readers[name] = [place for place, task in enumerate(shape.heads) if task in tasks]
            self.beside[name] = nn.Linear(width, sum(self._widths_of(name)), bias=False)
        for layer in (*self.heads, *self.beside.values()):
            nn.init.zeros_(layer.weight)  # training begins at the linear model

    def relations(self) -> Tensor:
        """float32 [N, N]: how much of each task's view (column) a task (row) reads; a row sums to 1."""
        return functional.softmax(self.scores, dim=1)

    def of_task(self, place: int) -> list[Tensor]:
        """All weights that give the columns of the task at this place, [columns, read] each, to be changed where they stand."""
        found: list[Tensor] = [self.heads[place].get_parameter("weight")]
        for name, readers in self._readers.items():
            if place in readers:
                own = torch.split(self.beside[name].get_parameter("weight"), self._widths_of(name))
                found.append(own[readers.index(place)])
        return found

    def forward(self, embedding: Tensor, more: Mapping[str, Tensor]) -> Tensor:
        """To the deep part's logits of all tasks, float32 [B, K].

        Args:
            embedding: float32 [B, E].
            more: by the names of `Shape.more_read`: the stack float32 [B, 128], the broad layer [B, W], words in order [B, 96].
        """
        views = functional.relu(self.views(embedding)).reshape(-1, len(self.heads), _VIEW_WIDTH)  # [B, N, V]
        mixed = (self.relations() @ views).flatten(start_dim=1)  # [B, N * V]
        views_of = torch.split(mixed, _VIEW_WIDTH, dim=1)  # N times [B, V]
        logits = [head(own) for head, own in zip(self.heads, views_of, strict=True)]  # [B, columns] each
        for name, layer in self.beside.items():
            parts = torch.split(layer(more[name]), self._widths_of(name), dim=1)  # [B, columns] for each reader
            for place, part in zip(self._readers[name], parts, strict=True):
                logits[place] = logits[place] + part
        return torch.cat(logits, dim=1)  # [B, K]

    def _widths_of(self, name: str) -> list[int]:
        return [self._widths[place] for place in self._readers[name]]


class Network(nn.Module):
    """The multi-task network without its table, which training does not change."""

    def __init__(self, shape: Shape, *, dropout: float) -> None:
        super().__init__()
        self.shape = shape
        d, h, e, k = shape.table_width, shape.hidden_width, shape.embedding_width, shape.columns
        self.cover_branch = CoverBranch(channels=shape.cover_channels, dropout=dropout)
        self._parts = [h, _GATE_WIDTH, *([shape.stacked_columns] if shape.stacked else [])]
        self.text_projection = nn.Linear(d, sum(self._parts))
        self.cover_projection = nn.Linear(_COVER_FEATURES, h)
        self.cover_head = nn.Linear(_COVER_FEATURES, k)
        self.register_buffer("cover_shares", torch.zeros(k))  # [K]
        self.cover_gate = nn.Linear(_COVER_FEATURES, h)
        self.text_gate = nn.Linear(_GATE_WIDTH, h, bias=False)
        self.hidden = nn.Linear(h, h)
        self.to_embedding = nn.Linear(h, e)
        self.dropout = nn.Dropout(dropout)
        self.wide = nn.Linear(d, k)
        self.deep = TaskMixture(shape)
        self.stack = None
        if shape.stacked:
            first, second = nn.Linear(shape.stacked_columns, _STACK_WIDTH), nn.Linear(_STACK_WIDTH, _STACK_WIDTH)
            self.stack = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.broad = nn.Linear(d, shape.broad_width) if "broad" in shape.more_read else None
        self.word_order = None
        if shape.ordered_words:
            self.word_order = WordOrder(shape.ordered_words).requires_grad_(False)
        shaping = [float(name not in shape.read_only) for name, width in shape.heads.items() for _ in range(width)]
        self.register_buffer("shaping", torch.tensor(shaping), persistent=False)  # [K]

    def forward(
        self, text: Tensor, cover_features: Tensor, cover_of: Tensor, cover_present: Tensor, order: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The representation's two results.

        Args:
            text: float32 [B, D], the weighted sum of the tokens' rows in steps of 1/16.
            cover_features: float32 [C, 96] from `cover_branch`. There may be fewer than rows: what is made of a cover alone is
                made once for each of them, and not for rows without.
            cover_of: int64 [B], which of them is each row's; any where there is no cover.
            cover_present: float32 [B, 1].
            order: float32 [B, 96] from `word_order`, where the network has such a branch.
        Returns:
            Logits of all tasks side by side, float32 [B, K], and the embedding, float32 [B, E], before normalisation.
        """
        fused, asking, *decisions = torch.split(self.text_projection(text), self._parts, dim=1)  # [B, H], [B, 32], [B, S]
        more = {}
        if self.stack is not None:
            more["stack"] = self.stack(decisions[0])  # [B, 128]
        if self.broad is not None:
            broad = self.broad(text)  # [B, W]
            more["broad"] = self.dropout(functional.relu(broad)) if self.training else in_steps(broad, middle=0)  # [B, W]
        if order is not None:
            more["order"] = order
        answer = self.cover_gate(cover_features).index_select(0, cover_of)  # [B, H]
        gate = torch.sigmoid(self.text_gate(asking) + answer) * cover_present  # [B, H]
        fused = fused + gate * self.cover_projection(cover_features).index_select(0, cover_of)  # [B, H]
        hidden = functional.relu(self.hidden(self.dropout(functional.relu(fused))))  # [B, H]
        embedding = self.to_embedding(self.dropout(hidden))  # [B, E]
        inner = self.dropout(functional.relu(embedding))  # [B, E]
        by_cover = self.cover_head(cover_features) * self.get_buffer("cover_shares")  # [C, K]
        by_cover = by_cover.index_select(0, cover_of) * cover_present  # [B, K]
        logits = self.wide(text) + self.deep(inner, more) + by_cover  # [B, K]
        if self.training and self.shape.read_only:
            # The same numbers, but where `shaping` is 0 the gradient stops at the heads.
            apart = self.wide(text) + self.deep(inner.detach(), more) + by_cover  # [B, K]
            logits = torch.where(self.get_buffer("shaping") > 0, logits, apart)  # [B, K]
        return logits, embedding

    def begin_stack(self, text: Tensor, present: Mapping[str, Tensor]) -> None:
        """Makes the stack read the wide part's decisions as they are now, each of mean 0 and spread 1.

        Args:
            text: float32 [B, D] of some rows; present: bool [B] by task, the rows that have its label.
        """
        first, at = 0, self.shape.hidden_width + _GATE_WIDTH
        with torch.no_grad():
            for name, width in self.shape.heads.items():
                columns, first = slice(first, first + width), first + width
                if name in self.shape.stacked and present[name].any():
                    decisions = text[present[name]] @ self.wide.weight[columns].T  # [rows, width]
                    spread = decisions.std(dim=0, correction=0).clamp(min=_SPREAD_MIN)
                    self.text_projection.weight[at : at + width] = self.wide.weight[columns] / spread[:, None]
                    self.text_projection.bias[at : at + width] = -decisions.mean(dim=0) / spread
                at += width * (name in self.shape.stacked)

    def round_as_served(self, *, branches_only: bool = False) -> None:
        """Rounds the layers' weights as the graph holds them: what reads steps to steps, other large ones to half precision.

        Args:
            branches_only: those of covers and words in order alone, which learn no more and whose features are kept.
        """
        of_steps = ("text_projection", "wide", "broad", "deep.beside.broad")
        for name, layer in self.named_modules():
            if not isinstance(layer, nn.Linear) or (branches_only and not name.startswith(("cover_branch.", "word_order."))):
                continue
            if name in of_steps:
                round_layer(layer)
            elif layer.weight.numel() >= NARROWED_FROM:
                layer.weight.data.copy_(layer.weight.half())

    def begin_order(self, branch: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Takes over a branch that has learned, and lets tasks begin with what it says of them.

        Args:
            branch: the state of a `WordOrder`; weights: float32 [columns, 96] by task.
        """
        assert self.word_order is not None
        self.word_order.load_state_dict(branch)
        with torch.no_grad():
            own = [weights[name] for name in self.shape.heads if name in self.shape.ordered]
            self.deep.beside["order"].get_parameter("weight").copy_(torch.cat(own))

    def split(self, logits: Tensor) -> dict[str, Tensor]:
        """[B, K] to one [B, columns] for each task."""
        parts = torch.split(logits, list(self.shape.heads.values()), dim=1)  # K is cut at the tasks' borders
        return dict(zip(self.shape.heads, parts, strict=True))
