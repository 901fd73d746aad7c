"""A listing's words in order: a small branch of the network, which a language model has taught and which then stays as it is.

    first 16 token ids ─ words' vectors ─ 3 neighbours ─ 3 neighbours ─┬ largest ┬ features ─ each task's share of them
                                                                       └ mean ───┘

A listing's tokens begin with its title's words as they are read, then those of its authors' names (`features.Tokens`), so that
nothing but the token ids is needed. Training and the served graph read the same: the first 16 tokens, whatever they are. What
is no word there, or a word too rare to have a vector, is passed over, but leaves its gap. A word of the description is in the
table the title's word: it is read where a listing has fewer than 16 tokens of title and authors; other fields never are.
Dimensions in the comments: B batch, R = 16 words read, W = 48 numbers of a word, F = 96 features.
Source: Kim, EMNLP 2014, arXiv:1408.5882, for convolutions over words' vectors.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model.features import Tokens, Vocabulary

READ = 16  # words
VECTOR_WIDTH = 48
FEATURES = 96
_WIDTH = 64
_NEIGHBOURS = 3


class WordOrder(nn.Module):
    """Words' vectors and what reads them; about 200,000 multiplications a listing.

    Args:
        words: how many there are; a word's number is 1 .. `words`, and 0 is none.
    """

    def __init__(self, words: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(1 + words, VECTOR_WIDTH))
        self.first = nn.Linear(_NEIGHBOURS * VECTOR_WIDTH, _WIDTH)
        self.second = nn.Linear(_NEIGHBOURS * _WIDTH, _WIDTH)
        self.last = nn.Linear(2 * _WIDTH, FEATURES)

    def forward(self, words: Tensor) -> Tensor:
        """Words' numbers int32 [B, R] to features float32 [B, F]."""
        return self.read(words, self.said(self.vectors))

    def said(self, vectors: Tensor) -> list[Tensor]:
        """What each word says to the place after its own, to its own and to that before, float32 [1 + words, 64] each.

        The first layer is done with this, of all words once: as it serves, a listing only adds up what its words say.

        Args:
            vectors: [1 + words, W] of any precision; the first is not read.
        """
        known = functional.pad(vectors[1:].float(), (0, 0, 1, 0))  # [1 + words, W], no word says nothing
        return [known @ weights.T for weights in torch.split(self.first.weight, VECTOR_WIDTH, dim=1)]

    def read(self, words: Tensor, said: Sequence[Tensor]) -> Tensor:
        """As `forward`, from what all words say."""
        edged = functional.pad(words, (1, 1))  # [B, R + 2]
        places = [edged[:, place : place + READ].reshape(-1) for place in range(_NEIGHBOURS)]  # [B * R] each
        before, own, after = (each.index_select(0, place) for each, place in zip(said, places, strict=True))  # [B * R, 64] each
        near = (before + own + (after + self.first.bias)).reshape(-1, READ, _WIDTH)  # [B, R, 64]
        is_word = (words > 0).float().unsqueeze(2)  # [B, R, 1]
        near = functional.relu(near) * is_word  # [B, R, 64]
        near = functional.relu(_beside(near, self.second)) * is_word  # [B, R, 64]
        # Nothing is below 0, so the largest of the words' is the largest of all.
        mean = near.sum(dim=1) / is_word.sum(dim=1).clamp(min=1.0)  # [B, 64]
        features: Tensor = functional.relu(self.last(torch.cat([near.amax(dim=1), mean], dim=1)))  # [B, F]
        return features

    def of_no_words(self) -> Tensor:
        """The features float32 [F] of a listing without words."""
        features: Tensor = self(torch.zeros(1, READ, dtype=torch.int32))[0]
        return features


def _beside(numbers: Tensor, layer: nn.Linear) -> Tensor:
    """A layer over each word's numbers and those of the words next to it, zeros beyond the edges: [B, R, N] to [B, R, 64]."""
    edged = functional.pad(numbers, (0, 0, 1, 1))  # [B, R + 2, N]
    together = torch.cat([edged[:, place : place + READ] for place in range(_NEIGHBOURS)], dim=2)  # [B, R, 3 N]
    found: Tensor = layer(together.flatten(end_dim=1)).reshape(-1, READ, layer.out_features)
    return found


def word_of_row(hashes: NDArray[np.uint32], vocabulary: Vocabulary) -> NDArray[np.int32]:
    """Which of some words each row of a table is, int32 [table rows]: its place among their hashes, from 1 on, or 0 for none."""
    words = np.zeros(vocabulary.rows, dtype=np.int32)
    found, rows = vocabulary.find(hashes)
    words[rows] = found + 1
    return words


def leading_words(tokens: Tokens, word_of_row: NDArray[np.int32]) -> NDArray[np.int32]:
    """The words' numbers among each listing's first 16 tokens, int32 [listings, R]; 0 for what is none, and beyond the last."""
    words = np.zeros((len(tokens.counts), READ), dtype=np.int32)
    listings, places = tokens.listings, tokens.places
    leading = places < READ
    words[listings[leading], places[leading]] = word_of_row[tokens.ids[leading]]
    return words


def order_features(branch: WordOrder, words: NDArray[np.int32], *, rows_max: int = 4096) -> Tensor:
    """The branch's features float32 [rows, F] of words' numbers int32 [rows, R]."""
    with torch.no_grad():
        parts = [branch(torch.from_numpy(words[start : start + rows_max])) for start in range(0, len(words), rows_max)]
    return torch.cat([torch.zeros(0, FEATURES), *parts])
