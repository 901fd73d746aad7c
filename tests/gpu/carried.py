"""A folder of files to carry: nothing in it is larger than a part, and what is joined again is what was split."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

CONTENTS = "contents.json"
_CHUNK_BYTES = 1 << 20


class NotWhole(Exception):
    """A part is missing, or is not what was split. The message names the file."""


@dataclass(frozen=True, slots=True)
class Carried:
    """One file, as it was before it was split. `parts` is 0 for a file that was small enough to stay whole."""

    size_bytes: int
    sha256: str
    parts: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What a folder carries, for which Python ("3.12")."""

    python: str
    files: Mapping[str, Carried]

    @classmethod
    def read(cls, folder: Path) -> "Contents":
        """Raises: NotWhole."""
        try:
            found = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
            return cls(found["python"], {name: Carried(**one) for name, one in found["files"].items()})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NotWhole(f"{folder / CONTENTS}: expected what `python -m tests.gpu carry` writes, found: {error}") from error

    @property
    def digest(self) -> str:
        """Changes with any byte of any file."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def part_name(name: str, number: int) -> str:
    return f"{name}.part-{number:03d}"


def split_all(folder: Path, *, python: str, part_bytes: int) -> Contents:
    """Splits what is larger than a part and writes the list of contents, the last of all files.

    Raises:
        ValueError: `part_bytes` is not positive.
    """
    if part_bytes < 1:
        raise ValueError(f"part_bytes: expected 1 or more, found {part_bytes}")
    files = {path.name: _split(path, part_bytes) for path in sorted(folder.iterdir()) if path.is_file()}
    contents = Contents(python, files)
    (folder / CONTENTS).write_text(json.dumps(asdict(contents), indent=1) + "\n", encoding="utf-8")
    return contents


def _split(path: Path, part_bytes: int) -> Carried:
    size, digest = path.stat().st_size, hashlib.sha256()
    count = 0 if size <= part_bytes else -(-size // part_bytes)
    with path.open("rb") as source:
        for number in range(count):
            with path.with_name(part_name(path.name, number)).open("wb") as part:
                left = part_bytes
                while left and (chunk := source.read(min(left, _CHUNK_BYTES))):
                    part.write(chunk)
                    digest.update(chunk)
                    left -= len(chunk)
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
    if count:
        path.unlink()
    return Carried(size, digest.hexdigest(), count)


def join(folder: Path, name: str, carried: Carried, target: Path) -> None:
    """Writes the file as it was before it was split.

    Raises:
        NotWhole: a part is missing or has other bytes; nothing is left at `target` then.
    """
    digest = hashlib.sha256()
    sources = [part_name(name, number) for number in range(carried.parts)] or [name]
    try:
        with target.open("wb") as whole:
            for source in sources:
                with (folder / source).open("rb") as part:
                    while chunk := part.read(_CHUNK_BYTES):
                        whole.write(chunk)
                        digest.update(chunk)
    except FileNotFoundError as error:
        target.unlink(missing_ok=True)
        raise NotWhole(f"{name}: expected {len(sources)} parts, missing: {Path(str(error.filename)).name}") from error
    if digest.hexdigest() != carried.sha256:
        size = target.stat().st_size
        target.unlink()
        raise NotWhole(f"{name}: expected {carried.size_bytes} bytes with sha256 {carried.sha256[:12]}…, found {size} others")
