"""What the model's numbers mean for a listing, and what each offset of a batch is answered with."""

import random
from dataclasses import replace

import numpy as np
import pytest

from consumer import assemble
from consumer.batch_encoder import BatchEncoder
from consumer.records import Answer, Change, Enriched, Outcome, State, Tombstone
from consumer.task_prediction import Label, TaskPrediction
from model.bundle import TaskSpec
from model.listing import Listing
from tests.examples import a_delete, a_numbered_book, a_used_hardback, an_entry, an_update
from tests.fakes import FakeStore

A, B, C = Listing("a"), Listing("b"), Listing("c")
BANDS = ("USD <10", "USD >=10", "CNY <30", "CNY >=30")


def one_task(task: TaskSpec, rows: list[list[float]], listings: list[Listing]) -> list[TaskPrediction | None]:
    outputs = {task.name: np.array(rows, dtype=np.float32)}
    return [answer.get(task.name) for answer in assemble.predictions(outputs, listings, BatchEncoder([task]))]


def labels(*found: tuple[str, float]) -> TaskPrediction:
    return TaskPrediction.classification(tuple(Label(*one) for one in found))


# ── predictions ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_best_labels_come_first() -> None:
    """Of a single-label task the `top_k` most likely labels are given, best first; of equal ones the earlier."""
    task = TaskSpec(name="genre", kind="single", labels=("x", "y", "z", "w"), top_k=3)
    rows = [[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]
    assert one_task(task, rows, [A, B]) == [
        labels(("w", 0.4), ("z", 0.3), ("y", 0.2)),
        labels(("x", 0.25), ("y", 0.25), ("z", 0.25)),
    ]


def test_a_task_with_few_labels_gives_them_all() -> None:
    """A task with fewer labels than `top_k` gives those it has."""
    task = TaskSpec(name="genre", kind="single", labels=("x", "y"))
    assert one_task(task, [[0.9, 0.1]], [A]) == [labels(("x", 0.9), ("y", 0.1))]


def test_confidences_have_four_digits() -> None:
    """Confidences are rounded to four digits, as doubles that print short."""
    task = TaskSpec(name="genre", kind="single", labels=("x", "y"))
    assert one_task(task, [[2 / 3, 1 / 3]], [A]) == [labels(("x", 0.6667), ("y", 0.3333))]


def test_labels_above_their_own_threshold_are_given() -> None:
    """Of a multi-label task every label that reaches its threshold is given, best first; none is an empty list."""
    task = TaskSpec(name="topics", kind="multi", labels=("x", "y", "z"), thresholds=(0.5, 0.25, 0.75))
    rows = [[0.5, 0.5, 0.5], [0.4375, 0.125, 0.625], [0.625, 0.25, 0.875]]
    assert one_task(task, rows, [A, B, C]) == [
        labels(("x", 0.5), ("y", 0.5)),
        labels(),
        labels(("z", 0.875), ("x", 0.625), ("y", 0.25)),
    ]


BAND_CASES = [
    ("USD", [0.1, 0.3, 0.5, 0.1], labels(("USD >=10", 0.75), ("USD <10", 0.25))),
    ("cny", [0.1, 0.3, 0.45, 0.15], labels(("CNY <30", 0.75), ("CNY >=30", 0.25))),
    ("CNY", [0.5, 0.5, 0.0, 0.0], labels(("CNY <30", 0.5), ("CNY >=30", 0.5))),
    ("USD", [0.0, 0.5, 0.5, 0.0], labels(("USD >=10", 1.0))),
    ("GBP", [0.1, 0.3, 0.5, 0.1], None),
    (None, [0.1, 0.3, 0.5, 0.1], labels(("CNY <30", 0.5), ("USD >=10", 0.3), ("USD <10", 0.1), ("CNY >=30", 0.1))),
    ("", [0.0, 0.0, 1.0, 0.0], labels(("CNY <30", 1.0))),
]


@pytest.mark.parametrize(("currency", "row", "expected"), BAND_CASES)
def test_price_bands_are_those_of_the_listings_currency(
    currency: str | None, row: list[float], expected: TaskPrediction | None
) -> None:
    """A listing's currency chooses the bands, whose probabilities are shared out among them; one without bands gets no answer."""
    task = TaskSpec(
        name="price_band", kind="ordinal", labels=BANDS, group_field="currency", groups={"USD": (0, 2), "CNY": (2, 4)}
    )
    assert one_task(task, [row], [replace(A, currency=currency)]) == [expected]


def test_listings_of_all_currencies_share_a_batch() -> None:
    """Each row of a batch gets the bands of its own currency."""
    task = TaskSpec(
        name="price_band", kind="ordinal", labels=BANDS, group_field="currency", groups={"USD": (0, 2), "CNY": (2, 4)}
    )
    listings = [replace(A, currency=currency) for currency, _, _ in BAND_CASES]
    assert one_task(task, [row for _, row, _ in BAND_CASES], listings) == [expected for _, _, expected in BAND_CASES]


def test_an_ordinal_task_without_groups_is_read_as_a_single_one() -> None:
    """Without a field that chooses a group, all labels are in play."""
    task = TaskSpec(name="size", kind="ordinal", labels=("S", "M"))
    assert one_task(task, [[0.25, 0.75]], [replace(A, currency="USD")]) == [labels(("M", 0.75), ("S", 0.25))]


def test_what_a_listing_says_is_not_asked() -> None:
    """A task that is asked only where a field is missing gives nothing where the listing has it; empty counts as missing."""
    task = TaskSpec(name="author", kind="single", labels=("x", "y"), asked_only_where_missing="authors")
    listings = [replace(A, authors=("Austen",)), B, replace(C, authors=())]
    rows = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]
    assert one_task(task, rows, listings) == [None, labels(("y", 0.8), ("x", 0.2)), labels(("x", 0.7), ("y", 0.3))]
    assert one_task(task, rows[:1], listings[:1]) == [None], "nobody is asked"


def test_a_regression_gives_value_and_interval() -> None:
    """A regression's answer is the value with the ends of its interval."""
    task = TaskSpec(name="page_count", kind="regression")
    assert one_task(task, [[312.12347, 190, 505.5]], [A]) == [TaskPrediction.regression(312.1235, 190.0, 505.5)]


def test_each_listing_gets_all_its_tasks() -> None:
    """A listing's answers are those of every task, in the tasks' order."""
    pages = TaskSpec(name="page_count", kind="regression")
    genre = TaskSpec(name="genre", kind="single", labels=("x", "y"))
    outputs = {"genre": np.array([[1, 0], [0, 1]], np.float32), "page_count": np.array([[1, 1, 1], [2, 2, 2]], np.float32)}
    assert [list(one) for one in assemble.predictions(outputs, [A, B], BatchEncoder([pages, genre]))] == [
        ["page_count", "genre"]
    ] * 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_no_numbers_are_found(bad: float) -> None:
    """A row with NaN or infinity in any output is not finite; the rows around it are."""
    outputs = {"one": np.zeros((3, 2), np.float32), "two": np.zeros((3, 4), np.float32)}
    outputs["two"][1, 3] = bad
    assert assemble.finite_rows(outputs).tolist() == [True, False, True]


# ── collapse ────────────────────────────────────────────────────────────────────────────────────────────────────


def update(version: int, *, offset: int = 0, key: str = "bd-1") -> Change:
    return an_update(a_used_hardback(key, version=version), offset=offset)


def test_the_newest_version_counts() -> None:
    """Of each listing the highest version counts, wherever it stands in the batch."""
    first, second, other = update(3, offset=0), update(2, offset=1), update(1, offset=2, key="db-2")
    assert assemble.collapse([first, second, other]) == {"bd-1": first, "db-2": other}


def test_of_equal_versions_the_later_counts() -> None:
    """Of equal versions the one that comes later counts."""
    first, second = update(3, offset=0), update(3, offset=1)
    assert assemble.collapse([first, second])["bd-1"] is second


def test_of_equal_versions_a_deletion_counts() -> None:
    """A deletion stands against an update of its version on either side of it, as it does in the store."""
    deletion = a_delete(version=3, offset=1)
    assert assemble.collapse([update(3), deletion, update(3, offset=2)])["bd-1"] is deletion


def states_of(change: Change) -> State:
    if change.listing is None:
        return Tombstone(change.listing_id, change.version)
    return an_entry(change.listing_id, version=change.version, label=str(change.record.offset))


def some_changes(chance: random.Random, count: int) -> list[Change]:
    changes: list[Change] = []
    for offset in range(count):
        key, version = f"k{chance.randrange(3)}", chance.randrange(4)
        delete = chance.random() < 0.4
        changes.append(a_delete(key, version=version, offset=offset) if delete else update(version, offset=offset, key=key))
    return changes


@pytest.mark.parametrize("seed", range(100))
def test_a_batch_leaves_in_the_store_what_its_records_one_by_one_would(seed: int) -> None:
    """Where batches are cut does not matter: writing the collapsed batch leaves the states that single writes would."""
    chance = random.Random(seed)
    changes = some_changes(chance, 10)
    whole, singly = FakeStore(), FakeStore()
    for store in (whole, singly):
        store.write([states_of(change) for change in assemble.collapse(changes[:4]).values()], now_ms=0)
    whole.write([states_of(change) for change in assemble.collapse(changes[4:]).values()], now_ms=0)
    for change in changes[4:]:
        singly.write([states_of(change)], now_ms=0)
    assert whole.states == singly.states


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────

P, R, S = Outcome.PREDICTED, Outcome.REUSED, Outcome.SUPERSEDED
NEWER = an_entry(version=90, epoch=3)
NEWER_MODEL = an_entry(version=2, epoch=4, label="Poetry")


def entry(version: int) -> Enriched:
    return an_entry(version=version)


def gone(version: int) -> Tombstone:
    return Tombstone("bd-1", version)


# name: changes, what the batch proposed, what the store held afterwards, the answers.
ANSWERS: dict[str, tuple[list[Change], tuple[Outcome, State], State, list[tuple[Outcome, State]]]] = {
    "an update": ([update(2)], (P, entry(2)), entry(2), [(P, entry(2))]),
    "an update that is reused": ([update(2)], (R, entry(2)), entry(2), [(R, entry(2))]),
    "a deletion": ([a_delete(version=2)], (P, gone(2)), gone(2), [(P, gone(2))]),
    "older, then newer": ([update(1), update(2)], (P, entry(2)), entry(2), [(S, entry(2)), (P, entry(2))]),
    "newer, then older": ([update(2), update(1)], (R, entry(2)), entry(2), [(R, entry(2)), (S, entry(2))]),
    "equal versions": ([update(2), update(2)], (P, entry(2)), entry(2), [(P, entry(2)), (P, entry(2))]),
    "deletion, then update": ([a_delete(version=1), update(2)], (P, entry(2)), entry(2), [(S, gone(1)), (P, entry(2))]),
    "update, then deletion": ([update(1), a_delete(version=2)], (P, gone(2)), gone(2), [(S, gone(2)), (P, gone(2))]),
    "deletion, then stale update": ([a_delete(version=2), update(1)], (P, gone(2)), gone(2), [(S, gone(2)), (S, gone(2))]),
    "update, then stale deletion": ([update(2), a_delete(version=1)], (P, entry(2)), entry(2), [(P, entry(2)), (S, entry(2))]),
    "a stale update": ([update(2)], (P, entry(2)), NEWER, [(S, NEWER)]),
    "a stale deletion": ([a_delete(version=2)], (P, gone(2)), NEWER, [(S, NEWER)]),
    "an update after the listing is gone": ([update(2)], (P, entry(2)), gone(9), [(S, gone(9))]),
    "a deletion after a newer one": ([a_delete(version=2)], (P, gone(2)), gone(9), [(S, gone(9))]),
    "a newer model was there": ([update(2)], (P, entry(2)), NEWER_MODEL, [(S, NEWER_MODEL)]),
}


@pytest.mark.parametrize(("changes", "proposed", "stored", "expected"), ANSWERS.values(), ids=ANSWERS.keys())
def test_how_a_batch_is_answered(
    changes: list[Change], proposed: tuple[Outcome, State], stored: State, expected: list[tuple[Outcome, State]]
) -> None:
    """Each change is answered with what the store holds, and is superseded where that is not what it said itself."""
    numbered = [replace(change, record=replace(change.record, offset=offset)) for offset, change in enumerate(changes)]
    found = assemble.answers(numbered, proposed={"bd-1": proposed}, stored={"bd-1": stored})
    # An update whose batch ends in the listing's deletion is a null value, in which no outcome can be seen.
    assert [visible(one) for one in found] == [
        visible(Answer(change.record, outcome, state)) for change, (outcome, state) in zip(numbered, expected, strict=True)
    ]


def visible(answer: Answer) -> Answer:
    return replace(answer, outcome=Outcome.PREDICTED) if isinstance(answer.state, Tombstone) else answer


@pytest.mark.parametrize("seed", range(100))
def test_the_last_answer_is_what_the_store_holds(seed: int) -> None:
    """Whatever comes in a batch and whatever the store held, each change has one answer and the last of a key is its state."""
    chance = random.Random(seed)
    store = FakeStore()
    for _ in range(3):
        changes = some_changes(chance, chance.randrange(1, 9))
        winners = assemble.collapse(changes)
        proposed = {key: (chance.choice((P, R)), states_of(change)) for key, change in winners.items()}
        held = store.write([state for _, state in proposed.values()], now_ms=0)
        answers = assemble.answers(changes, proposed=proposed, stored={state.listing_id: state for state in held})
        assert [answer.record for answer in answers] == [change.record for change in changes]
        assert all(answer.state.listing_id == change.listing_id for answer, change in zip(answers, changes, strict=True))
        last = {answer.state.listing_id: answer.state for answer in answers}
        assert last == {key: store.states[key] for key in last}


def test_listings_do_not_mix() -> None:
    """Answers of several listings in one batch are each their own."""
    books = [a_numbered_book(number) for number in range(3)]
    changes = [an_update(book, offset=number) for number, book in enumerate(books)]
    states: list[State] = [an_entry(book.listing_id, version=1, label=book.listing_id) for book in books]
    proposed = {state.listing_id: (P, state) for state in states}
    found = assemble.answers(changes, proposed=proposed, stored={state.listing_id: state for state in states})
    assert found == [Answer(change.record, P, state) for change, state in zip(changes, states, strict=True)]
