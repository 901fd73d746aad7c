"""The tokens of many rows as a sparse matrix, some fields hidden: what training reads instead of the graph."""

import dataclasses
from collections.abc import Collection

import numpy as np
from scipy.sparse import csr_matrix

from model.features import SCALED_WITH, FeatureSettings, Tokens
from model.text import FAMILIES, FAMILIES_OF_FIELD

# Only serving knows the older schemes.
_SCALED_WITH = SCALED_WITH[FeatureSettings().scheme]


def without(tokens: Tokens, fields: Collection[str]) -> Tokens:
    """The tokens that the extractor gives for the same listings without these fields."""
    families = [family for field in fields for family in FAMILIES_OF_FIELD[field]]
    kept = ~np.isin(tokens.families, families)
    slots = tokens.listings * len(FAMILIES) + _SCALED_WITH[tokens.families]
    squares = tokens.weights.astype(np.float64) ** 2
    size = len(tokens.counts) * len(FAMILIES)
    whole = np.bincount(slots, weights=squares, minlength=size)
    left = np.bincount(slots[kept], weights=squares[kept], minlength=size)
    grown = np.sqrt(whole[slots[kept]] / left[slots[kept]])  # what was scaled together with what left takes its place
    left_over = tokens.kept(kept)
    return dataclasses.replace(left_over, weights=(left_over.weights * grown).astype(np.float32))


def text_matrix(tokens: Tokens, *, table_rows: int, hidden: str | None) -> csr_matrix:
    """The rows' weights as a float64 matrix [rows, table rows], one field hidden."""
    if hidden is not None:
        tokens = without(tokens, [hidden])
    pointers = np.concatenate([[0], np.cumsum(tokens.counts)])
    shape = (len(tokens.counts), table_rows)
    matrix = csr_matrix((tokens.weights.astype(np.float64), tokens.ids, pointers), shape=shape)
    matrix.sum_duplicates()  # a word of both title and description
    return matrix
