"""The search for the records that a batch fails on: how many passes it costs, whom it blames, and what of memory."""

from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.bisection import Rows, Sifted, sift
from consumer.inference import InferenceFailed, OutOfMemory


class Model:
    """Fails on a batch that holds one of `poison`, or has more rows than fit; else answers each row with its square."""

    def __init__(self, poison: set[int], *, fits: int = 10_000) -> None:
        self.poison, self.fits, self.passes = poison, fits, list[int]()

    def run(self, rows: Rows) -> list[int]:
        self.passes.append(len(rows))
        if len(rows) > self.fits:
            raise OutOfMemory(f"{len(rows)} rows do not fit")
        if self.poison.intersection(rows):
            raise InferenceFailed("poisoned")
        return [row * row for row in rows]

    def sift(self, count: int) -> Sifted[list[int]]:
        return sift(count, self.run, failures=InferenceFailed)


def answers(sifted: Sifted[list[int]]) -> dict[int, int]:
    found = [pair for rows, squares in sifted.parts for pair in zip(rows, squares, strict=True)]
    assert len(dict(found)) == len(found), "a row was answered twice"
    return dict(found)


def bound(count: int) -> int:
    return ceil(log2(count)) + 1


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256])
def test_one_culprit_costs_a_binary_search_and_one_pass(count: int) -> None:
    """Wherever it stands, the others are answered within ceil(log2 n) + 1 passes more than the one that failed."""
    for culprit in range(count):
        model = Model({culprit})
        sifted = model.sift(count)
        assert list(sifted.blamed) == [culprit]
        assert answers(sifted) == {row: row * row for row in range(count) if row != culprit}
        assert len(model.passes) <= 1 + bound(count)


def test_a_sound_batch_takes_one_pass() -> None:
    """Nothing is searched for where nothing failed."""
    model = Model(set())
    assert answers(model.sift(256)) == {row: row * row for row in range(256)}
    assert model.passes == [256]


@given(st.data())
def test_any_number_of_culprits_is_found(data: st.DataObject) -> None:
    """Each row is blamed or answered as it would be alone; k culprits cost at most k times what one costs."""
    count = data.draw(st.integers(1, 300))
    poison = data.draw(st.sets(st.integers(0, count - 1), max_size=min(count, 40)))
    model = Model(poison)
    sifted = model.sift(count)
    assert set(sifted.blamed) == poison
    assert answers(sifted) == {row: row * row for row in range(count) if row not in poison}
    assert len(model.passes) <= 1 + len(poison) * bound(count)


def test_a_batch_that_does_not_fit_is_halved_without_blame() -> None:
    """Out of memory is first taken for a matter of size."""
    model = Model(set(), fits=128)
    sifted = model.sift(256)
    assert (sifted.blamed, model.passes) == ({}, [256, 128, 128])
    assert len(answers(sifted)) == 256


def test_a_culprit_in_a_batch_that_did_not_fit_is_found() -> None:
    """After the halving the half that fails is searched as any batch."""
    model = Model({77}, fits=128)
    sifted = model.sift(256)
    assert list(sifted.blamed) == [77]
    assert len(answers(sifted)) == 255
    assert len(model.passes) <= 1 + 2 + bound(128)


def test_an_accident_blames_nobody() -> None:
    """A pass that fails once and not again was no record's fault."""
    model = Model(set())
    truthful = model.run

    def failing_once(rows: Rows) -> list[int]:
        answer = truthful(rows)
        if len(model.passes) == 1:
            raise InferenceFailed("the device was reset")
        return answer

    sifted = sift(8, failing_once, failures=InferenceFailed)
    assert sifted.blamed == {}
    assert len(answers(sifted)) == 8


def test_what_is_no_failure_of_a_batch_is_raised() -> None:
    """An error of another kind is not searched for among the records."""

    def broken(_: Rows) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        sift(8, broken, failures=InferenceFailed)
