"""The commands, as their users meet them: help that teaches, exit codes, and messages that name what is wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

import model
from consumer import last_words
from consumer.__main__ import app
from consumer.prediction_json import prediction_document
from consumer.prediction_store import PredictionStore
from tests.examples import a_jpeg_cover, a_truncated_jpeg, an_entry

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = Path(model.__file__).parent / "bundles" / "books"
COMMANDS = [
    *(["run"], ["demo"], ["predict"], ["publish"], ["get"], ["doctor"]),
    *(["dead-letters", "list"], ["dead-letters", "show"], ["dead-letters", "replay"]),
]
NOTHING_THERE = {
    "CONSUMER_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "CONSUMER_REDIS__URL": "redis://127.0.0.1:1",
    "CONSUMER_SCHEMA_REGISTRY__URL": "http://127.0.0.1:1",
}
needs_bundle = pytest.mark.skipif(
    not (SHIPPED / "manifest.json").is_file(), reason=f"the shipped bundle is not there: {SHIPPED}; `make train` makes it"
)


def environment(**variables: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("CONSUMER_")}
    return {**own, "PYTHONWARNINGS": "error", **variables}


def consumer(*arguments: str, given: bytes = b"", cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Runs `python -m consumer` as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "consumer", *arguments],
        input=given,
        capture_output=True,
        timeout=60,
        cwd=cwd,
        env=environment(**variables),
        check=False,
    )


def documents(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, object]]:
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


# ── usage ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_teaches_with_an_example(command: Sequence[str]) -> None:
    """`--help` of each command says what it does and shows one call of it."""
    shown = CliRunner().invoke(app, [*command, "--help"], terminal_width=200)
    assert shown.exit_code == 0
    assert "Example:" in shown.output
    assert "python -m consumer " + " ".join(command) in " ".join(shown.output.split())


@pytest.mark.parametrize("arguments", [[], ["dead-letters"]], ids=["consumer", "dead-letters"])
def test_without_a_command_there_is_help(arguments: list[str]) -> None:
    """Without a command the commands are listed, and the exit code is that of wrong usage."""
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 2
    assert "Usage:" in shown.output


@pytest.mark.parametrize(
    "arguments",
    [["run", "--no-such-option"], ["no-such-command"], ["predict"], ["get"], ["demo", "--seconds", "soon"], ["doctor", "extra"]],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    """A wrong option, command or argument ends with exit code 2 and names it."""
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 2
    assert "Usage:" in shown.output
    assert "Error" in shown.output


# ── settings ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", [["run"], ["predict", "-"], ["get", "x"], ["doctor"], ["dead-letters", "list"]], ids=" ".join)
def test_a_wrong_setting_ends_with_2(command: list[str]) -> None:
    """A wrong setting ends every command at its start with exit code 2; the message names it, what was expected and found."""
    done = consumer(*command, CONSUMER_BATCH__MAX_RECORDS="many")
    said = done.stderr.decode()
    assert (done.returncode, done.stdout) == (2, b"")
    assert "batch.max_records (CONSUMER_BATCH__MAX_RECORDS): expected a valid integer" in said
    assert "found 'many'" in said
    assert "Traceback" not in said


def test_a_wrong_setting_in_the_file_is_named_with_the_file(tmp_path: Path) -> None:
    """A wrong setting in the TOML file is named together with the file."""
    config = tmp_path / "settings.toml"
    config.write_text('[kafka]\ngroup_idd = "x"\n')
    done = consumer("run", "--config", str(config))
    assert done.returncode == 2
    assert f"kafka.group_idd ({config}): no such setting; did you mean kafka.group_id?" in done.stderr.decode()


def test_the_last_line_and_the_termination_message_name_the_cause(tmp_path: Path) -> None:
    """A bundle that is none ends the service with its cause on the last line of the log and in the termination message."""
    (tmp_path / "manifest.json").write_text("{}")
    message = tmp_path / "termination-log"
    message.write_text("of the container before, and longer than what comes now: " + 1_000 * "x")
    own = {"CONSUMER_LOG__TERMINATION_FILE": str(message), "CONSUMER_HTTP__PORT": "0", "CONSUMER_MODEL__BUNDLE": str(tmp_path)}
    done = consumer("run", **own)
    assert done.returncode == 2
    cause = f"SettingsError: model.bundle: {tmp_path}: expected a bundle with manifest.json"
    assert done.stderr.decode().splitlines()[-1].startswith(cause)
    assert message.read_text() == done.stderr.decode().splitlines()[-1]


def test_no_termination_message_is_made_outside_of_a_pod(tmp_path: Path) -> None:
    """Where the file is not there it is not made, and a folder in its place changes nothing."""
    for file in (tmp_path / "none", tmp_path):
        assert not last_words.leave("the cause", file)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["predict", "-", "--bundle"], ["predict", "--covers"], ["run", "--config"]], ids=" ".join)
def test_a_path_that_is_not_there_ends_with_2(arguments: list[str], tmp_path: Path) -> None:
    """A bundle, covers or a settings file that is not there is named, with exit code 2."""
    missing = str(tmp_path / "none")
    rest = ["-"] if "--covers" in arguments else []
    done = consumer(*arguments, missing, *rest)
    if done.returncode != 2 and not SHIPPED.exists():
        pytest.skip("the shipped bundle is not there yet")
    assert done.returncode == 2
    assert missing in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_a_dependency_that_is_not_there_ends_with_3() -> None:
    """A store that is away ends `get` with exit code 3, and the message says what looks further."""
    done = consumer("get", "x", **NOTHING_THERE)
    assert done.returncode == 3
    assert done.stderr.decode().startswith("DependencyUnavailable: redis is not available:")
    assert "doctor" in done.stderr.decode()


# ── get ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_get_prints_what_the_store_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """`get` prints a line of JSON for each id, in order, also for one that is not there."""
    held = an_entry("bd-1")

    def read(_: PredictionStore, listing_ids: Sequence[str]) -> list[object]:
        return [held if one == "bd-1" else None for one in listing_ids]

    monkeypatch.setattr(PredictionStore, "read", read)
    monkeypatch.setattr("consumer.__main__.configure_logging", lambda level, fmt: None)
    shown = CliRunner().invoke(app, ["get", "none", "bd-1"])
    assert shown.exit_code == 0
    expected = prediction_document(listing_id="bd-1", version=17, model="books@1.3.0", predictions=held.predictions)
    assert [json.loads(line) for line in shown.output.splitlines()] == [{"listing_id": "none", "found": False}, expected]


# ── predict ─────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_bundle
def test_predict_keeps_the_order_and_answers_every_line(tmp_path: Path) -> None:
    """Each line of JSON has its line in the output, in order; lines that are no listing have an error with stage and reason."""
    covers = tmp_path / "covers"
    covers.mkdir()
    (covers / "good.jpg").write_bytes(a_jpeg_cover())
    (covers / "bad.jpg").write_bytes(a_truncated_jpeg())
    lines = [
        b'{"listing_id": "a", "version": 4, "title": "A Brief History of Time", "cover": "good.jpg"}',
        b"not json",
        "{“listing_id”: 1}".encode(),
        b'{"title": "no id"}',
        b'{"listing_id": "b", "price": NaN}',
        b'{"listing_id": "c", "cover": "bad.jpg"}',
        '{"listing_id": "d", "version": 5, "title": "活着"}'.encode(),
        b'{"listing_id": "lone \\ud800"}',
        b'{"listing_id": "e", "version": 6, "cover": "missing.jpg"}',
    ]
    found = documents(consumer("predict", "-", "--covers", str(covers), given=b"\n".join(lines)))
    assert [one["listing_id"] for one in found] == ["a", "-:2", "-:3", "-:4", "b", "c", "d", "lone \ud800", "e"]
    stages = [dict(error)["stage"] if isinstance(error := one.get("error"), dict) else one["version"] for one in found]
    assert stages == [4, "decode", "decode", "decode", "decode", "cover", 5, "decode", 6]


@needs_bundle
def test_predict_gives_the_same_from_a_file(tmp_path: Path) -> None:
    """A file and standard input give the same documents, and they are those of the contract."""
    line = b'{"listing_id": "a", "version": 4, "title": "A Brief History of Time", "authors": ["Stephen Hawking"]}\n'
    file = tmp_path / "listings.jsonl"
    file.write_bytes(line)
    found = documents(consumer("predict", str(file)))
    assert found == documents(consumer("predict", "-", given=line))
    assert [list(one) for one in found] == [["listing_id", "version", "model", "predictions"]]
    predictions = found[0]["predictions"]
    assert isinstance(predictions, dict)
    assert "author" not in predictions, "the listing says who wrote it"
    assert set(predictions["page_count"]) == {"value", "low", "high"}
    assert len(predictions["department"]["labels"]) == 5


@needs_bundle
def test_predict_of_nothing_is_nothing() -> None:
    """No lines in, no lines out."""
    assert documents(consumer("predict", "-")) == []


@needs_bundle
@pytest.mark.parametrize("count", [1, 3_000])
def test_a_reader_that_has_enough_is_no_error(tmp_path: Path, count: int) -> None:
    """`predict … | head` ends with code 0 and says nothing of a broken pipe, however much was to be written."""
    file = tmp_path / "listings.jsonl"
    file.write_text("".join(f'{{"listing_id": "{number}"}}\n' for number in range(count)))
    process = subprocess.Popen(
        [sys.executable, "-m", "consumer", "predict", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    if count > 1:
        assert process.stdout.readline().startswith(b'{"listing_id": "0"')
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), said) == (0, b"")
