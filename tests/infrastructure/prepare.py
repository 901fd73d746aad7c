"""Does the steps that `choose` names until none is left, and records those that failed for the skip reasons."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.infrastructure import docker_engine, images, jars, prometheus, tools
from tests.infrastructure.choose import AsProcess, Choice, Facts, InContainer, Step, Unavailable, choose, missing_images
from tests.infrastructure.commands import SetupError, say
from tests.infrastructure.paths import cache_folder
from tests.infrastructure.probe import probe
from tests.infrastructure.processes import end_left_over_processes


def prepare() -> Choice:
    """Everything that can be set up is. A second `prepare` at the same time waits for the first.

    A step that fails leads to the next best choice.

    Raises: SetupError when TEST_INFRASTRUCTURE is not understood.
    """
    with _lock():
        failures: dict[Step, str] = {}
        while True:
            facts = probe(failures)
            choice = choose(facts)
            step = choice.next_step
            if step is None:
                break
            try:
                _do(step, facts)
            except SetupError as failed:
                say(f"{step}: {failed}")
                failures[step] = str(failed)
            else:
                if choose(probe(failures)).next_step is step:  # done without effect: never try it for ever
                    failures[step] = "it was done and changed nothing"
        try:
            prometheus.fetch()
        except SetupError as failed:
            say(f"prometheus: {failed}")
        tools.install()
        _failures_file().write_text(json.dumps(failures))
        end_left_over_processes()
        if facts.engine_version is not None:
            docker_engine.remove_containers(only_of_ended_runs=True)
    return choice


def choose_without_changes() -> Choice:
    """The choice for a test run: what is there now, with the reasons that the last `prepare` recorded."""
    try:
        recorded = {Step(step): message for step, message in json.loads(_failures_file().read_text()).items()}
    except (FileNotFoundError, ValueError):
        recorded = {}
    return choose(probe(recorded))


def in_one_line(choice: Choice) -> str:
    parts = []
    for service, place in choice.services.items():
        match place:
            case InContainer(image):
                parts.append(f"{service} in a container of {image}")
            case AsProcess(program):
                parts.append(f"{service} as a process of {program}")
            case Unavailable():
                parts.append(f"{service} UNAVAILABLE, its tests are skipped ({place.reason})")
    return f"{', '.join(parts)}; because: {choice.reason}"


def _do(step: Step, facts: Facts) -> None:
    match step:
        case Step.INSTALL_ENGINE:
            docker_engine.install()
        case Step.START_ENGINE:
            docker_engine.start()
        case Step.PULL_IMAGES:
            images.pull(missing_images(facts))
        case Step.BUILD_IMAGES:
            images.build(missing_images(facts))
        case Step.FETCH_PROGRAMS:
            jars.fetch_kafka()
            if jars.find_java(jars.JAVA_FOR_REGISTRY):
                jars.fetch_registry()


def _failures_file() -> Path:
    return cache_folder() / "failures.json"


@contextmanager
def _lock() -> Iterator[None]:
    with (cache_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
