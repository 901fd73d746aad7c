"""A batch in the traces and in the logs: one span each, linked to the contexts of its records, and its name in every log line.

A record's context comes in its header `traceparent` (W3C Trace Context) and goes out in it: a record that has none gets the
batch's, one that has keeps its own, so that its trace stays whole from its producer to the last reader; dead letters are left
as they came. Links lead from the batch to the traces of its records (OpenTelemetry's semantic conventions for messaging).

OpenTelemetry is imported only where `traces.endpoint` is set; it comes with the extra `traces`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import structlog

from consumer.errors import SettingsError
from consumer.records import InputRecord, OutputRecord
from consumer.settings import TracesSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Link, Span

P = ParamSpec("P")
T = TypeVar("T")

HEADER = "traceparent"
LINKS_MAX = 128  # the SDK's own limit
_FLUSH_MS = 3_000
# Version 00; a later one may have more after it. Neither id is all zeros.
_CONTEXT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class BatchTrace:
    """One batch's way, from its start to `end`.

    Attributes:
        fields: what each log line of it carries: batch (a number of this process), partitions (their offsets), trace_id.
        context: the value of `traceparent` for records that have none.
    """

    fields: Mapping[str, str | int]
    span: "Span | None" = None
    context: bytes | None = None

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls; what is logged meanwhile, on this thread, carries `fields`."""
        with structlog.contextvars.bound_contextvars(**self.fields):
            return call(*args, **kwargs)

    def onto(self, records: list[OutputRecord]) -> list[OutputRecord]:
        """Puts the batch's context into the headers of those that carry none."""
        context = self.context
        if context is None:
            return records
        return [one if _context(one) else replace(one, headers=(*_others(one), (HEADER, context))) for one in records]

    def end(self, failure: str | None = None) -> None:
        """The batch was answered, or dropped for the reason given."""
        if self.span is None:
            return
        if failure is not None:
            from opentelemetry.trace import Status, StatusCode

            self.span.set_status(Status(StatusCode.ERROR, failure))
        self.span.end()


class Traces:
    """Begins batches. Without a provider there are no spans, and batches have their log fields alone."""

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        self._provider = provider
        self._tracer = None if provider is None else provider.get_tracer("listing-enricher")
        self._numbers = count(1)

    def begin(self, records: Sequence[InputRecord]) -> BatchTrace:
        """A batch is on its way; its records are at least one, in the order read."""
        fields: dict[str, str | int] = {"batch": next(self._numbers), "partitions": _ranges(records)}
        if self._tracer is None:
            return BatchTrace(fields)
        span = self._tracer.start_span("batch", links=_links(records), attributes={**fields, "records": len(records)})
        own = span.get_span_context()
        fields["trace_id"] = f"{own.trace_id:032x}"
        context = f"00-{own.trace_id:032x}-{own.span_id:016x}-{int(own.trace_flags):02x}"
        return BatchTrace(fields, span, context.encode())

    def close(self) -> None:
        """Sends what is left, for a few seconds at most."""
        if self._provider is not None:
            self._provider.force_flush(_FLUSH_MS)
            self._provider.shutdown()


def open_traces(settings: TracesSettings, *, version: str) -> Traces:
    """Traces that go where the settings say; none where they say nothing.

    Raises:
        SettingsError: OpenTelemetry is not installed.
    """
    if settings.endpoint is None:
        return Traces()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
    except ImportError as error:
        raise SettingsError(f"traces.endpoint: expected the extra `traces` to be installed, found: {error}") from error
    resource = Resource.create({"service.name": "listing-enricher", "service.version": version})
    provider = TracerProvider(sampler=TraceIdRatioBased(settings.sample_share), resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.endpoint)))
    return Traces(provider)


def _ranges(records: Sequence[InputRecord]) -> str:
    """`0:17-23 2:5-5`: partition and the first and last offset of it in the batch."""
    ranges: dict[int, tuple[int, int]] = {}
    for record in records:
        first, _ = ranges.get(record.partition, (record.offset, 0))
        ranges[record.partition] = (first, record.offset)
    return " ".join(f"{partition}:{first}-{last}" for partition, (first, last) in sorted(ranges.items()))


def _context(record: InputRecord | OutputRecord) -> "re.Match[bytes] | None":
    value = next((value for name, value in record.headers if name == HEADER), None)
    return None if value is None else _CONTEXT.fullmatch(value)


def _others(record: OutputRecord) -> tuple[tuple[str, bytes | None], ...]:
    """Headers without a context that is none."""
    return tuple(header for header in record.headers if header[0] != HEADER)


def _links(records: Sequence[InputRecord]) -> "list[Link]":
    """To each context once, the first `LINKS_MAX` of the batch."""
    from opentelemetry.trace import Link, SpanContext, TraceFlags

    found = {match.groups(): match for record in records if (match := _context(record))}
    return [
        Link(SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))))
        for trace, span, flags in list(found)[:LINKS_MAX]
    ]
