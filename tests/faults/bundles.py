"""Bundles that are told apart by what they answer, and the pointer file that names one."""

import hashlib
import json
import shutil
from pathlib import Path

from consumer.settings import ModelSettings
from model.bundle import MANIFEST


def another_bundle(target: Path, *, version: str, epoch: int, labels: int) -> Path:
    """The shipped bundle under another name; its `single` tasks give `labels` labels, so each answer says who made it."""
    shutil.copytree(ModelSettings().bundle, target)
    manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    manifest |= {"version": version, "epoch": epoch}
    for task in manifest["tasks"]:
        if task["kind"] == "single":
            task["top_k"] = labels
    text = json.dumps(manifest, ensure_ascii=False).encode()
    (target / MANIFEST).write_bytes(text)
    (target / f"{MANIFEST}.sha256").write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n", encoding="ascii")
    return target


def point(pointer: Path, bundle: Path, epoch: int | None = None) -> None:
    """Names the bundle, all at once."""
    unfinished = pointer.with_suffix(".unfinished")
    unfinished.write_text(f'bundle = "{bundle}"\n' + (f"epoch = {epoch}\n" if epoch is not None else ""), encoding="utf-8")
    unfinished.replace(pointer)
