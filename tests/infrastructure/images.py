"""Images for the three services: the official ones, pulled; or equal ones, built from Debian and Maven."""

import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

import docker
from docker.errors import APIError, BuildError, DockerException, ImageNotFound
from requests import RequestException

from tests.infrastructure import debian, docker_engine, jars
from tests.infrastructure.commands import SetupError, Stopwatch
from tests.infrastructure.paths import cache_folder, log_folder
from tests.infrastructure.versions import KAFKA, OFFICIAL_IMAGES, REDIS, REGISTRY, Service

_RECIPES = Path(__file__).parent / "images"
BASE = f"listing-enricher-test/base:{debian.SUITE}"
_VERSIONS = {Service.KAFKA: KAFKA, Service.REDIS: REDIS, Service.REGISTRY: REGISTRY}


def home_built(service: Service) -> str:
    """The tag of the image built here; a changed Dockerfile or pom gives another tag, and so a new build."""
    recipe = (_RECIPES / f"{service}.Dockerfile").read_bytes() + (_RECIPES / "pom.xml").read_bytes()
    return f"listing-enricher-test/{service}:{_VERSIONS[service]}-{hashlib.sha256(recipe).hexdigest()[:8]}"


def present() -> dict[Service, str]:
    """For each service the image that the engine has, the official one first. Asks the engine, downloads nothing."""
    with docker_engine.client(timeout_seconds=10) as engine:
        found = {}
        for service in Service:
            for image in (OFFICIAL_IMAGES[service], home_built(service)):
                if has(engine, image):
                    found[service] = image
                    break
        return found


def pull(services: Iterable[Service]) -> None:
    """Raises: SetupError at the first image that cannot be had."""
    with docker_engine.client(timeout_seconds=600) as engine:
        for service in services:
            image = OFFICIAL_IMAGES[service]
            with Stopwatch(f"pulling {image}"):
                try:
                    engine.images.pull(image)
                except (DockerException, RequestException) as error:
                    raise SetupError(f"{image} could not be pulled ({_first_line(error)})") from error


def build(services: Iterable[Service]) -> None:
    """Builds what is missing: a Debian base, then an image for each service. Nothing is pulled.

    Raises: SetupError.
    """
    with docker_engine.client(timeout_seconds=900) as engine:
        if not has(engine, BASE):
            import_base(engine)
        for service in services:
            _build(engine, service)


def _build(engine: docker.DockerClient, service: Service) -> None:
    context = _context(service)
    with Stopwatch(f"building the image {home_built(service)}"):
        try:
            _, output = engine.images.build(
                path=str(context),
                dockerfile=str(_RECIPES / f"{service}.Dockerfile"),
                tag=home_built(service),
                buildargs={"BASE": BASE},
                network_mode="host",  # on a closed machine only the host's network and names lead to Debian's mirror
                rm=True,
            )
        except BuildError as error:
            _log(service, error.build_log)
            raise SetupError(f"building {home_built(service)} failed: {error.msg}, see {log_folder()}") from error
        except (DockerException, RequestException) as error:
            raise SetupError(f"building {home_built(service)} failed ({_first_line(error)})") from error
        _log(service, output)


def _context(service: Service) -> Path:
    """The folder whose files the Dockerfile copies."""
    if service is Service.KAFKA:
        jars.fetch_kafka()
        return jars.kafka_folder()
    if service is Service.REGISTRY:
        jars.fetch_registry()
        return jars.registry_folder()
    empty = cache_folder() / "empty"
    empty.mkdir(exist_ok=True)
    return empty


def import_base(engine: docker.DockerClient) -> None:
    """Raises: SetupError."""
    folder, archive = cache_folder() / "base", cache_folder() / "base.tar"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        debian.make_base(folder)
        with Stopwatch(f"importing it as {BASE}"):
            with tarfile.open(archive, "w") as tar:
                tar.add(folder, arcname=".")
            name, _, tag = BASE.partition(":")
            engine.api.import_image_from_file(str(archive), repository=name, tag=tag)
    except (APIError, RequestException, OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"the base image could not be made ({_first_line(error)})") from error
    finally:
        archive.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def has(engine: docker.DockerClient, image: str) -> bool:
    try:
        engine.images.get(image)
    except ImageNotFound:
        return False
    return True


def _log(service: Service, output: Iterable[dict[str, str]]) -> None:
    text = "".join(str(part.get("stream") or part.get("error") or "") for part in output)
    (log_folder() / f"build-{service}.log").write_text(text)


def _first_line(error: BaseException) -> str:
    said = error.explanation if isinstance(error, APIError) and error.explanation else str(error)
    return said.strip().splitlines()[0][:200] if said.strip() else type(error).__name__
