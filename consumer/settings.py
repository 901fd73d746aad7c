"""Every setting of the service, and the one place that reads the environment.

`load_settings` lays environment variables over one TOML file. The file's `[kafka] group_id` is the environment's
`CONSUMER_KAFKA__GROUP_ID`, and `CONSUMER_KAFKA__GROUP_ID_FILE` names a file that holds the value: so secrets come in.
Names that do not exist are refused, so that a typing error cannot leave a default in force.

The sources are laid over each other here rather than by a settings library, because each complaint must name the
setting as the user wrote it, and must not show a secret.
"""

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr, ValidationError, field_validator, model_validator

import model
from consumer import last_words
from consumer.errors import SettingsError

_PREFIX = "CONSUMER_"
_CONFIG = "CONSUMER_CONFIG"
_FILE = "_FILE"
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://", "redis+cluster://", "rediss+cluster://")
# Values that may hold a password: never shown in a message or a repr.
_SECRET = frozenset({"redis.url", "kafka.properties", "schema_registry.url", "schema_registry.properties"})
# Client properties that have a setting of their own; two sources of truth would disagree one day.
_OWN_PROPERTIES = {
    "bootstrap.servers": "kafka.bootstrap_servers",
    "group.id": "kafka.group_id",
    "group.protocol": "kafka.group_protocol",
    "transactional.id": "kafka.transactional_id_prefix",
}

Property = str | int | float | bool
Text = Annotated[str, Field(min_length=1)]
Topic = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class KafkaSettings(_Section):
    """The broker, the topics and the group. `properties` go to librdkafka as they are."""

    bootstrap_servers: Text = "localhost:9092"
    group_id: Text = "listing-enricher"
    input_topic: Topic = "catalogue.listings"
    output_topic: Topic = "catalogue.listings.enriched"
    dead_letter_topic: Topic = "catalogue.listings.dead-letters"
    transactional_id_prefix: Text = "listing-enricher"
    group_protocol: Literal["classic", "consumer"] = "classic"
    properties: dict[str, Property] = Field(default_factory=dict, repr=False)

    @field_validator("properties")
    @classmethod
    def _leave_out_what_is_a_setting(cls, properties: dict[str, Property]) -> dict[str, Property]:
        for name, setting in _OWN_PROPERTIES.items():
            if name in properties:
                raise ValueError(f"no {name!r}: say it as {setting}")
        return properties

    @model_validator(mode="after")
    def _use_three_topics(self) -> "KafkaSettings":
        topics = (self.input_topic, self.output_topic, self.dead_letter_topic)
        if len(set(topics)) < len(topics):
            raise ValueError("three different topics as input_topic, output_topic and dead_letter_topic")
        return self


class SchemaRegistrySettings(_Section):
    """The schema registry. `properties` go to Confluent's client as they are."""

    url: Text = Field(default="http://localhost:8081", repr=False)
    properties: dict[str, Property] = Field(default_factory=dict, repr=False)


class RedisSettings(_Section):
    """The prediction store. Entries live `ttl_seconds` after their last write, or for ever when it is None.

    `ca` (PEM) holds the authorities that may have signed the server's certificate; without it the system's.
    """

    url: SecretStr = SecretStr("redis://localhost:6379/0")
    ca: str | None = None
    key_prefix: str = "listing:"
    ttl_seconds: int | None = Field(default=None, ge=1, le=10 * 365 * 86_400)

    @field_validator("url")
    @classmethod
    def _have_a_known_scheme(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().startswith(_REDIS_SCHEMES):
            raise ValueError("a URL that starts with " + ", ".join(_REDIS_SCHEMES[:-1]) + f" or {_REDIS_SCHEMES[-1]}")
        return url

    @field_validator("ttl_seconds", mode="before")
    @classmethod
    def _read_empty_as_none(cls, value: object) -> object:
        return None if value == "" else value  # an environment variable cannot say None


def _shipped_bundle() -> Path:
    return Path(model.__file__).parent / "bundles" / "books"


class ModelSettings(_Section):
    """The model bundle, who must have signed it, and what runs it on how many CPU threads.

    `pointer`: a file that names the bundle in place of `bundle`, and may change while the service runs (`consumer/serving.py`).
    `engine_cache` holds TensorRT engines; None is the folder that `build_engine` takes, too. Where it has none for this bundle
    and GPU, one is built for up to `engine_build_seconds`; 0 builds none.
    """

    bundle: Path = Field(default_factory=_shipped_bundle)
    pointer: Path | None = None
    backend: Literal["auto", "tensorrt", "onnxruntime"] = "auto"
    allow_fallback: bool = True
    engine_cache: Path | None = None
    engine_build_seconds: float = Field(default=900.0, ge=0, le=86_400)
    threads: int = Field(default=1, ge=1, le=256)
    public_key: str | None = None  # Ed25519, PEM: then only a bundle signed with its private key is loaded


class BatchSettings(_Section):
    """A batch closes at `max_records`, `max_cost` bytes of record values, or its oldest record's `max_linger_ms`."""

    max_records: int = Field(default=256, ge=1, le=10_000)
    max_linger_ms: int = Field(default=10, ge=0, le=60_000)
    max_cost: int = Field(default=4_000_000, ge=1, le=1_000_000_000)
    max_in_flight: int = Field(default=3, ge=1, le=64)


class CoverSettings(_Section):
    """Covers: whether those named by URL are fetched, from which hosts, and what one may cost.

    `allowed_networks` lists the CIDRs of private addresses at which an allowed host may live; link-local ones (where clouds keep
    their credentials) are never connected to.
    """

    fetch: bool = False
    allowed_hosts: tuple[Text, ...] = ()
    allowed_networks: tuple[IPvAnyNetwork, ...] = ()
    max_bytes: int = Field(default=5_000_000, ge=1_000, le=100_000_000)
    timeout_ms: int = Field(default=2_000, ge=1, le=60_000)
    max_connections: int = Field(default=8, ge=1, le=256)
    cache_bytes: int = Field(default=64_000_000, ge=0, le=10_000_000_000)

    @model_validator(mode="after")
    def _name_the_hosts(self) -> "CoverSettings":
        if self.fetch and not self.allowed_hosts:
            raise ValueError("at least one host in covers.allowed_hosts where covers.fetch is true")
        return self


class DeliverySettings(_Section):
    """The guarantee, how long a transaction stays open, and when the service must not go on as usual.

    More than `max_reject_share` of the last `reject_window` records rejected: the breaker stops the service; 1 turns it off.
    `crashes_before_trial` processes that died at the same position: what stands there is tried in a child process, one by one;
    0 turns it off.
    """

    guarantee: Literal["exactly_once", "at_least_once"] = "exactly_once"
    transaction_ms: int = Field(default=100, ge=1, le=30_000)
    max_reject_share: float = Field(default=0.5, gt=0, le=1)
    reject_window: int = Field(default=1_000, ge=1, le=1_000_000)
    crashes_before_trial: int = Field(default=2, ge=0, le=1_000)


class HttpSettings(_Section):
    """Where /livez, /readyz and /metrics listen; port 0 takes any free one."""

    host: Text = "0.0.0.0"  # noqa: S104  a probe comes from outside the pod
    port: int = Field(default=8080, ge=0, le=65_535)


class LogSettings(_Section):
    """Logs, and the file that gets the reason why the service ended, where it exists: Kubernetes' termination message."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"
    termination_file: Path = last_words.DEFAULT_FILE


class TracesSettings(_Section):
    """Where spans go: `endpoint` takes OTLP over HTTP (`http://collector:4318/v1/traces`); without it there are none.

    `sample_share` of the batches have a span that is sent.
    """

    endpoint: Annotated[str, Field(pattern=r"^https?://.+")] | None = None
    sample_share: float = Field(default=1.0, ge=0, le=1)


class StartupSettings(_Section):
    """How long a start waits for what is not there yet; then the process ends with code 3."""

    deadline_seconds: float = Field(default=60.0, ge=0.1, le=3_600)


class ShutdownSettings(_Section):
    """How long a stop may take to finish what is in flight. Keep it below the pod's grace period."""

    drain_seconds: float = Field(default=25.0, ge=0.1, le=3_600)


class HealthSettings(_Section):
    """After how long without progress /livez fails."""

    stall_seconds: float = Field(default=120.0, ge=1, le=86_400)


class Settings(_Section):
    """All settings, validated. Made by `load_settings`; parts of the service get their section, not this."""

    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    schema_registry: SchemaRegistrySettings = Field(default_factory=SchemaRegistrySettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    batch: BatchSettings = Field(default_factory=BatchSettings)
    covers: CoverSettings = Field(default_factory=CoverSettings)
    delivery: DeliverySettings = Field(default_factory=DeliverySettings)
    http: HttpSettings = Field(default_factory=HttpSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    traces: TracesSettings = Field(default_factory=TracesSettings)
    startup: StartupSettings = Field(default_factory=StartupSettings)
    shutdown: ShutdownSettings = Field(default_factory=ShutdownSettings)
    health: HealthSettings = Field(default_factory=HealthSettings)


def load_settings(config: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of one TOML file with environment variables over it; `properties` of both are merged.

    Args:
        config: the TOML file; None takes the one that `CONSUMER_CONFIG` names, or none.
        environ: the process's environment.

    Raises:
        SettingsError: one line for each wrong setting, with what was expected and what was found.
    """
    path = config if config is not None else Path(environ[_CONFIG]) if environ.get(_CONFIG) else None
    tree = _read_toml(path) if path is not None else {}
    origins: dict[str, str] = {}
    complaints: list[str] = []
    for variable in sorted(name for name in environ if name.startswith(_PREFIX) and name != _CONFIG):
        setting = _VARIABLES.get(variable) or _VARIABLES.get(variable.removesuffix(_FILE))
        if setting is None:
            complaints.append(f"{variable}: no such setting{_suggestion(variable, [*_VARIABLES, _CONFIG])}")
        elif setting in origins:
            complaints.append(f"{setting}: expected one of {origins[setting]} and {variable}, found both")
        else:
            origins[setting] = variable
            try:
                _lay_over(tree, setting, _value_of(setting, variable, environ[variable]))
            except ValueError as error:
                complaints.append(f"{setting} ({variable}): {error}")
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        complaints += _complaints(error, origins, path)
    if complaints:
        raise SettingsError("\n".join(complaints))  # raised out here: the cause holds the values, secrets among them
    return settings


def _variables() -> dict[str, str]:
    """Environment variable to setting, for all settings: CONSUMER_KAFKA__GROUP_ID to kafka.group_id."""
    return {
        f"{_PREFIX}{section}__{name}".upper(): f"{section}.{name}"
        for section, field in Settings.model_fields.items()
        for name in (field.annotation.model_fields if isinstance(field.annotation, type(BaseModel)) else ())
    }


_VARIABLES = _variables()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: expected a readable TOML file, found: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise SettingsError(f"{path}: expected a TOML file in UTF-8, found: {error}") from None


def _value_of(setting: str, variable: str, text: str) -> Any:
    """Raises: ValueError, whose message does not show the value."""
    if variable not in _VARIABLES:
        try:
            text = Path(text).read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            # Not the path: who confuses the two variables writes the secret itself there.
            raise ValueError(f"expected the path of a readable file, found: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError("expected a file in UTF-8, found other bytes in it") from None
    if setting.endswith(".properties"):
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ValueError("expected a JSON object, found something else") from None
        return value
    if setting in ("covers.allowed_hosts", "covers.allowed_networks"):
        return [item.strip() for item in text.split(",") if item.strip()]
    return text


def _lay_over(tree: dict[str, Any], setting: str, value: Any) -> None:
    section, name = setting.split(".")
    values = tree.setdefault(section, {})
    if not isinstance(values, dict):
        return  # the file has a plain value where a section belongs; validation says so
    below = values.get(name)
    values[name] = {**below, **value} if isinstance(value, dict) and isinstance(below, dict) else value


def _complaints(error: ValidationError, origins: Mapping[str, str], path: Path | None) -> list[str]:
    lines: dict[str, str] = {}  # the first complaint of a setting: each branch of a union has one
    for found in error.errors(include_url=False):
        setting = ".".join(str(part) for part in found["loc"][:2])
        variable = origins.get(setting)
        where = f"{setting} ({variable or path or 'environment'})"
        if found["type"] == "extra_forbidden":
            siblings = list(_VARIABLES.values()) if "." in setting else list(Settings.model_fields)
            lines.setdefault(setting, f"{where}: no such setting{_suggestion(setting, siblings)}")
            continue
        expected = found["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if setting.endswith(".properties") and found["type"] != "value_error":
            expected = "strings, numbers and booleans"  # the union's first branch would ask for a string only
        hidden = setting in _SECRET or (variable or "").endswith(_FILE) or isinstance(found["input"], dict | BaseModel)
        shown = "a value that is not shown" if hidden else repr(found["input"])[:80]
        lines.setdefault(setting, f"{where}: expected {expected[0].lower()}{expected[1:]}, found {shown}")
    return list(lines.values())


def _suggestion(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""
