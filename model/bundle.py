"""The model bundle: the folder that `model` writes, `build_engine` extends and `consumer` serves.

    manifest.json          tasks, labels, thresholds, feature settings, sha256 of every file below, metrics, provenance
    manifest.json.sha256   of the manifest itself, as `sha256sum` writes it
    manifest.json.sig      its signature, where `model sign` made one
    model.onnx             the graph: text and what reads it in bytes, the rest in fp32
    vocabulary.npz         hashes, idf and families of the table's rows
    golden.npz             inputs and the outputs they gave when the bundle was made

Loading verifies every byte. Nothing is unpickled. Files that the manifest does not name (engines) are left alone.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model import signing
from model.features import FeatureExtractor, Features, FeatureSettings, Vocabulary

FORMAT_VERSION = 1
MANIFEST, GRAPH, VOCABULARY, GOLDEN = "manifest.json", "model.onnx", "vocabulary.npz", "golden.npz"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# `_version` and its like are fields beside the tasks' in the store.
_TASK_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

TaskKind = Literal["single", "multi", "ordinal", "regression"]


class BundleError(ValueError):
    """The folder is not a bundle this version can serve; the message names the file, what was expected and found."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskSpec(_Part):
    """One task as the assembly of predictions needs it.

    Attributes:
        labels: in the order of the output's columns; empty for a regression.
        thresholds: for `multi` one a label; a label is given where its probability reaches its threshold.
        group_field: for `ordinal` the listing's field that chooses the group (`currency`), or None.
        groups: value of that field to (first label, one past the last). The probabilities within the group are divided
            by their sum; a value that is not a key leaves all labels in play.
        asked_only_where_missing: the prediction is given only where the listing has no value in this field.
        top_k: how many labels of a `single` or `ordinal` task are given.
    """

    name: str
    kind: TaskKind
    labels: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    group_field: Literal["currency"] | None = None
    groups: dict[str, tuple[int, int]] = Field(default_factory=dict)
    asked_only_where_missing: Literal["publisher", "authors", "format", "language", "page_count"] | None = None
    top_k: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not _TASK_NAME.fullmatch(self.name) or self.name == "embedding":
            raise ValueError(f"task name: expected lower-case letters, digits and _, not 'embedding'; found {self.name!r}")
        if (self.kind == "regression") != (not self.labels):
            raise ValueError(f"task {self.name}: a {self.kind} task has {len(self.labels)} labels")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"task {self.name}: a label occurs twice")
        if len(self.thresholds) != (len(self.labels) if self.kind == "multi" else 0):
            raise ValueError(
                f"task {self.name}: expected a threshold for each label of a multi task and none else, "
                f"found {len(self.thresholds)} for {len(self.labels)} labels of a {self.kind} task"
            )
        for key, (first, end) in self.groups.items():
            if not 0 <= first < end <= len(self.labels):
                raise ValueError(f"task {self.name}: group {key} is {first}..{end} of {len(self.labels)} labels")
        return self


# The names that a graph may give the covers' own dimension, if it is not the batch's, and how many covers it must be given for
# a batch without any: those of older bundles spread one of zeros over all rows.
FEWEST_COVERS = {"covers": 1, "leading_covers": 0}


class TensorSpec(_Part):
    """An input or output of the graph; a dimension is a number or the name of one that varies, see `FEWEST_COVERS`."""

    name: str
    dtype: Literal["int32", "float32", "uint8"]
    shape: tuple[int | str, ...]


class FileSpec(_Part):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Manifest(_Part):
    """All that is known of a bundle. `epoch` orders models: predictions of a larger one replace those of a smaller.

    Attributes:
        reference: task to the share of each of its labels among those that the model gave its validation data
            (`model.reference.label_counts`), in the order of `labels`; tasks without labels are absent.
    """

    format_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    version: str = Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]*$")
    epoch: int = Field(ge=0)
    tasks: tuple[TaskSpec, ...] = Field(min_length=1)
    features: FeatureSettings
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: dict[str, FileSpec] = Field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = Field(default_factory=dict)
    reference: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    data_fingerprint: str
    settings: dict[str, Any] = Field(default_factory=dict)
    library_versions: dict[str, str] = Field(default_factory=dict)
    seed: int = 0

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, FileSpec]) -> dict[str, FileSpec]:
        for name in files:
            if not _FILE_NAME.fullmatch(name) or name.startswith(MANIFEST):
                raise ValueError(f"file name: expected a plain name inside the bundle, found {name!r}")
        return files

    @model_validator(mode="after")
    def _distinct_tasks(self) -> Self:
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError("tasks: a name occurs twice")
        if missing := [name for name in names if name not in {output.name for output in self.outputs}]:
            raise ValueError(f"outputs: expected one for each task, found none for {', '.join(missing)}")
        labels = {task.name: len(task.labels) for task in self.tasks}
        for name, shares in self.reference.items():
            if not shares or len(shares) != labels.get(name) or min(shares) < 0 or not sum(shares) > 0:
                raise ValueError(f"reference: expected a share of each label of a task, found {len(shares)} of {name}")
        return self

    @property
    def label(self) -> str:
        """How predictions name their model: `books@1.0.0`."""
        return f"{self.name}@{self.version}"

    def task(self, name: str) -> TaskSpec:
        """The task of this name; KeyError when there is none."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle on disk. Make one with `Bundle.load`."""

    path: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: Path, *, public_key: str | None = None) -> "Bundle":
        """Reads the manifest and verifies the size and the sha256 of every file it names.

        Args:
            public_key: Ed25519, PEM: the manifest must be signed with its private key, which is looked at before anything
                in it is. None asks for no signature.

        Raises:
            BundleError: a file is missing or changed, the format version is unknown, a name leaves the folder, or the
                signature is missing or another one.
            signing.KeyUnusable: `public_key` is none.
        """
        text = _verified_manifest(path)
        if public_key is not None:
            try:
                signing.verify(text, path / f"{MANIFEST}{signing.SIGNATURE_SUFFIX}", public_key)
            except signing.NotSigned as error:
                raise BundleError(str(error)) from error
        manifest = _parsed(text, where=path / MANIFEST)
        for name in (GRAPH, VOCABULARY, GOLDEN):
            if name not in manifest.files:
                raise BundleError(f"{path / MANIFEST}: expected {name} among the files, found {sorted(manifest.files)}")
        for name, spec in manifest.files.items():
            _verify(path / name, spec)
        return cls(path=path, manifest=manifest)

    @property
    def graph_path(self) -> Path:
        """The fp32 ONNX graph."""
        return self.path / GRAPH

    @property
    def digest(self) -> str:
        """The manifest's sha256, and so that of all it names."""
        return _sha256(self.path / MANIFEST)

    def extractor(self) -> FeatureExtractor:
        """The code and the vocabulary that made the training data's features."""
        try:
            return FeatureExtractor(self.manifest.features, Vocabulary.load(self.path / VOCABULARY))
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise BundleError(f"{self.path / VOCABULARY}: not a vocabulary: {error}") from error

    def golden(self) -> tuple[Features, dict[str, NDArray[np.float32]]]:
        """Inputs and the outputs that the graph gave for them when the bundle was made."""
        try:
            with np.load(self.path / GOLDEN, allow_pickle=False) as arrays:
                features = Features(
                    token_ids=arrays["input_token_ids"],
                    token_weights=arrays["input_token_weights"],
                    cover=arrays["input_cover"],
                    cover_present=arrays["input_cover_present"],
                )
                return features, {output.name: arrays[f"output_{output.name}"] for output in self.manifest.outputs}
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise BundleError(f"{self.path / GOLDEN}: not golden inputs and outputs: {error}") from error


def save_golden(path: Path, features: Features, outputs: Mapping[str, NDArray[np.float32]]) -> None:
    """Writes what `Bundle.golden` reads."""
    arrays: dict[str, NDArray[Any]] = {f"input_{name}": array for name, array in features.as_feed().items()}
    arrays |= {f"output_{name}": array for name, array in outputs.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def write_bundle(target: Path, fill: Callable[[Path], Manifest]) -> Bundle:
    """Writes a bundle so that `target` is the old one, or nothing, until the new one is complete on disk.

    Args:
        fill: writes every file but the manifest into the folder it is given, and returns the manifest without `files`.

    Raises:
        whatever `fill` raises; the target is then as it was and the unfinished folder is gone.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.unfinished-", dir=target.parent))
    try:
        manifest = fill(unfinished)
        files = {file.name: _spec_of(file) for file in sorted(unfinished.iterdir())}
        complete = Manifest.model_validate(manifest.model_dump() | {"files": files})
        text = (json.dumps(complete.model_dump(mode="json"), ensure_ascii=False, indent=1) + "\n").encode()
        (unfinished / MANIFEST).write_bytes(text)
        digest = hashlib.sha256(text).hexdigest()
        (unfinished / f"{MANIFEST}.sha256").write_text(f"{digest}  {MANIFEST}\n", encoding="ascii")
        unfinished.chmod(0o755)  # mkdtemp's folder is private; a bundle is read by the service's user
        for file in unfinished.iterdir():
            _sync(file)
        _sync(unfinished)
        _replace(target, unfinished)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Bundle.load(target)


def _replace(target: Path, finished: Path) -> None:
    if target.exists():
        # A folder that is not empty cannot be renamed over: the old one steps aside first.
        previous = Path(tempfile.mkdtemp(prefix=f".{target.name}.previous-", dir=target.parent))
        target.rename(previous / target.name)
        try:
            finished.rename(target)
        except OSError:
            (previous / target.name).rename(target)
            raise
        finally:
            shutil.rmtree(previous, ignore_errors=True)
    else:
        finished.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _spec_of(path: Path) -> FileSpec:
    return FileSpec(sha256=_sha256(path), size_bytes=path.stat().st_size)


def _verified_manifest(path: Path) -> bytes:
    try:
        text = (path / MANIFEST).read_bytes()
        expected = (path / f"{MANIFEST}.sha256").read_text(encoding="ascii").split()[:1]
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: expected a bundle with {MANIFEST} and {MANIFEST}.sha256: {error}") from error
    found = hashlib.sha256(text).hexdigest()
    if expected != [found]:
        raise BundleError(f"{path / MANIFEST}: expected sha256 {' '.join(expected) or 'in its file'}, found {found}")
    return text


def _parsed(text: bytes, *, where: Path) -> Manifest:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise BundleError(f"{where}: not JSON: {error}") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(f"{where}: expected format_version {FORMAT_VERSION}, found {version!r}")
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleError(f"{where}: {field}: {first['msg']}; found {str(first['input'])[:80]!r}") from error


def _verify(path: Path, spec: FileSpec) -> None:
    if not path.is_file():
        raise BundleError(f"{path}: expected a file of {spec.size_bytes} bytes, found none")
    if (size := path.stat().st_size) != spec.size_bytes:
        raise BundleError(f"{path}: expected {spec.size_bytes} bytes, found {size}")
    if (found := _sha256(path)) != spec.sha256:
        raise BundleError(f"{path}: expected sha256 {spec.sha256}, found {found}")
