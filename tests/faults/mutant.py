"""The service with one of its protections taken out: `python -m tests.faults.mutant NAME` runs what `consumer run` runs.

Each mutation is what a careless change might do. `test_mutations.py` shows that the fault tests notice.
"""

import ctypes
import os
import sys
from collections.abc import Callable

from confluent_kafka import Consumer

from consumer import __main__ as command
from consumer import covers, prediction_store, service
from consumer.delivery import AtLeastOnce
from consumer.kafka import KafkaSource
from consumer.pipeline import Pipeline
from consumer.redis_server import Script
from model.features import FeatureSettings


def no_fencing() -> None:
    """Offsets go into the transaction without the member's identity and generation, as before KIP-447."""

    def anonymous(source: KafkaSource) -> object:
        settings = {"bootstrap.servers": _setting("BOOTSTRAP_SERVERS"), "group.id": _setting("GROUP_ID")}
        return Consumer(settings).consumer_group_metadata()  # a stranger's: generation -1, which the broker lets pass

    KafkaSource.group_metadata = anonymous  # type: ignore[method-assign]


def no_guard() -> None:
    """The store takes every write, whatever it holds."""
    guarded = prediction_store._WRITE.source
    asked = "if refuses(stored, version, epoch) then"
    open_to_all = guarded.replace(asked, "if false then")
    assert open_to_all != guarded
    prediction_store._WRITE = Script(open_to_all)  # type: ignore[misc]


def no_transaction() -> None:
    """Answers first, then offsets, with nothing around the two."""
    service.open_delivery = lambda kafka, _, *, source, **_rest: AtLeastOnce(kafka, source=source)  # type: ignore[assignment]


def no_drain() -> None:
    """SIGTERM ends the loop at once; what is in flight and in the open transaction is left to its fate."""
    Pipeline._drain = lambda self: None  # type: ignore[method-assign]


def store_last() -> None:
    """Redis is written after the topic was committed, instead of before: a kill between the two leaves it behind."""
    late: list[Callable[[], object]] = []
    write, committed = prediction_store.PredictionStore.write, Pipeline._committed

    def later(store: prediction_store.PredictionStore, states: list[object], *, now_ms: int) -> list[object]:
        late.append(lambda: write(store, states, now_ms=now_ms))  # type: ignore[arg-type]
        return list(states)

    def then(pipeline: Pipeline, positions: dict[tuple[str, int], int]) -> None:
        committed(pipeline, positions)
        while late:
            late.pop(0)()

    prediction_store.PredictionStore.write = later  # type: ignore[assignment]
    Pipeline._committed = then  # type: ignore[method-assign]


def deadly_covers() -> None:
    """A decoder with a hole: a cover that holds `DEADLY` makes it read address 0, in the service and in its children alike."""
    decode = covers.decode_cover

    def decode_or_die(cover: bytes, settings: FeatureSettings) -> object:
        if DEADLY in cover:
            ctypes.string_at(0)
        return decode(cover, settings)

    covers.decode_cover = decode_or_die  # type: ignore[assignment]


MUTATIONS = {
    mutation.__name__: mutation for mutation in (no_fencing, no_guard, no_transaction, no_drain, store_last, deadly_covers)
}
DEADLY = b"\xde\xad\xc0\xde"


def _setting(name: str) -> str:
    return os.environ[f"CONSUMER_KAFKA__{name}"]


if __name__ == "__mp_main__":  # a child process of the mutant
    MUTATIONS[os.environ["MUTATION"]]()
if __name__ == "__main__":
    os.environ["MUTATION"] = sys.argv.pop(1)
    MUTATIONS[os.environ["MUTATION"]]()
    sys.argv.append("run")
    command.main()
