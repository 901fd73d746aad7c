"""The command that wants a GPU, from end to end on the software CUDA driver: whether it works, never how fast."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import __main__ as command
from tests.gpu.report import SOFTWARE, UNKNOWN
from tests.gpu.steps import Outcome

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--batch", "1,16,16", "--seconds", "0.01", "--listings", "60", "--with-covers", "20", "--swaps", "4", "--per-s", "20"]
STEPS = ["facts"]
STEPS += [f"{what} {precision}" for precision in ("fp16", "fp32") for what in ("build", "verify", "bench", "replay")]
STEPS += ["pipeline", "pipeline with covers", "swaps"]


def run(folder: Path, env: Mapping[str, str], *more: str, seconds_max: float = 500) -> tuple[int, dict[str, Any], str]:
    """Exit code, JSON and table."""
    out = folder / "results.json"
    argv = [sys.executable, "-m", "tests.gpu", "--out", str(out), "--work", str(folder / "work"), *SMALL, *more]
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=seconds_max)
    assert out.exists(), done.stderr
    return done.returncode, json.loads(out.read_text(encoding="utf-8")), done.stdout


def statuses(found: dict[str, Any]) -> dict[str, str]:
    return {name: step["status"] for name, step in found["steps"].items()}


def reasons(found: dict[str, Any]) -> str:
    return "\n".join(f"{name}: {step['reason']}" for name, step in found["steps"].items() if step["reason"])


def test_every_step_runs_on_the_software_driver_and_no_figure_is_kept(
    software_machine: Mapping[str, str], tmp_path: Path
) -> None:
    """Afterwards one step whose engine is broken fails alone, and what the others found before stays."""
    code, found, shown = run(tmp_path, software_machine)
    assert statuses(found) == {"install": "not run", **dict.fromkeys(STEPS, "ok")}, reasons(found)
    assert code == 0
    assert found["hardware"] == SOFTWARE
    assert {one["measured"] for one in found["targets"]} == {None}
    assert {one["verdict"] for one in found["targets"]} == {"not run"}
    assert "rows/s" in shown
    assert SOFTWARE in shown

    for engine in (tmp_path / "work" / "engines").glob("*.engine"):
        engine.write_bytes(b"broken")
    code, found, _ = run(tmp_path, software_machine, "--only", "facts,verify fp16,replay fp16")
    failed = {"verify fp16", "replay fp16"}
    assert {name for name, status in statuses(found).items() if status == "failed"} == failed
    assert "has no fp16 engine of this bundle" in found["steps"]["verify fp16"]["reason"]
    assert statuses(found)["swaps"] == "ok"
    assert code == 1


def test_without_a_gpu_every_step_is_tried_and_says_what_it_misses(tmp_path: Path) -> None:
    code, found, shown = run(tmp_path, {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, "--wheels", str(tmp_path / "nothing"))
    assert statuses(found) == dict.fromkeys(["install", *STEPS], "failed")
    assert all(step["reason"] for step in found["steps"].values())
    assert "NotWhole" in found["steps"]["install"]["reason"]
    assert "Unavailable" in found["steps"]["facts"]["reason"]
    assert found["hardware"] == UNKNOWN
    assert shown.count("failed") == len(STEPS) + 1
    assert code == 1


def test_what_was_found_is_written_after_each_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever ends the command, because a machine is lent for minutes, keeps it."""
    out = tmp_path / "results.json"

    def interrupted(arguments: argparse.Namespace, chosen: list[str]) -> Iterator[tuple[str, Outcome]]:
        yield "facts", Outcome("failed", "a reason")
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run", interrupted)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        command.main()
    assert json.loads(out.read_text(encoding="utf-8"))["steps"]["facts"]["reason"] == "a reason"


def test_a_step_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.gpu", "--out", str(tmp_path / "out"), "--only", "fly"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "verify fp16" in done.stderr


def test_the_command_itself_needs_only_the_standard_library() -> None:
    """-S leaves out every installed package, as on a machine where nothing was installed yet."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "tests.gpu", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "carry" in done.stdout
