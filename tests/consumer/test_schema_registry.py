"""What the schema registry's edge promises, on a registry in this process, on a real one, and on broken ones."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from typing import Any

import fastavro
import pytest

from consumer import schemas
from consumer.errors import DependencyUnavailable, SettingsError
from consumer.schema_registry import ParsedSchema, SchemaRefused, SchemaRegistry, UnknownSchema

NEVER_AN_ID = 2_000_000_000


@pytest.fixture(params=["in-process", pytest.param("real", marks=pytest.mark.integration)])
def registry(request: pytest.FixtureRequest) -> Iterator[SchemaRegistry]:
    in_process = request.param == "in-process"
    url = f"mock://{uuid.uuid4().hex}" if in_process else str(request.getfixturevalue("registry_url"))
    registry = SchemaRegistry(url, {})
    yield registry
    registry.close()


@pytest.fixture
def subject() -> str:
    return f"test-{uuid.uuid4().hex[:10]}-value"


Answering = Callable[..., tuple[SchemaRegistry, list[str]]]


class Registry(BaseHTTPRequestHandler):
    """Answers everything with the same status and body."""

    def __init__(self, status: int, body: bytes, asked: list[str], *connection: Any) -> None:
        self.status, self.body, self.asked = status, body, asked
        super().__init__(*connection)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def answering() -> Iterator[Answering]:
    """`answering(status, body)` is an edge to a registry that says only this, and the list of what it was asked."""
    servers: list[HTTPServer] = []
    edges: list[SchemaRegistry] = []

    def make(status: int, body: object, clock: Callable[[], float] = time.monotonic) -> tuple[SchemaRegistry, list[str]]:
        asked: list[str] = []
        text = body if isinstance(body, str) else json.dumps(body)
        servers.append(HTTPServer(("127.0.0.1", 0), partial(Registry, status, text.encode(), asked)))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{servers[-1].server_port}"
        edges.append(SchemaRegistry(url, {"max.retries": 0, "timeout": 2.0}, clock=clock))
        return edges[-1], asked

    yield make
    for registry in edges:
        registry.close()
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_registered_schema_is_read_by_its_id(registry: SchemaRegistry, subject: str) -> None:
    """A registered schema is found by its id and reads what was written with it."""
    schema_id = registry.register(subject, schemas.LISTING)
    found = registry.schemas([schema_id])[schema_id]
    assert isinstance(found, ParsedSchema)
    stream = BytesIO()
    fastavro.schemaless_writer(stream, json.loads(schemas.LISTING), {"listing_id": "bd-1", "title": "Emma"})
    stream.seek(0)
    read = fastavro.schemaless_reader(stream, found.schema, None)
    assert isinstance(read, dict)
    assert (read["listing_id"], read["title"], read["cover"]) == ("bd-1", "Emma", None)


def test_registering_again_changes_nothing(registry: SchemaRegistry, subject: str) -> None:
    """A schema that is registered again keeps its id."""
    assert registry.register(subject, schemas.LISTING) == registry.register(subject, schemas.LISTING)


def test_an_id_that_nobody_registered_is_a_value(registry: SchemaRegistry, subject: str) -> None:
    """An id that nobody registered is unknown, and does not keep the others from being found."""
    schema_id = registry.register(subject, schemas.ENRICHED_LISTING)
    found = registry.schemas({schema_id, NEVER_AN_ID})
    assert isinstance(found[schema_id], ParsedSchema)
    unknown = found[NEVER_AN_ID]
    assert isinstance(unknown, UnknownSchema)
    assert str(NEVER_AN_ID) in unknown.reason


def test_a_subject_without_schemas_takes_any(registry: SchemaRegistry, subject: str) -> None:
    """Before anything is registered every schema is compatible, and a registry that answers answers a ping."""
    registry.check_compatible(subject, schemas.ENRICHED_LISTING)
    registry.ping()


@pytest.mark.integration
def test_an_incompatible_schema_is_refused(registry_url: str, subject: str) -> None:
    """A schema that takes a field's default away is refused by the check, and a compatible one passes it."""
    registry = SchemaRegistry(registry_url, {})
    try:
        registry.register(subject, schemas.LISTING)
        registry.check_compatible(subject, schemas.LISTING)
        changed = json.loads(schemas.LISTING)
        changed["fields"].append({"name": "isbn", "type": "string"})
        with pytest.raises(SchemaRefused, match=f"schema of {subject}: "):
            registry.check_compatible(subject, json.dumps(changed))
        with pytest.raises(SchemaRefused, match=f"schema of {subject}: "):
            registry.register(subject, '{"type": "nonsense"}')
    finally:
        registry.close()


@pytest.mark.parametrize(
    ("message", "error"),
    [("An artifact with this ID already exists.", DependencyUnavailable), ("incompatible with an earlier schema", SchemaRefused)],
)
def test_a_registry_that_still_loads_is_waited_for(answering: Answering, message: str, error: type[Exception]) -> None:
    """Apicurio says 409 for both: that it does not know yet what it has stored, and that a schema does not fit."""
    registry, _ = answering(409, {"error_code": 409, "message": message})
    with pytest.raises(error, match=message):
        registry.register("listings-value", schemas.LISTING)


def test_in_one_process_a_name_is_one_registry() -> None:
    """Who says the same mock:// name shares the registry; another name is another registry."""
    schema_id = SchemaRegistry("mock://one", {}).register("s", schemas.LISTING)
    assert isinstance(SchemaRegistry("mock://one", {}).schemas([schema_id])[schema_id], ParsedSchema)
    assert isinstance(SchemaRegistry("mock://two", {}).schemas([schema_id])[schema_id], UnknownSchema)


def test_a_schema_is_fetched_once(answering: Answering) -> None:
    """A schema is fetched once, however many batches ask for it."""
    registry, asked = answering(200, {"schema": schemas.LISTING})
    first = registry.schemas([7])
    assert registry.schemas([7])[7] is first[7]
    assert len(asked) == 1


def test_an_unknown_id_is_asked_again_after_a_while(answering: Answering) -> None:
    """An unknown id is not asked for with every batch, but it is again after some seconds: it may be registered late."""
    now_s = [1000.0]
    registry, asked = answering(404, {"error_code": 40403, "message": "Schema 7 not found"}, lambda: now_s[0])
    for _ in range(3):
        found = registry.schemas([7])[7]
        assert found == UnknownSchema(7, "the registry has no schema 7: Schema 7 not found")
    assert len(asked) == 1
    now_s[0] += 10
    registry.schemas([7])
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"schema": "syntax = 3;", "schemaType": "PROTOBUF"}, "expected an Avro schema, found one of type PROTOBUF"),
        ({"schema": "{not json"}, "expected a valid Avro schema"),
        ({"schema": '{"type": "record", "name": "X", "fields": [{"name": "a", "type": "nope"}]}'}, "expected a valid Avro"),
        ({"schema": '{"type": "record"}'}, "expected a valid Avro schema"),
        ({"schema": "[" * 100_000}, "expected a valid Avro schema"),
    ],
)
def test_a_schema_that_cannot_be_read_with_is_a_value(answering: Answering, body: object, reason: str) -> None:
    """A schema of another kind, or one that cannot be parsed, is the record's fault: a value with the reason."""
    registry, _ = answering(200, body)
    found = registry.schemas([7])[7]
    assert isinstance(found, UnknownSchema)
    assert found.reason.startswith(reason)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, {"error_code": 50001, "message": "store"}),
        (503, "<html>down</html>"),
        (429, {"error_code": 42901, "message": "slow down"}),
        (401, {"error_code": 401, "message": "who are you"}),
        (404, {"error_code": 404, "message": "HTTP 404 Not Found"}),
        (404, "<html>nginx</html>"),
        (200, "<html>log in</html>"),
        (200, ["not", "a", "schema"]),
    ],
)
def test_a_registry_that_does_not_answer_as_one_is_a_dependency(answering: Answering, status: int, body: object) -> None:
    """Server errors, refusals and other servers' pages are no fact about the record: the dependency is not available."""
    registry, _ = answering(status, body)
    with pytest.raises(DependencyUnavailable) as caught:
        registry.schemas([7])
    assert caught.value.dependency == "schema_registry"
    assert caught.value.__cause__ is not None


def test_a_registry_that_is_not_there_is_a_dependency() -> None:
    """A registry that is not there is a dependency that is not available, for each call, and shows no password."""
    registry = SchemaRegistry("http://u:hunter2@127.0.0.1:1", {"max.retries": 0})
    calls: list[Callable[[], object]] = [
        registry.ping,
        lambda: registry.schemas([1]),
        lambda: registry.register("s", schemas.LISTING),
        lambda: registry.check_compatible("s", schemas.LISTING),
    ]
    for call in calls:
        with pytest.raises(DependencyUnavailable, match="schema_registry is not available") as caught:
            call()
        assert "hunter2" not in str(caught.value)
    registry.close()


@pytest.mark.parametrize(
    ("url", "properties"),
    [
        ("ftp://u:hunter2@h", {}),
        ("http://u@h:hunter2", {}),
        ("http://h", {"unheard.of": 1}),
        ("http://h", {"ssl.ca.location": "/does/not/exist"}),
    ],
)
def test_a_wrong_url_or_property_is_a_wrong_setting(url: str, properties: dict[str, object]) -> None:
    """A wrong URL or property is a wrong setting, and a URL is not shown."""
    with pytest.raises(SettingsError, match="schema_registry") as caught:
        SchemaRegistry(url, properties)
    assert "hunter2" not in str(caught.value)
