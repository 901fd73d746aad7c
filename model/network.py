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
Dimensions in the comments: B batch, D table width, H hidden width, E embedding width, N tasks, V view width, K columns of all
tasks together, S columns of the stacked ones, W width of the broad layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

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
    def more_read(self) -> tuple[tuple[frozenset[str], int], ...]:
        """What some tasks read beside their mixture: which tasks, and how wide it is; 0 where the network has no such part."""
        return (
            (self.stacked, _STACK_WIDTH if self.stacked else 0),
            (self.broad, self.broad_width if self.broad else 0),
            (self.ordered, FEATURES if self.ordered_words else 0),
        )

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
        heads, more = shape.heads, shape.more_read
        self._more = [[name in tasks and width > 0 for tasks, width in more] for name in heads]
        self.views = nn.Linear(shape.embedding_width, len(heads) * _VIEW_WIDTH)
        self.scores = nn.Parameter(_OWN_VIEW * torch.eye(len(heads)))
        read = [_VIEW_WIDTH + sum(width for (_, width), own in zip(more, each, strict=True) if own) for each in self._more]
        self.heads = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in zip(read, heads.values(), strict=True))
        for head in self.heads.parameters():
            nn.init.zeros_(head)  # training begins at the linear model

    def relations(self) -> Tensor:
        """float32 [N, N]: how much of each task's view (column) a task (row) reads; a row sums to 1."""
        return functional.softmax(self.scores, dim=1)

    def forward(self, embedding: Tensor, more: Sequence[Tensor | None]) -> Tensor:
        """To the deep part's logits of all tasks, float32 [B, K].

        Args:
            embedding: float32 [B, E].
            more: the stack float32 [B, 128], the broad layer [B, W] and words in order [B, 96], None where there is no such part.
        """
        views = functional.relu(self.views(embedding)).reshape(-1, len(self.heads), _VIEW_WIDTH)  # [B, N, V]
        mixed = (self.relations() @ views).flatten(start_dim=1)  # [B, N * V]
        views_of = torch.split(mixed, _VIEW_WIDTH, dim=1)  # N times [B, V]
        reads = []
        for own, is_read in zip(views_of, self._more, strict=True):
            beside = [each for each, wanted in zip(more, is_read, strict=True) if wanted and each is not None]
            reads.append(torch.cat([own, *beside], dim=1) if beside else own)  # [B, V], and 128, W, 96 more where they are read
        return torch.cat([head(own) for head, own in zip(self.heads, reads, strict=True)], dim=1)  # [B, K]


class Network(nn.Module):
    """The multi-task network without its table, which training does not change."""

    def __init__(self, shape: Shape, *, dropout: float) -> None:
        super().__init__()
        self.shape = shape
        d, h, e, k = shape.table_width, shape.hidden_width, shape.embedding_width, shape.columns
        self.cover_branch = CoverBranch(channels=shape.cover_channels, dropout=dropout)
        self._parts = [h, _GATE_WIDTH, shape.stacked_columns, shape.broad_width if shape.broad else 0]
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
            text: float32 [B, D], the weighted sum of the tokens' rows.
            cover_features: float32 [C, 96] from `cover_branch`. There may be fewer than rows: what is made of a cover alone is
                made once for each of them, and not for rows without.
            cover_of: int64 [B], which of them is each row's; any where there is no cover.
            cover_present: float32 [B, 1].
            order: float32 [B, 96] from `word_order`, where the network has such a branch.
        Returns:
            Logits of all tasks side by side, float32 [B, K], and the embedding, float32 [B, E], before normalisation.
        """
        projected = self.text_projection(text)  # [B, H + 32 + S + W]
        fused, asking, decisions, broad = self._apart(projected)  # [B, H], [B, 32], [B, S], [B, W]
        stack = None if decisions is None or self.stack is None else self.stack(decisions)  # [B, 128]
        broad = None if broad is None else self.dropout(functional.relu(broad))  # [B, W]
        answer = self.cover_gate(cover_features).index_select(0, cover_of)  # [B, H]
        gate = torch.sigmoid(self.text_gate(asking) + answer) * cover_present  # [B, H]
        fused = fused + gate * self.cover_projection(cover_features).index_select(0, cover_of)  # [B, H]
        hidden = functional.relu(self.hidden(self.dropout(functional.relu(fused))))  # [B, H]
        embedding = self.to_embedding(self.dropout(hidden))  # [B, E]
        inner = self.dropout(functional.relu(embedding))  # [B, E]
        by_cover = self.cover_head(cover_features) * self.get_buffer("cover_shares")  # [C, K]
        by_cover = by_cover.index_select(0, cover_of) * cover_present  # [B, K]
        more = (stack, broad, order)
        logits = self.wide(text) + self.deep(inner, more) + by_cover  # [B, K]
        if self.training and self.shape.read_only:
            # The same numbers, but where `shaping` is 0 the gradient stops at the heads.
            apart = self.wide(text) + self.deep(inner.detach(), more) + by_cover  # [B, K]
            logits = torch.where(self.get_buffer("shaping") > 0, logits, apart)  # [B, K]
        return logits, embedding

    def _apart(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The projection's parts; None for those of no width, which ONNX need not cut."""
        fused, asking, *more = torch.split(projected, [width for width in self._parts if width], dim=1)
        cut = iter(more)
        decisions, broad = (next(cut) if width else None for width in self._parts[2:])
        return fused, asking, decisions, broad

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

    def round_as_served(self) -> None:
        """Rounds the large layers' weights to half precision, as the graph holds them."""
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.Linear) and layer.weight.numel() >= NARROWED_FROM:
                    layer.weight.copy_(layer.weight.half())

    def begin_order(self, branch: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Takes over a branch that has learned, and lets tasks begin with what it says of them.

        Args:
            branch: the state of a `WordOrder`; weights: float32 [columns, 96] by task.
        """
        assert self.word_order is not None
        self.word_order.load_state_dict(branch)
        with torch.no_grad():
            for name, head in zip(self.shape.heads, self.deep.heads, strict=True):
                if name in self.shape.ordered:
                    head.get_parameter("weight")[:, -FEATURES:] = weights[name]

    def split(self, logits: Tensor) -> dict[str, Tensor]:
        """[B, K] to one [B, columns] for each task."""
        parts = torch.split(logits, list(self.shape.heads.values()), dim=1)  # K is cut at the tasks' borders
        return dict(zip(self.shape.heads, parts, strict=True))
