"""Where downloads, logs and notes of what we started are kept: outside the checkout, shared by all checkouts."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/listing-enricher`, created if need be."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "listing-enricher"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def log_folder() -> Path:
    folder = cache_folder() / "logs"
    folder.mkdir(exist_ok=True)
    return folder


def notes_folder() -> Path:
    """One small JSON file for each process that we started and have not ended yet."""
    folder = cache_folder() / "started"
    folder.mkdir(exist_ok=True)
    return folder


def tail(log: Path, lines: int = 30) -> str:
    if not log.exists():
        return f"({log.name} was not written)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
