"""Kafka's and the registry's Java programs, fetched by `mvn` and kept in the cache; and the Java to run them."""

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from tests.infrastructure import versions
from tests.infrastructure.commands import SetupError, Stopwatch, run
from tests.infrastructure.debian import apt_install, is_root_on_debian
from tests.infrastructure.paths import cache_folder

JAVA_FOR_KAFKA = 17
JAVA_FOR_REGISTRY = 21

_POM = Path(__file__).parent / "images" / "pom.xml"
DEPENDENCY_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"


def kafka_folder() -> Path:
    """Holds `libs/` once `fetch_kafka` is done."""
    return cache_folder() / f"kafka-{versions.KAFKA}"


def registry_folder() -> Path:
    """Holds `app/` once `fetch_registry` is done."""
    return cache_folder() / f"apicurio-registry-{versions.REGISTRY}"


def has_kafka() -> bool:
    return (kafka_folder() / "libs").is_dir()


def has_registry() -> bool:
    return (registry_folder() / "app").is_dir()


def can_use_maven() -> bool:
    return shutil.which("mvn") is not None or is_root_on_debian()


def fetch_kafka() -> None:
    """Raises: SetupError."""
    if has_kafka():
        return
    need_maven()
    with Stopwatch(f"fetching Kafka {versions.KAFKA}'s jars"):
        partial = empty_folder(kafka_folder() / "partial")
        goal = [f"{DEPENDENCY_PLUGIN}:copy-dependencies", f"-DoutputDirectory={partial}"]
        argv = ["mvn", "-q", "-B", "-f", str(_POM), f"-Dkafka.version={versions.KAFKA}", *goal]
        run(argv, log_name="maven", timeout_seconds=600)
        partial.rename(kafka_folder() / "libs")  # only a finished download gets the final name


def fetch_registry() -> None:
    """Raises: SetupError."""
    if has_registry():
        return
    need_maven()
    with Stopwatch(f"fetching the registry {versions.REGISTRY} (about 160 MB)"):
        download = empty_folder(registry_folder() / "download")
        artifact = f"io.apicurio:apicurio-registry-app:{versions.REGISTRY}:tar.gz:all"
        goal = [f"{DEPENDENCY_PLUGIN}:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={download}"]
        run(["mvn", "-q", "-B", *goal], log_name="maven", timeout_seconds=900, cwd=download)
        partial = empty_folder(registry_folder() / "partial")
        with tarfile.open(next(download.glob("*.tar.gz"))) as archive:
            archive.extractall(partial, filter="data")
        runner = next(partial.rglob("quarkus-run.jar"), None)
        if runner is None:
            raise SetupError(f"expected quarkus-run.jar in {artifact}, found none")
        runner.parent.rename(registry_folder() / "app")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(download)


def find_java(minimum: int) -> Path | None:
    """The first Java of at least that major version in JAVA_HOME, on PATH, or where Debian keeps them."""
    return next((java for java in _javas() if (_major_version(java) or 0) >= minimum), None)


def _javas() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java"
    if on_path := shutil.which("java"):
        yield Path(on_path)
    yield from sorted(Path("/usr/lib/jvm").glob("*/bin/java"))


def _major_version(java: Path) -> int | None:
    try:
        said = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(\d+)', said.stderr)
    return int(found[1]) if found else None


def need_maven() -> None:
    """Raises: SetupError."""
    if shutil.which("mvn") is None:
        if not is_root_on_debian():
            raise SetupError("`mvn` (Apache Maven) is not installed")
        apt_install("maven")


def empty_folder(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
