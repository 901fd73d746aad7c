"""The schema registry: the only file that knows its client.

Writer schemas are fetched by the id in front of each record, parsed once and kept. Whether an id is unknown is a fact about
the record (a dead letter); whether the registry answers is a fact about the world (waited for).
"""

import functools
import json
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

# Confluent's client raises the exceptions of the HTTP library it chose (httpx2, or httpx), and names it only here.
from confluent_kafka.schema_registry.common._httpx_compat import httpx
from confluent_kafka.schema_registry.error import OAuthTokenError, SchemaRegistryError
from fastavro.schema import SchemaParseException, parse_schema

from consumer.errors import DependencyUnavailable, SettingsError
from consumer.schema_bounds import Unbounded, check_bounds
from consumer.schemas import ParsedSchema as ParsedSchema
from consumer.schemas import UnknownSchema as UnknownSchema

_CACHED_MAX = 1_000
_REFERENCES_MAX = 50  # schemas that one schema may pull in
UNKNOWN_SECONDS = 3.0  # long enough to spare the registry a storm, short enough for a schema registered late
_DEFAULTS: Mapping[str, Any] = {"timeout": 5.0, "max.retries": 2, "retries.wait.ms": 100, "retries.max.wait.ms": 500}
# HTTP 404 with one of the registry's own codes. Any other 404 comes from something that is not a registry.
_NOT_FOUND_CODES = range(40_400, 40_500)

Answer = TypeVar("Answer")


class SchemaRefused(SettingsError):
    """The registry does not take a schema: it is not compatible with the subject's earlier ones, or not valid."""


class SchemaRegistry:
    """Reads and registers Avro schemas. Safe to share between threads.

    Every call may block for (`max.retries` + 1) × (`timeout` + 0.5 s), by default 17 s, and raises DependencyUnavailable
    when the registry does not answer, answers with what only an operator can mend (401, 403), or is no registry.

    Args:
        url: one or more base URLs, separated by commas. `mock://name` is a registry in this process, shared by all that
            say the same name.
        properties: of Confluent's client, as they are: `basic.auth.user.info`, `ssl.ca.location`, `timeout` (s) …
        clock: seconds; how long an unknown id stays unknown is measured with it.

    Raises:
        SettingsError: the URL or a property is wrong.
    """

    def __init__(self, url: str, properties: Mapping[str, Any], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._parsed: dict[int, ParsedSchema] = {}
        self._unknown: dict[int, tuple[float, UnknownSchema]] = {}
        self._in_process = url.startswith("mock://")
        self._client = _in_process_client(url) if self._in_process else _client(url, properties)

    def schemas(self, ids: Collection[int]) -> dict[int, ParsedSchema | UnknownSchema]:
        """The writer schema of each id. One request for each id that is not known yet; unknown ids are asked again."""
        found: dict[int, ParsedSchema | UnknownSchema] = {}
        for schema_id in ids:
            found[schema_id] = self._cached(schema_id) or self._fetched(schema_id)
        return found

    def register(self, subject: str, schema_text: str) -> int:
        """The id of the schema, which `subject` has after the call. May be done again.

        Raises:
            SchemaRefused: it is not valid, or not compatible with the subject's earlier schemas.
        """
        schema = Schema(schema_text, "AVRO")
        try:
            return _asked(lambda: self._client.register_schema(subject, schema))
        except SchemaRegistryError as error:
            raise SchemaRefused(f"schema of {subject}: {error.error_message}") from error

    def check_compatible(self, subject: str, schema_text: str) -> None:
        """Returns when the schema could be registered. A subject without schemas takes any; `mock://` does not look.

        Raises:
            SchemaRefused: it is not valid, or not compatible with the subject's latest schema.
        """
        if self._in_process:
            return
        schema = Schema(schema_text, "AVRO")
        try:
            compatible = _asked(lambda: self._client.test_compatibility(subject, schema))
        except SchemaRegistryError as error:
            if error.http_status_code == 404:
                return
            raise SchemaRefused(f"schema of {subject}: {error.error_message}") from error
        if not compatible:
            raise SchemaRefused(
                f"schema of {subject}: expected one that is compatible with the latest registered, found one that is "
                "not; add fields only with defaults, remove only fields that have one"
            )

    def ping(self) -> None:
        """Returns when the registry answers. Raises: DependencyUnavailable."""
        if not self._in_process:
            try:
                _asked(self._client.get_subjects)
            except SchemaRegistryError as error:
                raise DependencyUnavailable("schema_registry", str(error)) from error

    def close(self) -> None:
        """Closes the connections."""
        if not self._in_process:
            self._client.close()

    def _cached(self, schema_id: int) -> ParsedSchema | UnknownSchema | None:
        with self._lock:
            if parsed := self._parsed.get(schema_id):
                return parsed
            until, unknown = self._unknown.get(schema_id, (-math.inf, None))
            return unknown if self._clock() < until else None

    def _fetched(self, schema_id: int) -> ParsedSchema | UnknownSchema:
        try:
            result: ParsedSchema | UnknownSchema = ParsedSchema(schema_id, self._parse(self._get(schema_id), {}))
        except _Unreadable as error:
            result = UnknownSchema(schema_id, str(error))
        with self._lock:
            if isinstance(result, ParsedSchema):
                _keep(self._parsed, schema_id, result)
            else:
                _keep(self._unknown, schema_id, (self._clock() + UNKNOWN_SECONDS, result))
        return result

    def _get(self, schema_id: int) -> Schema:
        try:
            return _asked(lambda: self._client.get_schema(schema_id))
        except SchemaRegistryError as error:
            raise _Unreadable(f"the registry has no schema {schema_id}: {error.error_message}") from error

    def _parse(self, schema: Schema, named: dict[str, Any]) -> Any:
        """Parses a schema after those it refers to; `named` holds their names."""
        if schema.schema_type not in (None, "AVRO"):
            raise _Unreadable(f"expected an Avro schema, found one of type {schema.schema_type}")
        for reference in schema.references or ():
            if len(named) >= _REFERENCES_MAX:
                raise _Unreadable(f"expected at most {_REFERENCES_MAX} referenced schemas, found more")
            if reference.name not in named:
                self._parse(self._get_version(reference.subject, reference.version), named)
        try:
            parsed = parse_schema(json.loads(schema.schema_str or ""), named_schemas=named)
        except (SchemaParseException, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _Unreadable(f"expected a valid Avro schema, found one that is not: {error}") from error
        try:
            check_bounds(parsed, named)
        except Unbounded as error:
            raise _Unreadable(str(error)) from error
        return parsed

    def _get_version(self, subject: str | None, version: int | None) -> Schema:
        if subject is None or version is None:
            raise _Unreadable("expected a reference with a subject and a version, found one without")
        try:
            return _asked(lambda: self._client.get_version(subject, version)).schema
        except SchemaRegistryError as error:
            raise _Unreadable(f"the registry has no version {version} of {subject}: {error.error_message}") from error


class _Unreadable(Exception):
    """A schema that does not exist or cannot be parsed; the message becomes a dead letter's reason."""


def _asked(ask: Callable[[], Answer]) -> Answer:
    """The registry's answer.

    Raises:
        SchemaRegistryError: the registry knows better: not found, not valid, not compatible.
        DependencyUnavailable: there was no answer, or not a registry's.
    """
    try:
        return ask()
    except SchemaRegistryError as error:
        status, code = error.http_status_code, error.error_code
        if status == 409 and "already exists" in str(error.error_message):  # Apicurio, while it loads what it has stored
            raise DependencyUnavailable("schema_registry", str(error)) from error
        if status in (409, 422) or (status == 404 and code in _NOT_FOUND_CODES):
            raise
        raise DependencyUnavailable("schema_registry", str(error)) from error
    except httpx.HTTPError as error:
        raise DependencyUnavailable("schema_registry", str(error) or type(error).__name__) from error
    except OAuthTokenError as error:
        raise DependencyUnavailable("schema_registry", error.message) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # HTTP 200 with another body: a login page, a proxy. Not quoted, it may be long.
        raise DependencyUnavailable("schema_registry", "the answer is not a schema registry's; is the url right?") from error


def _client(url: str, properties: Mapping[str, Any]) -> SchemaRegistryClient:
    try:
        for each in url.split(","):
            httpx.URL(each)
        return SchemaRegistryClient({**_DEFAULTS, **properties, "url": url})
    except OSError as error:  # before ValueError: a bad certificate is both
        raise SettingsError(f"schema_registry.properties: a certificate or key cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, httpx.InvalidURL) as error:
        of_url = isinstance(error, httpx.InvalidURL) or "url" in str(error).lower()
        words = "the url cannot be read" if of_url else str(error)  # the client quotes the url, password and all
        raise SettingsError(f"schema_registry.properties or schema_registry.url: {words}") from None


@functools.lru_cache(maxsize=64)
def _in_process_client(url: str) -> SchemaRegistryClient:
    return SchemaRegistryClient.new_client({"url": url})


def _keep(cache: dict[int, Answer], schema_id: int, value: Answer) -> None:
    """Puts it in and the oldest out."""
    cache.pop(schema_id, None)
    if len(cache) >= _CACHED_MAX:
        del cache[next(iter(cache))]
    cache[schema_id] = value
