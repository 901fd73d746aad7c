"""What an operator can rely on in the service's logs and metrics."""

import json
import logging
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import structlog
from prometheus_client import generate_latest

from consumer import codec
from consumer.records import InputRecord, ModelIdentity, Rejected, Stage
from consumer.schema_registry import UnknownSchema
from consumer.telemetry import Metrics, configure_logging, reason_class
from consumer.traces import Traces
from tests.examples import ENVELOPE_SCHEMA, LISTING_SCHEMA, a_change_event, a_debezium_event, a_used_hardback, an_input_record


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_events_are_json_objects_with_time_level_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """An event is one JSON object on one line, with a UTC time, its level and its fields."""
    configure_logging("info", "json")
    structlog.get_logger("consumer.pipeline").info("batch_committed", records=3, title="历史\nline")
    [event] = logged(capsys)
    at = datetime.fromisoformat(str(event.pop("timestamp")))
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    assert event == {
        "event": "batch_committed",
        "level": "info",
        "logger": "consumer.pipeline",
        "records": 3,
        "title": "历史\nline",
    }


def test_libraries_speak_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    """What libraries log through the standard library, and warnings, have the same form."""
    configure_logging("info", "json")
    logging.getLogger("some.library").warning("lost %d messages", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old", UserWarning, stacklevel=1)
    first, second = logged(capsys)
    assert (first["event"], first["level"], first["logger"]) == ("lost 3 messages", "warning", "some.library")
    assert (second["level"], second["logger"]) == ("warning", "py.warnings")


def test_every_line_of_a_batch_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Our own events and those of libraries carry the batch's number and offsets while it is worked on, and not afterwards."""
    configure_logging("info", "json")
    trace = Traces().begin([an_input_record(b"", partition=2, offset=7)])
    trace.run(structlog.get_logger("consumer.patience").warning, "waiting_for_dependency")
    trace.run(logging.getLogger("librdkafka").warning, "broker down")
    structlog.get_logger("x").warning("later")
    assert [(event.get("batch"), event.get("partitions")) for event in logged(capsys)] == [
        (1, "2:7-7"),
        (1, "2:7-7"),
        (None, None),
    ]


def test_what_is_below_the_level_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    """What is below the level is dropped, and a second call changes level and form."""
    log = structlog.get_logger("x")
    configure_logging("warning", "json")
    log.info("too_quiet")
    logging.getLogger("y").info("too quiet")
    assert logged(capsys) == []
    configure_logging("debug", "console")
    log.debug("loud", records=1)
    text = capsys.readouterr().err
    assert "loud" in text
    assert "records=1" in text


def test_an_exception_is_logged_without_the_values_of_variables(capsys: pytest.CaptureFixture[str]) -> None:
    """An exception is logged with its traceback, and without local variables: one may hold a password."""
    configure_logging("info", "json")

    def connect(password: str) -> None:
        raise ConnectionError("refused")

    for log in (structlog.get_logger("x").exception, logging.getLogger("y").exception):
        try:
            connect("hunter2" + "-and-more")
        except ConnectionError:
            log("failed")
        text = capsys.readouterr().err
        assert "ConnectionError: refused" in json.loads(text)["exception"]
        assert "hunter2-and-more" not in text


def test_every_metric_of_the_service_is_there_from_the_start() -> None:
    """The names that dashboards and alerts use are there before anything happened, each with its meaning."""
    metrics = Metrics()
    text = generate_latest(metrics.registry).decode()
    for name in (
        "enricher_records_total",
        "enricher_dead_letters_total",
        "enricher_batch_records",
        "enricher_stage_seconds",
        "enricher_latency_seconds",
        "enricher_in_flight_batches",
        "enricher_lag_records",
        "enricher_rebalances_total",
        "enricher_transactions_total",
        "enricher_dependency_waits_total",
        "enricher_model_info",
        "enricher_backend_fallback",
        "enricher_stale_writes_total",
        "enricher_build_info",
    ):
        [meaning] = [line for line in text.splitlines() if line.startswith(f"# HELP {name} ")]
        assert meaning.endswith(".")
    assert 'enricher_records_total{outcome="dead_letter"} 0.0' in text
    assert 'enricher_dependency_waits_total{dependency="redis"} 0.0' in text
    assert 'enricher_dead_letters_total{reason="framing",stage="decode"} 0.0' in text


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (an_input_record(b"{}"), "framing"),
        (an_input_record(b"\0\0\0\0\x09" + b"x"), "unknown_schema"),
        (an_input_record(b"\0\0\0\0\x01" + b"\xff"), "avro"),
        (an_input_record(None, key=None), "deletion"),
        (an_input_record(None, headers=(("version", b"x"),)), "deletion"),
        (an_input_record(b"", key=b"\xff"), "key"),
        (a_change_event(a_used_hardback(), key=b"another"), "key"),
        (a_debezium_event("x"), "debezium"),
        (a_change_event(a_used_hardback("i" * 600)), "field"),
    ],
)
def test_a_dead_letters_reason_is_one_word(record: InputRecord, reason: str) -> None:
    """Whatever a reason says, its label is one of a fixed few."""
    schemas = {1: LISTING_SCHEMA, 2: ENVELOPE_SCHEMA, 9: UnknownSchema(9, "the registry has no schema 9")}
    rejected = codec.decode(record, schemas)
    assert isinstance(rejected, Rejected)
    assert reason_class(rejected) == reason


def test_reasons_of_covers_and_of_the_model_have_their_words() -> None:
    """Covers, features and inference have words of their own; a sentence that nobody foresaw is `other`."""
    record = an_input_record(b"")
    assert [
        reason_class(Rejected(record, stage, reason))
        for stage, reason in (
            (Stage.COVER, "cover: at most 10 bytes (covers.max_bytes), found 11"),
            (Stage.COVER, "cover: not an image"),
            (Stage.INFERENCE, "the model's output is not finite"),
            (Stage.COVER, "it ends the process that takes it: signal 11"),
            (Stage.TRIAL, "it ends the process that takes it: signal 11"),
            (Stage.FEATURES, "ValueError: what nobody foresaw"),
        )
    ] == ["too_large", "cover", "not_finite", "ends_the_process", "ends_the_process", "other"]


def test_a_stage_is_timed_also_when_it_fails() -> None:
    """A stage's time is observed when it returns and when it raises."""
    metrics = Metrics()
    with metrics.stage("decode"):
        pass
    with pytest.raises(KeyError), metrics.stage("decode"):
        raise KeyError
    assert metrics.registry.get_sample_value("enricher_stage_seconds_count", {"stage": "decode"}) == 2


def test_the_model_that_answers_is_the_only_one_named() -> None:
    """After a new model was set, the old one's series is gone."""
    metrics = Metrics()
    metrics.set_model(ModelIdentity("books", "1.0.0", 1), backend="onnxruntime", reason="no TensorRT: no GPU")
    metrics.set_model(ModelIdentity("books", "1.1.0", 2, "c0ffee"), backend="tensorrt", reason="c0ffee fits")
    metrics.set_build(version="0.1.0")
    lines = generate_latest(metrics.registry).decode().splitlines()
    assert [line for line in lines if line.startswith("enricher_model_info{")] == [
        'enricher_model_info{backend="tensorrt",engine="c0ffee",epoch="2",name="books",reason="c0ffee fits",version="1.1.0"} 1.0'
    ]


def test_the_bundle_and_its_engine_are_named_by_their_digests() -> None:
    """The start of both digests; no engine where the graph itself runs, and only the last that was set."""
    metrics = Metrics()
    metrics.set_bundle("ab" * 32, engine="cd" * 32)
    metrics.set_bundle("01" * 32, engine=None)
    lines = generate_latest(metrics.registry).decode().splitlines()
    assert [line for line in lines if line.startswith("enricher_bundle_info{")] == [
        'enricher_bundle_info{engine="",sha256="010101010101"} 1.0'
    ]


def test_lag_is_that_of_the_assigned_partitions() -> None:
    """A partition that was given away shows no lag any more."""
    metrics = Metrics()
    metrics.set_lag({0: 5, 1: 0})
    metrics.set_lag({1: 7})
    lag = metrics.registry.get_sample_value
    assert lag("enricher_lag_records", {"partition": "0"}) is None
    assert lag("enricher_lag_records", {"partition": "1"}) == 7


def test_two_services_in_one_process_count_apart() -> None:
    """Two services in one process count apart."""
    first, second = Metrics(), Metrics()
    first.records.labels("predicted").inc()
    assert second.registry.get_sample_value("enricher_records_total", {"outcome": "predicted"}) == 0
