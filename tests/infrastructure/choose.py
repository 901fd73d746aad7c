"""The choice, as a function of facts: what to set up next, and what each service will run on.

In order: official images that are there or can be pulled; images built here from Debian and Maven; local processes;
and for what is left, a reason why its tests are skipped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tests.infrastructure.versions import Service


class Requested(StrEnum):
    """What the environment variable TEST_INFRASTRUCTURE may say."""

    AUTO = "auto"
    DOCKER = "docker"
    PROCESSES = "processes"


class Step(StrEnum):
    INSTALL_ENGINE = "install Docker"
    START_ENGINE = "start Docker"
    PULL_IMAGES = "pull images"
    BUILD_IMAGES = "build images"
    FETCH_PROGRAMS = "fetch Kafka and the registry"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a probe of this machine found. Probing changes nothing."""

    requested: Requested = Requested.AUTO
    engine_version: str | None = None  # None: no engine answers
    engine_is_ours: bool = False  # its dockerd was started by an earlier `prepare`
    can_start_engine: bool = False
    can_install_engine: bool = False
    images: Mapping[Service, str] = field(default_factory=dict)
    can_build_images: bool = False
    local_programs: Mapping[Service, str] = field(default_factory=dict)  # what each could run from as a process
    local_obstacles: Mapping[Service, str] = field(default_factory=dict)  # why a service can't be a process, for good
    can_fetch_programs: bool = False
    failures: Mapping[Step, str] = field(default_factory=dict)  # steps that were tried and did not work


@dataclass(frozen=True, slots=True)
class InContainer:
    image: str


@dataclass(frozen=True, slots=True)
class AsProcess:
    program: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """`next_step` would improve on `services`; when it is None the choice is final."""

    next_step: Step | None
    services: Mapping[Service, InContainer | AsProcess | Unavailable]
    reason: str


def choose(facts: Facts) -> Choice:
    services = {service: _place(facts, service) for service in Service}
    return Choice(next_step=_next_step(facts), services=services, reason=_reason(facts))


def missing_images(facts: Facts) -> list[Service]:
    return [service for service in Service if service not in facts.images]


def _next_step(facts: Facts) -> Step | None:
    step = None if facts.requested is Requested.PROCESSES else _step_towards_docker(facts)
    return step or _step_towards_processes(facts)


def _step_towards_docker(facts: Facts) -> Step | None:
    if facts.engine_version is None:
        candidates = {
            Step.START_ENGINE: facts.can_start_engine,
            Step.INSTALL_ENGINE: facts.can_install_engine,
        }
    elif missing_images(facts):
        # Pulling comes first where it works: official images are what most readers run in production.
        candidates = {Step.PULL_IMAGES: True, Step.BUILD_IMAGES: facts.can_build_images}
    else:
        candidates = {}
    return next((step for step, possible in candidates.items() if possible and step not in facts.failures), None)


def _step_towards_processes(facts: Facts) -> Step | None:
    if facts.requested is Requested.DOCKER or not facts.can_fetch_programs or Step.FETCH_PROGRAMS in facts.failures:
        return None
    in_docker = _usable_images(facts)
    lacking = [
        service
        for service in (Service.KAFKA, Service.REGISTRY)
        if service not in in_docker and service not in facts.local_programs and service not in facts.local_obstacles
    ]
    return Step.FETCH_PROGRAMS if lacking else None


def _usable_images(facts: Facts) -> Mapping[Service, str]:
    return {} if facts.requested is Requested.PROCESSES or facts.engine_version is None else facts.images


def _place(facts: Facts, service: Service) -> InContainer | AsProcess | Unavailable:
    images = _usable_images(facts)
    if service in images:
        return InContainer(images[service])
    if facts.requested is not Requested.DOCKER and service in facts.local_programs:
        return AsProcess(facts.local_programs[service])
    return Unavailable(_why_unavailable(facts, service))


def _why_unavailable(facts: Facts, service: Service) -> str:
    if step := _next_step(facts):
        return f"{service} is not set up ({step} is still to be done): run `make test`"
    reasons = [f"{step} failed: {message.splitlines()[0]}" for step, message in facts.failures.items()]
    if facts.requested is not Requested.PROCESSES and facts.engine_version is None and not facts.failures:
        reasons.append("no Docker engine answers and none can be installed (that takes root on Debian and no DOCKER_HOST)")
    if facts.requested is not Requested.DOCKER:
        obstacle = facts.local_obstacles.get(service, "its programs are not in the cache and `mvn` is not installed")
        reasons.append(f"not as a process: {obstacle}")
    return f"{service} cannot be had here: {'; '.join(reasons)}"


def _reason(facts: Facts) -> str:
    """Why not the option before: the whole way down to what was chosen."""
    if facts.requested is Requested.PROCESSES:
        return "TEST_INFRASTRUCTURE=processes asks for no Docker"
    if facts.engine_version is None:
        tried = "; ".join(f"{step} failed: {message.splitlines()[0]}" for step, message in facts.failures.items())
        return f"no Docker engine answers{f' ({tried})' if tried else ''}"
    owner = "started by us" if facts.engine_is_ours else "which was running"
    home_built = [image for image in facts.images.values() if image.startswith("listing-enricher-test/")]
    origin = "images built here, since official ones could not be pulled" if home_built else "official images"
    if missing_images(facts):
        origin = "; ".join(f"{step} failed: {message.splitlines()[0]}" for step, message in facts.failures.items())
    return f"Docker {facts.engine_version}, {owner}, {origin}"
