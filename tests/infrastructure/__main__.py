"""Sets up what the tests need. Example: `TEST_INFRASTRUCTURE=processes python -m tests.infrastructure prepare`."""

import argparse
import sys

from tests.infrastructure import docker_engine
from tests.infrastructure.commands import SetupError, say
from tests.infrastructure.prepare import choose_without_changes, in_one_line, prepare
from tests.infrastructure.processes import end_all_processes
from tests.software_cuda.build import build as build_software_cuda

_COMMANDS = {
    "prepare": "set up what the tests need and say in one line what was chosen and why",
    "status": "say what a test run would use now, changing nothing",
    "down": "remove the containers and end the processes that we started, dockerd included; the cache stays",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.infrastructure", epilog=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, purpose in _COMMANDS.items():
        commands.add_parser(name, help=purpose, description=purpose)
    command = parser.parse_args().command
    try:
        if command == "prepare":
            say(in_one_line(prepare()))
            _build_software_cuda()
        elif command == "status":
            say(in_one_line(choose_without_changes()))
        else:
            _down()
    except SetupError as failed:
        say(str(failed))
        return 2
    return 0


def _build_software_cuda() -> None:
    """Minutes at first, which no test should wait for. Without it the tests that need it are skipped, with the reason."""
    try:
        build_software_cuda()
    except SetupError as failed:
        say(f"software CUDA driver UNAVAILABLE, its tests are skipped ({failed})")


def _down() -> None:
    processes = end_all_processes()
    containers = docker_engine.remove_containers(only_of_ended_runs=False) if docker_engine.version() else 0
    engine = "and stopped the dockerd we had started" if docker_engine.stop() else "and had no dockerd of ours to stop"
    say(f"ended {processes} processes, removed {containers} containers, {engine}")


if __name__ == "__main__":
    sys.exit(main())
