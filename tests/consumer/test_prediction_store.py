"""What the store promises, proved on a fake server in this process, on a real Redis and on a real Redis Cluster."""

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import redis
from fakeredis import TcpFakeServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumer.batch_encoder import BatchEncoder, Said
from consumer.errors import DependencyUnavailable
from consumer.prediction_store import PredictionStore
from consumer.predictions import Predictions
from consumer.records import CoverUse, Enriched, State, Tombstone
from consumer.task_prediction import Label, TaskPrediction
from model.bundle import TaskSpec
from tests.journey.running import reader_of

NOW_MS = 1_700_000_000_000
MakeStore = Callable[..., PredictionStore]


def novel(
    listing_id: str = "bd-1", *, version: int = 17, epoch: int = 3, label: str = "Fiction", content: str = "c0ffee"
) -> Enriched:
    """A listing whose department, topics and page count were predicted."""
    return Enriched(listing_id, version, content, predicted(label), "books@1.2.0", epoch)


ENCODER = BatchEncoder(
    (
        TaskSpec(name="department", kind="single", labels=("Fiction", "Poetry", '历史 "quoted" \n')),
        TaskSpec(name="topics", kind="multi", labels=("stars",), thresholds=(0.5,)),
        TaskSpec(name="page_count", kind="regression"),
    )
)


def predicted(label: str = "Fiction") -> Predictions:
    """What a model with these tasks says, as it leaves a batch."""
    department = ENCODER.tasks[0].labels.index(label)
    values = np.array([[[312.0, 190.5, 505.0]]], dtype=np.float32)
    return ENCODER.encode(Said(np.array([[2, 0, 0]]), np.array([department, 2]), np.array([8300, 1]), values))[0]


def recalled(label: str = "Fiction") -> Predictions:
    """The same, as it comes from a store that is taken to hold it."""
    found = ENCODER.recall([predicted(label).compact])[0]
    assert found is not None
    return found


@pytest.fixture(scope="module")
def fake_url() -> Iterator[str]:
    server = TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    server.shutdown()
    server.server_close()
    thread.join(timeout=5)


@pytest.fixture(params=["fake", *(pytest.param(name, marks=pytest.mark.integration) for name in ("real", "cluster"))])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "cluster":
        return str(request.getfixturevalue("redis_cluster").url)
    return str(request.getfixturevalue("fake_url" if request.param == "fake" else "redis_url"))


@pytest.fixture
def make_store(url: str) -> Iterator[MakeStore]:
    made: list[PredictionStore] = []

    def make(*, key_prefix: str = "", ttl_seconds: int | None = None) -> PredictionStore:
        prefix = key_prefix or f"test-{uuid.uuid4().hex[:10]}:"
        made.append(PredictionStore(url, key_prefix=prefix, ttl_seconds=ttl_seconds))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def store(make_store: MakeStore) -> PredictionStore:
    return make_store()


@pytest.fixture
def client(url: str) -> Iterator[redis.Redis]:
    """What another reader of the store sees."""
    reader = reader_of(url)
    yield reader
    reader.close()


@pytest.mark.parametrize("cover", list(CoverUse))
def test_what_became_of_the_cover_is_kept(store: PredictionStore, cover: CoverUse) -> None:
    """Whether a prediction saw the listing's cover comes back as it was written."""
    state = replace(novel(), cover=cover)
    store.write([state], now_ms=NOW_MS)
    assert store.read(["bd-1"]) == [state]


def test_the_engine_that_predicted_is_kept(store: PredictionStore) -> None:
    """The engine's fingerprint comes back as it was written, also for a prediction that still holds."""
    state = replace(novel(), engine="0123456789abcdef0123456789abcdef")
    store.write([state], now_ms=NOW_MS)
    assert store.read(["bd-1"]) == [state]
    assert store.unchanged({"bd-1": state.content}, model_epoch=state.model_epoch, recall=ENCODER.recall) == {
        "bd-1": replace(state, version=0)
    }


def test_what_was_written_is_read(store: PredictionStore) -> None:
    """What was written is read, number for number and character for character."""
    assert store.write([novel("a"), Tombstone("b", 4)], now_ms=NOW_MS) == [novel("a"), Tombstone("b", 4)]
    assert store.read(["b", "nothing", "a"]) == [Tombstone("b", 4), None, novel("a")]


def test_the_layout_is_the_contracts(make_store: MakeStore, client: redis.Redis) -> None:
    """The keys and fields are those that readers of the contract rely on."""
    prefix = f"test-{uuid.uuid4().hex[:10]}:"
    store = make_store(key_prefix=prefix)
    store.write([novel("bd-1"), Tombstone("bd-2", -4)], now_ms=NOW_MS)
    assert client.hgetall(f"{prefix}{{bd-1}}") == {
        "department": '{"labels":[{"label":"Fiction","confidence":0.83},{"label":"历史 \\"quoted\\" \\n","confidence":0.0001}]}',
        "topics": '{"labels":[]}',
        "page_count": '{"value":312.0,"low":190.5,"high":505.0}',
        "_version": "17",
        "_model": "books@1.2.0",
        "_model_epoch": "3",
        "_content": "c0ffee",
        "_updated_ms": str(NOW_MS),
        "_compact": predicted().compact.decode(),
    }
    assert client.hgetall(f"{prefix}{{bd-2}}") == {"_version": "-4", "_deleted": "1"}


def test_an_update_replaces_the_whole_entry(store: PredictionStore) -> None:
    """The field of a task that the new model does not have is gone after an update, and so is a tombstone's mark."""
    store.write([novel(version=1)], now_ms=NOW_MS)
    newer = Enriched("bd-1", 2, "beef", {"genre": TaskPrediction.classification((Label("Poetry", 0.5),))}, "books@2.0.0", 4)
    store.write([newer], now_ms=NOW_MS)
    assert store.read(["bd-1"]) == [newer]
    store.write([Tombstone("bd-1", 3)], now_ms=NOW_MS)
    assert store.read(["bd-1"]) == [Tombstone("bd-1", 3)]
    store.write([novel(version=4)], now_ms=NOW_MS)
    assert store.read(["bd-1"]) == [novel(version=4)]


WRITTEN = [
    (novel(version=1), novel(version=2)),
    (novel(version=2, epoch=1), novel(version=2, epoch=2)),
    (novel(version=2, epoch=9), novel(version=10, epoch=1)),
    (novel(version=9), novel(version=10)),
    (novel(version=2, label="Poetry"), novel(version=2)),
    (novel(version=2**53), novel(version=2**53 + 1)),
    (novel(version=-10), novel(version=-9)),
    (novel(version=-1), novel(version=0)),
    (novel(version=-(2**63)), novel(version=2**63 - 1)),
    (novel(version=7, epoch=2**53), novel(version=7, epoch=2**53 + 1)),
    (novel(version=2), Tombstone("bd-1", 2)),
    (novel(version=2, epoch=9), Tombstone("bd-1", 3)),
    (Tombstone("bd-1", 3), Tombstone("bd-1", 3)),
    (Tombstone("bd-1", 3), novel(version=4)),
]
REFUSED = [
    (novel(version=2), novel(version=1)),
    (novel(version=2, epoch=2), novel(version=2, epoch=1)),
    (novel(version=10), novel(version=9)),
    (novel(version=2**53 + 1), novel(version=2**53)),
    (novel(version=-9), novel(version=-10)),
    (novel(version=0), novel(version=-1)),
    (novel(version=2**63 - 1), novel(version=-(2**63))),
    (novel(version=7, epoch=2**53 + 1), novel(version=7, epoch=2**53)),
    (novel(version=2), Tombstone("bd-1", 1)),
    (Tombstone("bd-1", 3), Tombstone("bd-1", 2)),
    (Tombstone("bd-1", 3), novel(version=3, epoch=99)),
    (Tombstone("bd-1", 3), novel(version=2)),
]


@pytest.mark.parametrize(("stored", "offered"), WRITTEN)
def test_what_is_not_older_is_written(store: PredictionStore, stored: State, offered: State) -> None:
    """An update or delete that is not older than what is stored is written, and is what `write` returns."""
    store.write([stored], now_ms=NOW_MS)
    held = store.write([offered], now_ms=NOW_MS)
    assert held[0] is offered
    assert store.read(["bd-1"]) == [offered]


@pytest.mark.parametrize(("stored", "offered"), REFUSED)
def test_what_is_older_is_refused(store: PredictionStore, stored: State, offered: State) -> None:
    """An older update or delete changes nothing, and `write` returns the newer state that stands."""
    store.write([stored], now_ms=NOW_MS)
    assert store.write([offered], now_ms=NOW_MS) == [stored]
    assert store.read(["bd-1"]) == [stored]


def test_each_listing_of_a_batch_is_guarded_alone(store: PredictionStore) -> None:
    """In one batch, some listings are written and others refused, and the answers keep the batch's order."""
    store.write([novel("b", version=9), Tombstone("d", 9)], now_ms=NOW_MS)
    batch: list[State] = [novel("a"), novel("b", version=8), Tombstone("c", 1), novel("d", version=9), novel("e")]
    held = [novel("a"), novel("b", version=9), Tombstone("c", 1), Tombstone("d", 9), novel("e")]
    assert store.write(batch, now_ms=NOW_MS) == held
    assert store.read(["a", "b", "c", "d", "e"]) == held


def test_unchanged_listings_are_those_whose_content_and_model_are_the_same(store: PredictionStore) -> None:
    """Only an entry of the same content, made by the same model and not deleted, is unchanged."""
    store.write(
        [
            novel("same", content="aa"),
            novel("other-content", content="bb"),
            novel("other-model", content="aa", epoch=2),
            Tombstone("deleted", 17),
        ],
        now_ms=NOW_MS,
    )
    names = ["other-content", "other-model", "deleted", "never-seen", "same"]
    found = store.unchanged(dict.fromkeys(names, "aa"), model_epoch=3, recall=ENCODER.recall)
    assert found == {"same": novel("same", version=0, content="aa")}
    assert store.unchanged({}, model_epoch=3, recall=ENCODER.recall) == {}


def test_an_unchanged_listing_is_written_without_its_tasks(make_store: MakeStore, client: redis.Redis) -> None:
    """Answers that came from the store are not sent again: its fields of the tasks stay as they are, the others are replaced."""
    prefix = f"test-{uuid.uuid4().hex[:10]}:"
    store = make_store(key_prefix=prefix)
    store.write([novel(version=1)], now_ms=NOW_MS)
    client.hset(f"{prefix}{{bd-1}}", "topics", "untouched")
    newer = replace(novel(version=2), predictions=recalled())
    assert store.write([newer], now_ms=NOW_MS + 1)[0] is newer
    held = client.hgetall(f"{prefix}{{bd-1}}")
    assert (held["topics"], held["_version"], held["_updated_ms"]) == ("untouched", "2", str(NOW_MS + 1))


@pytest.mark.parametrize(
    "stored",
    [
        None,
        Tombstone("bd-1", 1),
        novel(version=1, content="beef"),
        novel(version=1, label="Poetry"),
        replace(novel(version=1), engine="0123456789abcdef"),
        replace(novel(version=1), predictions=dict(predicted())),
    ],
)
def test_what_the_store_no_longer_holds_is_sent_whole(store: PredictionStore, stored: State | None) -> None:
    """Another process wrote something else meanwhile: the listing is written with all its tasks, as if it were new."""
    store.write([stored] if stored else [], now_ms=NOW_MS)
    newer = replace(novel(version=2), predictions=recalled())
    others: list[State] = [novel("a"), newer, Tombstone("c", 1)]
    assert store.write(others, now_ms=NOW_MS)[1] is newer
    assert store.read(["a", "bd-1", "c"]) == [novel("a"), novel(version=2), Tombstone("c", 1)]


def test_a_newer_listing_is_not_replaced_by_an_unchanged_one(store: PredictionStore) -> None:
    """The guard stands before anything else."""
    store.write([novel(version=3, content="beef")], now_ms=NOW_MS)
    late = replace(novel(version=2), predictions=recalled())
    assert store.write([late], now_ms=NOW_MS) == [novel(version=3, content="beef")]
    assert store.read(["bd-1"]) == [novel(version=3, content="beef")]


def test_an_empty_batch_costs_nothing(store: PredictionStore) -> None:
    """An empty batch is written and read without asking the store."""
    assert store.write([], now_ms=NOW_MS) == []
    assert store.read([]) == []


def test_a_batch_holds_a_listing_once(store: PredictionStore) -> None:
    """Two states of one listing in a batch are the caller's bug."""
    with pytest.raises(AssertionError, match="a batch holds a listing once"):
        store.write([novel(version=1), novel(version=2)], now_ms=NOW_MS)


def test_a_task_cannot_take_a_field_of_the_store(store: PredictionStore) -> None:
    """A task whose name starts with an underscore is refused: it could replace `_version`."""
    bad = Enriched("bd-1", 1, "", {"_version": TaskPrediction.classification(())}, "books@1.2.0", 1)
    with pytest.raises(ValueError, match="without an underscore in front, found '_version'"):
        store.write([bad], now_ms=NOW_MS)


def test_entries_live_as_long_as_the_setting_says(make_store: MakeStore, client: redis.Redis) -> None:
    """Each write starts the time to live again, and a store without one takes it away."""
    prefix = f"test-{uuid.uuid4().hex[:10]}:"
    key = f"{prefix}{{bd-1}}"
    make_store(key_prefix=prefix, ttl_seconds=3600).write([novel(version=1)], now_ms=NOW_MS)
    assert 3590 <= int(client.ttl(key)) <= 3600
    make_store(key_prefix=prefix).write([Tombstone("bd-1", 2)], now_ms=NOW_MS)
    assert client.ttl(key) == -1


def test_a_store_that_forgot_its_scripts_is_told_again(store: PredictionStore, client: redis.Redis) -> None:
    """After a restart the store knows no script; the next call loads it and succeeds."""
    store.write([novel(version=1)], now_ms=NOW_MS)
    client.script_flush()
    assert store.write([novel(version=2)], now_ms=NOW_MS) == [novel(version=2)]
    assert store.unchanged({"bd-1": "c0ffee"}, model_epoch=3, recall=ENCODER.recall) == {"bd-1": novel(version=0)}


def test_what_others_wrote_is_overwritten_or_named(make_store: MakeStore, client: redis.Redis) -> None:
    """A hash without a version is overwritten; one whose predictions cannot be read is unknown, and named when read."""
    prefix = f"test-{uuid.uuid4().hex[:10]}:"
    store = make_store(key_prefix=prefix)
    client.hset(f"{prefix}{{bd-1}}", mapping={"title": "Emma"})
    assert store.write([novel()], now_ms=NOW_MS) == [novel()]
    client.hset(f"{prefix}{{bd-1}}", mapping={"topics": "[broken", "_compact": "broken"})
    assert store.unchanged({"bd-1": "c0ffee"}, model_epoch=3, recall=ENCODER.recall) == {}
    with pytest.raises(DependencyUnavailable, match="holds what this service did not write"):
        store.read(["bd-1"])
    assert store.write([novel()], now_ms=NOW_MS) == [novel()]


def test_a_key_of_another_type_is_an_error_that_names_it(make_store: MakeStore, client: redis.Redis) -> None:
    """A key of another type stops the write with the store's own words."""
    prefix = f"test-{uuid.uuid4().hex[:10]}:"
    client.set(f"{prefix}{{bd-1}}", "text")
    with pytest.raises(DependencyUnavailable, match=r"redis is not available: .*WRONGTYPE"):
        make_store(key_prefix=prefix).write([novel()], now_ms=NOW_MS)


def test_a_store_that_answers_passes_the_check(store: PredictionStore) -> None:
    """The check of a store that answers and forbids nothing returns."""
    store.check()


VERSIONS = st.sampled_from([-(2**63), -10, -9, -1, 0, 1, 9, 10, 11, 99, 100, 2**53, 2**53 + 1, 2**63 - 1])
EPOCHS = st.sampled_from([0, 1, 9, 10, 2**53, 2**53 + 1])
NAMES = st.sampled_from(["a", "b{x}", "ç"])
TASKS = st.dictionaries(
    st.sampled_from(["genre", "pages", "语言"]),
    st.one_of(
        st.builds(TaskPrediction.classification, st.lists(st.builds(Label, st.text(max_size=3), st.floats(0, 1))).map(tuple)),
        st.builds(TaskPrediction.regression, value=st.floats(-9, 9), low=st.none(), high=st.floats(-9, 9)),
    ),
)
STATES = st.one_of(
    st.builds(
        Enriched,
        listing_id=NAMES,
        version=VERSIONS,
        content=st.sampled_from(["x", "y"]),
        predictions=TASKS | st.sampled_from([predicted(), predicted("Poetry"), recalled(), recalled("Poetry")]),
        model=st.just("books@1.2.0"),
        model_epoch=EPOCHS,
        cover=st.sampled_from(CoverUse),
        engine=st.sampled_from([None, "0123", "4567"]),
    ),
    st.builds(Tombstone, listing_id=NAMES, version=VERSIONS),
)
BATCHES = st.lists(STATES, max_size=3, unique_by=lambda state: state.listing_id)


def held_after(stored: State | None, offered: State) -> State:
    """The rules of the guard, said once more and as plainly as can be."""
    if stored is None or stored.version < offered.version:
        return offered
    if stored.version > offered.version:
        return stored
    if isinstance(offered, Tombstone):
        return offered
    if isinstance(stored, Tombstone) or stored.model_epoch > offered.model_epoch:
        return stored
    return offered


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(BATCHES, max_size=8))
def test_any_history_follows_the_rules(make_store: MakeStore, batches: list[list[State]]) -> None:
    """After any history of batches the store holds, and `write` returns, what the rules say."""
    store = make_store()
    model: dict[str, State] = {}
    for batch in batches:
        for state in batch:
            model[state.listing_id] = held_after(model.get(state.listing_id), state)
        assert store.write(batch, now_ms=NOW_MS) == [model[state.listing_id] for state in batch]
    names = ["a", "b{x}", "ç"]
    assert store.read(names) == [model.get(name) for name in names]
    live = {name: state for name, state in model.items() if isinstance(state, Enriched)}
    for epoch in {state.model_epoch for state in live.values()}:
        assert store.unchanged(dict.fromkeys(names, "x"), model_epoch=epoch, recall=ENCODER.recall) == {
            name: replace(state, version=0, cover=CoverUse.NONE)
            for name, state in live.items()
            if (state.content, state.model_epoch) == ("x", epoch) and isinstance(state.predictions, Predictions)
        }
    store.close()
