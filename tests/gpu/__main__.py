"""`python -m tests.gpu`: see the package's docstring. Exit codes: 0 every step is done, 1 one failed, 2 wrong usage."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.gpu import __doc__ as about_it
from tests.gpu import plan, report
from tests.gpu.install import Places, install
from tests.gpu.steps import Outcome, environment, noted, run_steps

ROOT = Path(__file__).resolve().parents[2]
PART_MB = 60


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=about_it, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--out", type=Path, help="the JSON; steps that --only leaves out keep what an earlier run wrote there")
    found.add_argument("--wheels", type=Path, help="what `carry` made; without it this Python's own packages are used")
    found.add_argument("--work", type=Path, default=Path(".cache/gpu"), help="where packages, libraries and engines go")
    found.add_argument("--only", default="", metavar="STEP,STEP", help="where one command may not take as long as all of it")
    found.add_argument("--bundle", type=Path, default=ROOT / "model" / "bundles" / "books")
    found.add_argument("--batch", default="1,256,1024", metavar="MIN,OPT,MAX", help="of the engines, as `build_engine build`")
    found.add_argument("--seconds", type=float, default=2.0, help="for each measurement of an engine")
    found.add_argument("--listings", type=int, default=50_000, help="through the pipeline, without covers")
    found.add_argument("--with-covers", type=int, default=10_000, help="through the pipeline, every second with a cover")
    found.add_argument("--swaps", type=int, default=100)
    found.add_argument("--per-s", type=float, default=500.0, help="listings a second while models are swapped")
    carry = found.add_subparsers(dest="command", metavar="carry").add_parser("carry", help="with a network: what to carry there")
    carry.add_argument("--to", type=Path, required=True, help="an empty folder")
    carry.add_argument("--python", default="3.12", help="the version of the machine with the GPU, or such an interpreter's path")
    carry.add_argument("--part-mb", type=int, default=PART_MB, help="no file will be larger")
    return found


def main() -> int:
    """Runs the command; returns its exit code."""
    arguments = parser().parse_args()
    if arguments.command == "carry":
        from tests.gpu import carry  # its imports need what is not on the machine with the GPU

        return carry.main(arguments.to, python=arguments.python, part_mb=arguments.part_mb)
    known = plan.names(arguments)
    chosen = [name.strip() for name in arguments.only.split(",") if name.strip()] or known
    if arguments.out is None or not set(chosen) <= set(known):
        _say(f"expected --out, and in --only some of: {', '.join(known)}")
        return 2
    about, outcomes = _about(), _former(arguments.out, known)
    found, failed = report.document(outcomes, about), False
    for name, outcome in _run(arguments, chosen):
        outcomes[name], failed = outcome, failed or outcome.status == "failed"
        found = report.document(outcomes, about)
        # After each step: whoever ends the command keeps what it found until then.
        arguments.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(report.table(found))
    return 1 if failed else 0


def _run(arguments: argparse.Namespace, chosen: list[str]) -> Iterator[tuple[str, Outcome]]:
    places = Places(arguments.work.resolve())
    places.engines.mkdir(parents=True, exist_ok=True)
    if plan.INSTALL in chosen and arguments.wheels is not None:
        with noted(_say, plan.INSTALL) as outcome:
            outcome.figures = install(arguments.wheels, places)
        yield plan.INSTALL, outcome
    steps = [step for step in plan.steps(arguments, places) if step.name in chosen]
    yield from run_steps(steps, environment(places), _say)


def _former(out: Path, known: list[str]) -> dict[str, Outcome]:
    """What an earlier run found, by step; "not run" where there was none."""
    try:
        steps = json.loads(out.read_text(encoding="utf-8"))["steps"]
        return {name: Outcome(**steps[name]) if name in steps else Outcome("not run") for name in known}
    except (OSError, ValueError, LookupError, TypeError):
        return {name: Outcome("not run") for name in known}


def _about() -> dict[str, Any]:
    try:
        asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT)
        commit = asked.stdout.strip()
    except OSError:
        commit = ""
    return {"commit": commit or None, "python": platform.python_version(), "cpus": os.cpu_count()}


if __name__ == "__main__":
    sys.exit(main())
