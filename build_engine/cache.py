"""Engines on disk, by fingerprint: built once however many ask, never loaded broken, never evicted while in use.

    <fingerprint>.engine   the plan, as TensorRT serialized it
    <fingerprint>.json     what it was built from, its size, and the sha256 of both; written last, so an engine without it is none
    <fingerprint>.lock     held while building; names its owner
    .unfinished-*          being written; what a killed writer leaves goes with the next build of the same engine

Every file is written under another name, fsynced and renamed. Locks are flock(2): the kernel releases them when their process
ends, however it ends. Over NFS that needs NFSv4.
"""

import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from build_engine.errors import EngineError, Unavailable

_POLL_S = 0.1
_UNFINISHED = ".unfinished-"
_SIDECAR_BYTES_MAX = 65_536


def default_folder() -> Path:
    """Where engines are kept unless another folder is named; the service and the commands agree on it."""
    return Path.home() / ".cache" / "listing-enricher" / "engines"


class BrokenEngine(EngineError):
    """A file of the cache is not what was written; it is rebuilt, never loaded."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """All that decides what an engine is. Plans are not reproducible byte by byte: this, not the plan, is an engine's identity.

    Attributes:
        onnx_sha256: of the graph that is compiled.
        options: of the build, by name; the profile and the precision among them.
        flavour, version: of TensorRT.
        compute_capability, gpu: what it is for; `gpu` is "any" where the product does not matter.
    """

    onnx_sha256: str
    options: dict[str, Any]
    flavour: str
    version: str
    compute_capability: str
    gpu: str

    @property
    def digest(self) -> str:
        """32 hex digits of sha256, the name of the engine's files."""
        return hashlib.sha256(_canonical(asdict(self))).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Built:
    """What a build gives. `verified`: its outputs were compared with the bundle's, which needs the GPU it is for."""

    plan: bytes
    verified: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of `list`. `problem` is why it would not be loaded, or None."""

    digest: str
    size_bytes: int
    last_used: float
    in_use: bool
    details: dict[str, Any]
    problem: str | None


class Engine:
    """A checked engine, protected from eviction until `close`; also a context manager.

    Attributes:
        plan: the bytes whose sha256 was compared, ready for `deserialize_cuda_engine`.
    """

    def __init__(self, fingerprint: Fingerprint, plan: bytes, *, verified: bool, descriptor: int) -> None:
        self.fingerprint = fingerprint
        self.plan = plan
        self.verified = verified
        self._descriptor = descriptor

    def close(self) -> None:
        """From now on the engine may be evicted."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class EngineCache:
    """A folder of engines that processes and machines may share.

    Args:
        size_max_bytes: engines beyond it are evicted, least recently used first.
        lock_timeout_s: how long to wait for another process that builds the same engine.
        say: told, in a sentence, of what was ignored, evicted or waited for.
    """

    def __init__(self, folder: Path, *, size_max_bytes: int, lock_timeout_s: float, say: Callable[[str], None]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._size_max_bytes = size_max_bytes
        self._lock_timeout_s = lock_timeout_s
        self._say = say

    def get_or_build(self, fingerprint: Fingerprint, build: Callable[[], Built], *, verified: bool = False) -> Engine:
        """The engine from the cache, else from `build`, which one process at a time calls.

        Args:
            verified: one that is there but was never verified is built again.

        Raises:
            Unavailable: the lock was not free by the deadline; the message names its owner.
            whatever `build` raises; nothing is published then.
        """
        if (engine := self.find(fingerprint, verified=verified)) is not None:
            return engine
        with self._lock(fingerprint.digest):
            if (engine := self.find(fingerprint, verified=verified)) is not None:  # built while we waited
                return engine
            self._sweep(fingerprint.digest)
            built = build()
            self._publish(fingerprint, built)
            engine = self.find(fingerprint)
        if engine is None:
            raise BrokenEngine(f"{self.folder}: the engine that was just written does not read back: a faulty disk?")
        self._evict()
        return engine

    def find(self, fingerprint: Fingerprint, *, verified: bool = False) -> Engine | None:
        """The engine of this fingerprint, or None where there is none that is whole; a broken one is said.

        Args:
            verified: only one that was verified.
        """
        try:
            plan, details, descriptor = self._read(fingerprint.digest)
        except FileNotFoundError:
            return None
        except (BrokenEngine, OSError) as error:
            self._say(f"ignored: {error}")
            return None
        if details["fingerprint"] != json.loads(_canonical(asdict(fingerprint))):
            os.close(descriptor)
            self._say(f"ignored: {fingerprint.digest}.json is of another engine")
            return None
        if verified and not details["verified"]:
            os.close(descriptor)
            return None
        with suppress(OSError):  # a read-only volume keeps no order of use
            os.utime(descriptor)
        return Engine(fingerprint, plan, verified=details["verified"], descriptor=descriptor)

    def newest(self, fits: Callable[[Fingerprint], bool], *, verified: bool = False) -> Engine | None:
        """The most recently used engine whose fingerprint fits, or None: for who does not know every option of the build."""
        for entry in self.entries():
            if entry.problem is not None:
                continue
            found = Fingerprint(**entry.details["fingerprint"])
            if fits(found) and (engine := self.find(found, verified=verified)) is not None:
                return engine
        return None

    def entries(self) -> Iterator[Entry]:
        """Every engine, broken ones too, most recently used first."""
        for path in sorted(self.folder.glob("*.engine"), key=_last_used, reverse=True):
            details: dict[str, Any] = {}
            problem = None
            try:
                _, details, descriptor = self._read(path.stem)
                os.close(descriptor)
            except (BrokenEngine, OSError) as error:
                problem = str(error)
            yield Entry(path.stem, _size(path), _last_used(path), _is_locked(path), details, problem)

    def _read(self, digest: str) -> tuple[bytes, dict[str, Any], int]:
        """Plan, details, and a descriptor that holds a shared lock on the engine's file."""
        path = self.folder / f"{digest}.engine"
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            with os.fdopen(os.dup(descriptor), "rb") as file:
                plan = file.read()
            return plan, _checked(path.with_suffix(".json"), plan), descriptor
        except BaseException:
            os.close(descriptor)
            raise

    def _publish(self, fingerprint: Fingerprint, built: Built) -> None:
        details = {
            "fingerprint": asdict(fingerprint),
            "verified": built.verified,
            "size_bytes": len(built.plan),
            "built_at": int(time.time()),
            "built_by": _owner(),
        }
        sidecar = {**details, "sha256": _digest(details, built.plan)}
        path = self.folder / f"{fingerprint.digest}.engine"
        write_durably(path, built.plan)
        write_durably(path.with_suffix(".json"), json.dumps(sidecar, indent=1).encode())

    @contextmanager
    def _lock(self, digest: str) -> Iterator[None]:
        """Held by one process. The file stays: to remove a lock that another waits for would let two in."""
        deadline = time.monotonic() + self._lock_timeout_s
        descriptor = os.open(self.folder / f"{digest}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        waiting = False
        try:
            while not _try_lock(descriptor):
                owner = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
                if time.monotonic() > deadline:
                    raise Unavailable(f"{self.folder}: {owner} still builds this engine after {self._lock_timeout_s:.0f} s")
                if not waiting:
                    self._say(f"waiting for {owner}, which builds this engine")
                waiting = True
                time.sleep(_POLL_S)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _owner().encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _sweep(self, digest: str) -> None:
        """Removes what killed writers of this engine left: who holds its lock knows that none is alive."""
        for path in self.folder.glob(f"{_UNFINISHED}*-{digest}.*"):
            path.unlink(missing_ok=True)

    def _evict(self) -> None:
        sizes = {path: _size(path) for path in sorted(self.folder.glob("*.engine"), key=_last_used)}
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total <= self._size_max_bytes:
                return
            if self._removed(path):
                total -= size
                self._say(f"evicted {path.stem}, {size / 1e6:.1f} MB, the least recently used")
        if total > self._size_max_bytes:
            self._say(
                f"the cache holds {total / 1e6:.1f} MB of engines in use, more than its {self._size_max_bytes / 1e6:.1f} MB"
            )

    def _removed(self, path: Path) -> bool:
        if _is_locked(path.with_suffix(".lock")):  # just published, and about to be opened
            return False
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            if not _try_lock(descriptor):
                return False
            path.with_suffix(".json").unlink(missing_ok=True)  # first: an engine without it is none
            path.unlink(missing_ok=True)
            return True
        finally:
            os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """After it `path` holds all of `content`, also after a power cut; before it, what it held."""
    unfinished = path.with_name(f"{_UNFINISHED}{socket.gethostname()}-{os.getpid()}-{path.name}")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def _checked(path: Path, plan: bytes) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_SIDECAR_BYTES_MAX)
    except FileNotFoundError as error:
        raise BrokenEngine(f"{path.stem}.engine has no {path.name}: its writer was stopped") from error
    try:
        sidecar = json.loads(text)
        found = sidecar.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise BrokenEngine(f"{path.name} is not what was written") from error
    if found != _digest(sidecar, plan):
        raise BrokenEngine(f"{path.stem}: expected sha256 {found} of engine and details, found another")
    return dict(sidecar)


def _digest(details: dict[str, Any], plan: bytes) -> str:
    return hashlib.sha256(_canonical(details) + plan).hexdigest()


def _canonical(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def _owner() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
