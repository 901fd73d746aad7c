"""The other runners, installed from their own lock into an environment of their own, and each as a process."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.peers.job import Plan
from tests.infrastructure.commands import Stopwatch, run
from tests.infrastructure.paths import cache_folder
from tests.journey.running import cpu_seconds, memory_mb

ROOT = Path(__file__).resolve().parents[3]
LOCK = ROOT / "requirements" / "peers.txt"
_INSTALL_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Peer:
    """A runner: its distribution, and how its program is started."""

    name: str
    distribution: str
    arguments: tuple[str, ...]


PEERS = (
    Peer("quixstreams", "quixstreams", ("-m", "tests.benchmarks.peers.quixstreams_app")),
    Peer("bytewax", "bytewax", ("-m", "bytewax.run", "tests.benchmarks.peers.bytewax_flow:flow")),
    Peer("faststream", "faststream", ("-m", "tests.benchmarks.peers.faststream_app")),
    Peer("sentry-arroyo", "sentry-arroyo", ("-m", "tests.benchmarks.peers.arroyo_consumer")),
)


def peers_python() -> Path:
    """The environment's interpreter; installed by the first who asks, anew when the lock changes. Raises: SetupError."""
    folder = cache_folder() / f"peers-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:10]}"
    with (cache_folder() / "peers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            uv = shutil.which("uv") or str(ROOT / ".tools/bin/uv")
            with Stopwatch("installing the other runners"):
                run([uv, "venv", "--python", "3.11", str(folder)], log_name="peers", timeout_seconds=_INSTALL_TIMEOUT_S)
                install = [uv, "pip", "install", "--python", str(folder / "bin/python"), "--require-hashes", "-r", str(LOCK)]
                run(install, log_name="peers", timeout_seconds=_INSTALL_TIMEOUT_S)
            (folder / ".complete").touch()
    return folder / "bin" / "python"


def versions(python: Path) -> dict[str, str]:
    """What is installed of each runner and of the client that they share."""
    names = [*(peer.distribution for peer in PEERS), "confluent-kafka", "fastavro", "redis", "onnxruntime"]
    script = f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {names!r}}}))"
    done = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


class RunningPeer:
    """A runner as a process, ended with its context."""

    def __init__(self, peer: Peer, plan: Plan, *, python: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="peer-")
        home = Path(self._folder.name)
        (home / "plan.json").write_text(json.dumps(asdict(plan)), encoding="utf-8")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CONSUMER_")}
        self._log = (home / "log").open("w+b")
        arguments: Sequence[str] = peer.arguments
        if peer.name == "bytewax":  # positions survive in its own store, not in Kafka
            self._prepare_recovery(python, home)
            arguments = (*arguments, "-r", str(home / "recovery"), "-s", "1", "-b", "0")  # whole seconds: the least
        self._process = subprocess.Popen(
            [str(python), *arguments],
            cwd=ROOT,
            env={**kept, "PEER_PLAN": str(home / "plan.json"), "PYTHONPATH": str(ROOT)},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def _prepare_recovery(self, python: Path, home: Path) -> None:
        (home / "recovery").mkdir()
        subprocess.run([str(python), "-m", "bytewax.recovery", str(home / "recovery"), "1"], check=True, capture_output=True)

    def __enter__(self) -> "RunningPeer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout=10)
        self._log.close()
        self._folder.cleanup()

    def check(self) -> None:
        """Raises: RuntimeError with its log when it has ended."""
        if (code := self._process.poll()) is not None:
            self._log.seek(0)
            raise RuntimeError(f"it ended with {code}:\n{self._log.read().decode(errors='replace')[-3000:]}")

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        return cpu_seconds(self._process.pid)

    def memory_mb(self) -> float:
        """Resident memory now."""
        return memory_mb(self._process.pid)
