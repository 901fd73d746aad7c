"""What the service's settings promise: one file, the environment over it, and complaints a person can act on."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from consumer.errors import SettingsError
from consumer.settings import Settings, load_settings

PASSWORD = "hunter2-very-secret"


def toml(folder: Path, text: str) -> Path:
    path = folder / "service.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(config: Path | None, environ: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(config, environ)
    assert caught.value.__cause__ is None
    assert not isinstance(caught.value.__context__, ValidationError), "it holds the refused values, secrets among them"
    return str(caught.value)


def test_without_a_file_and_environment_the_defaults_are_those_of_the_contract() -> None:
    """Without a file and environment the defaults are those of the contract."""
    settings = load_settings(None, {"PATH": "/bin"})
    assert settings == Settings()
    assert settings.kafka.input_topic == "catalogue.listings"
    assert settings.kafka.output_topic == "catalogue.listings.enriched"
    assert settings.kafka.dead_letter_topic == "catalogue.listings.dead-letters"
    assert settings.kafka.group_id == "listing-enricher"
    assert settings.redis.url.get_secret_value() == "redis://localhost:6379/0"
    assert settings.http.port == 8080
    assert settings.delivery.guarantee == "exactly_once"
    assert not settings.covers.fetch
    assert settings.model.bundle.parts[-3:] == ("model", "bundles", "books")
    assert settings.model.bundle.is_absolute()


def test_the_environment_goes_over_the_file(tmp_path: Path) -> None:
    """A variable wins over the file, and what it does not name stays the file's."""
    config = toml(tmp_path, '[kafka]\ngroup_id = "file"\ninput_topic = "books"\n[batch]\nmax_records = 7\n')
    settings = load_settings(config, {"CONSUMER_KAFKA__GROUP_ID": "environment"})
    assert (settings.kafka.group_id, settings.kafka.input_topic) == ("environment", "books")
    assert settings.batch.max_records == 7


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    """CONSUMER_CONFIG names the file, and an argument wins over it."""
    config = toml(tmp_path, "[http]\nport = 9\n")
    assert load_settings(None, {"CONSUMER_CONFIG": str(config)}).http.port == 9
    assert load_settings(config, {"CONSUMER_CONFIG": "/does/not/exist"}).http.port == 9


def test_any_setting_may_come_from_a_file_of_its_own(tmp_path: Path) -> None:
    """A variable that ends in _FILE reads the value from the file it names, without the last line end."""
    secret = tmp_path / "url"
    secret.write_text(f"redis://:{PASSWORD}@store:6379/1\n", encoding="utf-8")
    port = tmp_path / "port"
    port.write_text("81\r\n", encoding="utf-8")
    settings = load_settings(None, {"CONSUMER_REDIS__URL_FILE": str(secret), "CONSUMER_HTTP__PORT_FILE": str(port)})
    assert settings.redis.url.get_secret_value() == f"redis://:{PASSWORD}@store:6379/1"
    assert settings.http.port == 81
    assert PASSWORD not in repr(settings)
    assert PASSWORD not in str(settings)


def test_properties_of_file_and_environment_are_merged(tmp_path: Path) -> None:
    """Client properties keep their types, and a secret one can come from a file while the others stay in the TOML."""
    secret = tmp_path / "properties"
    secret.write_text(f'{{"sasl.password": "{PASSWORD}"}}', encoding="utf-8")
    config = toml(tmp_path, '[kafka]\nproperties = { "security.protocol" = "SSL", "linger.ms" = 5, "log.queue" = true }\n')
    settings = load_settings(config, {"CONSUMER_KAFKA__PROPERTIES_FILE": str(secret)})
    assert settings.kafka.properties == {
        "security.protocol": "SSL",
        "linger.ms": 5,
        "log.queue": True,
        "sasl.password": PASSWORD,
    }
    assert settings.kafka.properties["log.queue"] is True
    assert PASSWORD not in repr(settings)


def test_hosts_are_separated_by_commas() -> None:
    """In the environment, hosts are separated by commas."""
    settings = load_settings(None, {"CONSUMER_COVERS__ALLOWED_HOSTS": "a.example, b.example"})
    assert settings.covers.allowed_hosts == ("a.example", "b.example")


def test_an_empty_time_to_live_is_none(tmp_path: Path) -> None:
    """An empty CONSUMER_REDIS__TTL_SECONDS takes the file's time to live away."""
    config = toml(tmp_path, "[redis]\nttl_seconds = 60\n")
    assert load_settings(config, {}).redis.ttl_seconds == 60
    assert load_settings(config, {"CONSUMER_REDIS__TTL_SECONDS": ""}).redis.ttl_seconds is None


def test_all_complaints_come_at_once_one_a_line(tmp_path: Path) -> None:
    """Each wrong setting has one line that names it as the user wrote it, what was expected and what was found."""
    config = toml(tmp_path, '[http]\nport = 70000\n[kafka]\ngroup_protocol = "new"\n[batch]\nmax_records = "many"\n')
    lines = complaint(config, {"CONSUMER_BATCH__MAX_LINGER_MS": "-1", "CONSUMER_REDIS__URL_FILE": "/no/such"}).split("\n")
    assert set(lines) == {
        "redis.url (CONSUMER_REDIS__URL_FILE): expected the path of a readable file, found: No such file or directory",
        f"http.port ({config}): expected less than or equal to 65535, found 70000",
        f"kafka.group_protocol ({config}): expected 'classic' or 'consumer', found 'new'",
        f"batch.max_records ({config}): expected a valid integer, unable to parse string as an integer, found 'many'",
        "batch.max_linger_ms (CONSUMER_BATCH__MAX_LINGER_MS): expected greater than or equal to 0, found '-1'",
    }


@pytest.mark.parametrize(
    ("text", "suggested"),
    [
        ("[kafka]\nbootstrap_server = 'x'\n", "kafka.bootstrap_servers"),
        ("[kafak]\ngroup_id = 'x'\n", "kafka"),
        ("[batch]\nmax_linger = 5\n", "batch.max_linger_ms"),
    ],
)
def test_an_unknown_name_of_the_file_is_refused(tmp_path: Path, text: str, suggested: str) -> None:
    """An unknown name of the file is refused with the name that was probably meant."""
    assert f"no such setting; did you mean {suggested}?" in complaint(toml(tmp_path, text), {})


def test_an_unknown_variable_is_refused() -> None:
    """An unknown CONSUMER_ variable is refused with the name that was probably meant; others are nobody's business."""
    message = complaint(None, {"CONSUMER_KAFKA__BOOTSTRAP_SERVER": "x", "CONSUMERS": "9"})
    assert message == ("CONSUMER_KAFKA__BOOTSTRAP_SERVER: no such setting; did you mean CONSUMER_KAFKA__BOOTSTRAP_SERVERS?")
    assert complaint(None, {"CONSUMER_QQQQ": "x"}) == "CONSUMER_QQQQ: no such setting"


def test_a_value_and_its_file_together_are_refused() -> None:
    """A variable and its _FILE together are refused: nobody could say which one holds."""
    message = complaint(None, {"CONSUMER_REDIS__URL": "redis://a", "CONSUMER_REDIS__URL_FILE": "/b"})
    assert message == "redis.url: expected one of CONSUMER_REDIS__URL and CONSUMER_REDIS__URL_FILE, found both"


@pytest.mark.parametrize(
    "environ",
    [
        {"CONSUMER_REDIS__URL": f"http://:{PASSWORD}@store"},
        {"CONSUMER_REDIS__URL_FILE": f"redis://:{PASSWORD}@store"},
        {"CONSUMER_KAFKA__PROPERTIES": f'{{"sasl.password": ["{PASSWORD}"]}}'},
        {"CONSUMER_KAFKA__PROPERTIES": f'{{"sasl.password": "{PASSWORD}"'},
        {"CONSUMER_SCHEMA_REGISTRY__PROPERTIES": f'"{PASSWORD}"'},
        {"CONSUMER_SCHEMA_REGISTRY__PROPERTIES": f'{{"basic.auth.user.info": {{"{PASSWORD}": 1}}}}'},
    ],
)
def test_a_secret_is_never_shown(environ: dict[str, str]) -> None:
    """A complaint about a setting that holds a secret does not show what was found."""
    assert PASSWORD not in complaint(None, environ)


def test_a_secret_file_that_holds_a_wrong_value_is_not_shown(tmp_path: Path) -> None:
    """What a _FILE variable reads is taken for a secret whatever the setting is."""
    path = tmp_path / "port"
    path.write_text(PASSWORD, encoding="utf-8")
    message = complaint(None, {"CONSUMER_HTTP__PORT_FILE": str(path)})
    assert PASSWORD not in message
    assert message.startswith("http.port (CONSUMER_HTTP__PORT_FILE): expected a valid integer")


def test_a_file_that_is_not_there_or_not_toml_is_refused(tmp_path: Path) -> None:
    """A configuration file that is not there, or is not TOML, is named in the complaint."""
    missing = tmp_path / "none.toml"
    assert complaint(missing, {}).startswith(f"{missing}: expected a readable TOML file, found: No such file")
    broken = toml(tmp_path, "[kafka\n")
    assert complaint(broken, {}).startswith(f"{broken}: expected a TOML file in UTF-8, found: ")


def test_a_section_that_is_a_value_is_refused(tmp_path: Path) -> None:
    """A plain value where a section belongs is refused, with variables over it or without."""
    config = toml(tmp_path, "kafka = 3\n")
    assert complaint(config, {"CONSUMER_KAFKA__GROUP_ID": "x"}).startswith(f"kafka ({config}): expected a valid dict")


def test_the_three_topics_differ() -> None:
    """The output topic cannot be the input topic: the service would feed itself."""
    message = complaint(None, {"CONSUMER_KAFKA__OUTPUT_TOPIC": "catalogue.listings"})
    assert message.startswith("kafka (environment): expected three different topics")


def test_a_property_that_is_a_setting_is_refused() -> None:
    """A client property that has a setting of its own is refused: two of them would disagree one day."""
    message = complaint(None, {"CONSUMER_KAFKA__PROPERTIES": '{"group.id": "x"}'})
    assert "expected no 'group.id': say it as kafka.group_id" in message


def test_settings_do_not_change() -> None:
    """Settings do not change after they were read."""
    with pytest.raises(ValidationError):
        Settings().http.port = 1  # type: ignore[misc]


def test_covers_are_fetched_only_from_named_hosts() -> None:
    """Fetching without a list of hosts is refused, rather than open to the world."""
    with pytest.raises(SettingsError, match=r"expected at least one host in covers\.allowed_hosts"):
        load_settings(None, {"CONSUMER_COVERS__FETCH": "true"})
    settings = load_settings(
        None,
        {
            "CONSUMER_COVERS__FETCH": "true",
            "CONSUMER_COVERS__ALLOWED_HOSTS": "covers.example, img.example",
            "CONSUMER_COVERS__ALLOWED_NETWORKS": "10.1.0.0/16",
        },
    )
    assert settings.covers.allowed_hosts == ("covers.example", "img.example")
    assert [str(network) for network in settings.covers.allowed_networks] == ["10.1.0.0/16"]
