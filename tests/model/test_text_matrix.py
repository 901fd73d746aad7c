"""What training reads of a listing whose fields are hidden is what serving makes of one that lacks them."""

import dataclasses
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the train extra is not installed")

from model.text import INPUT_FIELDS
from model.text_matrix import text_matrix, without
from tests.model.examples import a_chinese_classic, a_novel, an_empty_listing, an_extractor

EXTRACTOR = an_extractor()


@pytest.mark.parametrize("field", INPUT_FIELDS)
def test_a_hidden_field_is_a_missing_field(field: str) -> None:
    """Token by token, the listings around it too; where authors are hidden, the title's words take the whole length."""
    listings = [a_chinese_classic(), a_novel(), an_empty_listing()]
    missing: dict[str, Any] = {field: () if field == "authors" else None}
    absent = [dataclasses.replace(each, **missing) for each in listings]
    hidden, expected = without(EXTRACTOR.tokens(listings), [field]), EXTRACTOR.tokens(absent)
    assert len(hidden.ids) < len(EXTRACTOR.tokens(listings).ids)
    for name in ("ids", "families", "counts", "words"):
        np.testing.assert_array_equal(getattr(hidden, name), getattr(expected, name))
    np.testing.assert_allclose(hidden.weights, expected.weights, rtol=1e-6)
    if field != "authors":  # nothing was scaled together with it
        np.testing.assert_array_equal(hidden.weights, expected.weights)


def test_hidden_authors_leave_no_trace_in_the_matrix() -> None:
    """Neither a token nor the length of the title's words says how long the authors' names were."""
    one, other = (
        text_matrix(EXTRACTOR.tokens([a_novel(authors=authors)]), table_rows=EXTRACTOR.vocabulary.rows, hidden="authors")
        for authors in (("Charles Dickens",), ())
    )
    np.testing.assert_allclose(one.toarray(), other.toarray(), rtol=1e-6)
