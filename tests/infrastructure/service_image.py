"""The project's CPU image as tests run it, on Python's official image or, where none can be pulled, on Debian's Python."""

import hashlib
import os
import shutil
from pathlib import Path

from docker.errors import DockerException

from tests.infrastructure import debian, docker_engine, images
from tests.infrastructure.commands import Stopwatch, run
from tests.infrastructure.paths import cache_folder

_ROOT = Path(__file__).resolve().parents[2]
_RECIPE = Path(__file__).parent / "images" / "python.Dockerfile"
_OFFICIAL = "python:3.12-slim-trixie"


def build() -> str:
    """The tag of the image of this checkout, which names its content: two checkouts do not take each other's.

    Raises: SetupError.
    """
    image = f"listing-enricher-test/service:{_digest()}"
    with docker_engine.client() as engine:
        if images.has(engine, image):
            return image
    base = _base()
    with Stopwatch(f"building {image} on {base}"):
        file = ["-f", "deploy/Dockerfile.cpu", "--build-arg", f"PYTHON_IMAGE={base}"]
        argv = ["docker", "build", "--network=host", *file, "-t", image, "."]
        run(argv, log_name="build-service", timeout_seconds=900, env=_without_buildkit(), cwd=_ROOT)
    return image


def build_on(image: str, dockerfile: str, folder: Path, *, tag: str) -> None:
    """A small image on top of another, from a folder that holds what the Dockerfile copies. Raises: SetupError."""
    (folder / "Dockerfile").write_text(f"FROM {image}\n{dockerfile}", encoding="utf-8")
    argv = ["docker", "build", "-t", tag, str(folder)]
    run(argv, log_name="build-service", timeout_seconds=300, env=_without_buildkit())


def _base() -> str:
    with docker_engine.client(timeout_seconds=300) as engine:
        if images.has(engine, _OFFICIAL):
            return _OFFICIAL
        try:
            engine.images.pull(_OFFICIAL)
        except DockerException:
            pass
        else:
            return _OFFICIAL
        home_built = f"listing-enricher-test/python:{debian.SUITE}"
        if images.has(engine, home_built):
            return home_built
        if not images.has(engine, images.BASE):
            images.import_base(engine)
    context = cache_folder() / "python"
    context.mkdir(exist_ok=True)
    # What leads pip to its packages here, and whom it trusts on the way; both may be absent.
    for host, name in (("/etc/pip.conf", "pip.conf"), ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates.crt")):
        if Path(host).exists():
            shutil.copyfile(host, context / name)
        else:
            (context / name).touch()
    with Stopwatch(f"building {home_built}"):
        argv = ["docker", "build", "--network=host", "--build-arg", f"BASE={images.BASE}", "-f", str(_RECIPE)]
        run([*argv, "-t", home_built, str(context)], log_name="build-service", timeout_seconds=600, env=_without_buildkit())
    return home_built


def _digest() -> str:
    """Of all that goes into the image."""
    digest = hashlib.sha256()
    files = [_ROOT / "deploy/Dockerfile.cpu", _ROOT / "requirements/service.txt"]
    files += [
        file for folder in ("consumer", "model", "build_engine") for file in sorted((_ROOT / folder).rglob("*")) if file.is_file()
    ]
    for file in files:
        if "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(_ROOT)}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _without_buildkit() -> dict[str, str]:
    return {**os.environ, "DOCKER_BUILDKIT": "0"}
