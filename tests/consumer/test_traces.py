"""A batch in the traces and in the logs."""

import builtins
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from consumer.errors import SettingsError, TransactionAborted
from consumer.records import OutputRecord
from consumer.settings import TracesSettings
from consumer.traces import BatchTrace, Traces, open_traces
from tests.consumer.journey import Journey
from tests.examples import a_change_event, a_numbered_book, an_input_record

pytest.importorskip("opentelemetry.sdk", reason="the extra `traces` is not installed")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

MakeJourney = Callable[..., Journey]
PARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"  # the example of the W3C's page


class Recorded(Traces):
    """Traces whose finished spans are kept in memory."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        super().__init__(provider)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()


@pytest.fixture
def traces() -> Iterator[Recorded]:
    recorded = Recorded()
    yield recorded
    recorded.close()


def headers(output: OutputRecord) -> dict[str, bytes | None]:
    return dict(output.headers)


def test_a_batch_is_one_span_linked_to_its_records(traces: Recorded, journey: MakeJourney) -> None:
    """One span a batch, with its number, its offsets and a link to each context that its records brought."""
    one = journey(traces=traces, partitions=2)
    one.kafka.publish(*(a_change_event(a_numbered_book(n), headers=(("traceparent", PARENT),)) for n in range(2)), partition=1)
    one.kafka.publish(a_change_event(a_numbered_book(5)))
    one.run()
    spans = traces.spans
    assert sum(int(str((span.attributes or {})["records"])) for span in spans) == 3
    assert all(span.name == "batch" and span.end_time is not None for span in spans)
    ranges = {part for span in spans for part in str((span.attributes or {})["partitions"]).split()}
    assert ranges == {"0:0-0", "1:0-1"}
    links = [link for span in spans for link in span.links]
    assert [(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") for link in links] == [
        ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    ]


def test_a_record_keeps_its_context_and_one_without_gets_the_batchs(traces: Recorded, journey: MakeJourney) -> None:
    """`traceparent` of an output is its input's; without one, or where it is none, the batch's. A dead letter's stay."""
    one = journey(traces=traces)
    given = ((("traceparent", PARENT),), (("mine", b"1"),), (("traceparent", b"nonsense"), ("mine", b"2")))
    one.kafka.publish(*(a_change_event(a_numbered_book(n), headers=each) for n, each in enumerate(given)))
    one.kafka.publish(an_input_record(b"no listing", headers=(("traceparent", b"nonsense"),)))
    one.run()
    own = {f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}".encode() for span in traces.spans}
    kept, added, replaced, dead = one.kafka.outputs
    assert headers(kept)["traceparent"] == PARENT
    assert (headers(added)["traceparent"] or b"")[:52] in own
    assert headers(added)["mine"] == b"1"
    assert (headers(replaced)["traceparent"] or b"")[:52] in own
    assert [name for name, _ in replaced.headers].count("traceparent") == 1
    assert headers(dead)["dlq.stage"] == b"decode"
    assert headers(dead)["traceparent"] == b"nonsense"


def test_without_traces_headers_stay_as_they_were(journey: MakeJourney) -> None:
    """Off by default: no output gets a header."""
    one = journey()
    one.kafka.publish(a_change_event(a_numbered_book(1)))
    one.run()
    assert "traceparent" not in headers(one.kafka.outputs[0])


def test_a_dropped_batch_says_why(traces: Recorded, journey: MakeJourney) -> None:
    """A batch that a rewind dropped ends as an error; the one that reads its records again ends well."""
    one = journey(traces=traces)
    one.delivery.send_failures.next(TransactionAborted("fenced, says the test"))
    one.kafka.publish(a_change_event(a_numbered_book(1)))
    one.run()
    dropped, answered = traces.spans
    assert dropped.status.status_code is StatusCode.ERROR
    assert "fenced, says the test" in str(dropped.status.description)
    assert answered.status.is_ok or answered.status.status_code is StatusCode.UNSET


def test_log_lines_of_a_batch_name_it(traces: Recorded) -> None:
    """What is logged while a batch is worked on carries its number, its offsets and its trace; afterwards no more."""
    said: list[dict[str, Any]] = []

    def work() -> None:
        said.append(dict(structlog.contextvars.get_contextvars()))

    records = [replace(an_input_record(b""), partition=p, offset=o) for p, o in ((2, 7), (0, 3), (2, 8))]
    trace = traces.begin(records)
    trace.run(work)
    work()
    trace.end()
    [span] = traces.spans
    assert said == [{"batch": 1, "partitions": "0:3-3 2:7-8", "trace_id": f"{span.context.trace_id:032x}"}, {}]
    assert traces.begin(records).fields["batch"] == 2


def test_links_are_bounded(traces: Recorded) -> None:
    """A batch of ten thousand contexts has as many links as the SDK takes, each context once."""
    contexts = [f"00-{n + 1:032x}-{n + 1:016x}-01".encode() for n in range(1_000)]
    traces.begin([an_input_record(b"", headers=(("traceparent", one),)) for one in contexts + contexts]).end()
    assert len(traces.spans[0].links) == 128


@pytest.mark.parametrize(
    "value",
    [b"", b"00-" + 32 * b"0" + b"-00f067aa0ba902b7-01", PARENT.upper(), PARENT[:-1], b"ff" + PARENT[2:], b"\xff" * 55],
)
def test_what_is_no_context_gives_no_link(traces: Recorded, value: bytes) -> None:
    """Headers are anybody's bytes."""
    traces.begin([an_input_record(b"", headers=(("traceparent", value),))]).end()
    assert list(traces.spans[0].links) == []


def test_spans_go_nowhere_without_an_endpoint_and_ask_for_the_extra_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an endpoint OpenTelemetry is not imported; with one, and without the extra, the error says what to install."""
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert open_traces(TracesSettings(), version="1").begin([an_input_record(b"")]).span is None
    with pytest.raises(SettingsError, match="the extra `traces`"):
        open_traces(TracesSettings(endpoint="http://127.0.0.1:9/v1/traces"), version="1")


def test_a_collector_that_is_away_costs_no_answer(journey: MakeJourney) -> None:
    """Spans that cannot be sent are dropped; records are answered, and the end waits some seconds at most."""
    traces = open_traces(TracesSettings(endpoint="http://127.0.0.1:9/v1/traces"), version="1")
    one = journey(traces=traces)
    one.kafka.publish(a_change_event(a_numbered_book(1)))
    one.run()
    assert one.said() == [(0, 0, "PREDICTED v1")]
    started = time.monotonic()
    traces.close()
    assert time.monotonic() - started < 15


def test_a_batch_without_a_span_leaves_records_alone() -> None:
    """Off costs nothing: the very same list comes back."""
    records: list[OutputRecord] = []
    assert BatchTrace({}).onto(records) is records
