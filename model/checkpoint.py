"""What an interrupted training goes on from: files in a folder beside the bundle that is to be, gone when it is written.

A file counts only for the very training that left it: its key is a hash of data, settings, seed and versions.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Named states of one training.

    Attributes:
        folder: made when the first state is saved.
        identity: what the states depend on; anything that JSON can hold.
    """

    folder: Path
    identity: Mapping[str, Any]

    def narrowed(self, **more: Any) -> "Checkpoints":
        """The same folder for states that depend on more."""
        return Checkpoints(self.folder, {**self.identity, **more})

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def load(self, name: str) -> dict[str, Any] | None:
        """What `save` wrote for this very training, else None; a file that cannot be read counts as none."""
        try:
            state = torch.load(self.folder / f"{name}.pt", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError):
            return None
        return state["state"] if isinstance(state, dict) and state.get("key") == self.key else None

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Writes a state of tensors, numbers, texts and containers of these; an interrupted write leaves the one before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"{name}.unfinished"
        torch.save({"key": self.key, "state": dict(state)}, unfinished)
        unfinished.replace(self.folder / f"{name}.pt")

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
