"""The bundle on disk: what is written is complete, and what is loaded is what was written."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from model.bundle import (
    GOLDEN,
    GRAPH,
    MANIFEST,
    VOCABULARY,
    Bundle,
    BundleError,
    Manifest,
    TaskSpec,
    TensorSpec,
    save_golden,
    write_bundle,
)
from tests.model.examples import a_shelf, an_extractor

EXTRACTOR = an_extractor()
OUTPUT = np.arange(12, dtype=np.float32).reshape(6, 2)


def a_manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "name": "books",
        "version": "1.2.0",
        "epoch": 7,
        "tasks": (TaskSpec(name="subject", kind="single", labels=("A", "B")),),
        "features": EXTRACTOR.settings,
        "inputs": (TensorSpec(name="token_ids", dtype="int32", shape=("batch", "tokens")),),
        "outputs": (TensorSpec(name="subject", dtype="float32", shape=("batch", 2)),),
        "data_fingerprint": "abc",
    }
    return Manifest.model_validate(values | changes)


def fill(folder: Path) -> Manifest:
    """The files of a bundle; the graph is not a real one."""
    (folder / GRAPH).write_bytes(b"graph" * 100)
    EXTRACTOR.vocabulary.save(folder / VOCABULARY)
    features = EXTRACTOR.extract(a_shelf(), [None] * 6)
    save_golden(folder / GOLDEN, features, {"subject": OUTPUT})
    return a_manifest()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "books", fill).path


def test_what_is_loaded_is_what_was_written(written: Path) -> None:
    """Manifest, extractor and golden inputs and outputs come back equal."""
    bundle = Bundle.load(written)
    assert bundle.manifest.label == "books@1.2.0"
    assert bundle.manifest.model_copy(update={"files": {}}) == a_manifest()
    assert set(bundle.manifest.files) == {GRAPH, VOCABULARY, GOLDEN}
    features, outputs = bundle.golden()
    assert outputs.keys() == {"subject"}
    np.testing.assert_array_equal(outputs["subject"], OUTPUT)
    again = bundle.extractor().extract(a_shelf(), [None] * 6)
    for name, array in again.as_feed().items():
        np.testing.assert_array_equal(array, features.as_feed()[name])


def test_engines_beside_the_bundle_do_not_disturb_it(written: Path) -> None:
    """`build_engine` adds files that the manifest does not name."""
    (written / "engines").mkdir()
    (written / "engines" / "abc.plan").write_bytes(b"engine")
    assert Bundle.load(written).manifest.name == "books"


@pytest.mark.parametrize("name", [GRAPH, VOCABULARY, GOLDEN, MANIFEST])
def test_one_changed_byte_is_caught(written: Path, name: str) -> None:
    """Every file is verified, the manifest too; the message says which, what was expected and what was found."""
    data = bytearray((written / name).read_bytes())
    data[len(data) // 2] ^= 1
    (written / name).write_bytes(bytes(data))
    with pytest.raises(BundleError, match=rf"{name}: expected sha256 [0-9a-f]{{64}}, found [0-9a-f]{{64}}"):
        Bundle.load(written)


def test_a_missing_or_shortened_file_is_caught(written: Path) -> None:
    """The message names the file and its size."""
    (written / GRAPH).write_bytes(b"graph")
    with pytest.raises(BundleError, match=r"model\.onnx: expected 500 bytes, found 5"):
        Bundle.load(written)
    (written / GRAPH).unlink()
    with pytest.raises(BundleError, match=r"model\.onnx: expected a file of 500 bytes, found none"):
        Bundle.load(written)


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    """A mistyped path says what was expected there."""
    with pytest.raises(BundleError, match=r"expected a bundle with manifest\.json"):
        Bundle.load(tmp_path)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest and its checksum, as a tool of another version, or an attacker, would."""
    values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(values)
    text = json.dumps(values).encode()
    (folder / MANIFEST).write_bytes(text)
    (folder / f"{MANIFEST}.sha256").write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=2), "expected format_version 1, found 2"),
        (lambda m: m.pop("format_version"), "expected format_version 1, found None"),
        (lambda m: m["files"].update({"../../etc/passwd": m["files"][GRAPH]}), "plain name inside the bundle"),
        (lambda m: m["files"].update({"/etc/passwd": m["files"][GRAPH]}), "plain name inside the bundle"),
        (lambda m: m["files"].pop(GRAPH), r"expected model\.onnx among the files"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m["features"].update(scheme="grams-4"), "features.scheme"),
        (lambda m: m.update(outputs=[]), "expected one for each task, found none for subject"),
    ],
    ids=["newer", "no version", "parent", "absolute", "no graph", "unknown field", "features", "outputs"],
)  # fmt: skip
def test_a_manifest_this_version_cannot_serve_is_refused(
    written: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """Unknown versions, names that leave the folder and contradictions end in BundleError."""
    rewritten(written, change)
    with pytest.raises(BundleError, match=message):
        Bundle.load(written)


def test_pickled_arrays_are_refused(written: Path) -> None:
    """An array of objects would need unpickling, which runs code: it is an error."""
    objects = np.array([{"a": 1}], dtype=object)
    with (written / GOLDEN).open("wb") as file:
        np.savez(file, input_token_ids=objects)
    bundle = Bundle(path=written, manifest=a_manifest())
    with pytest.raises(BundleError, match=r"golden\.npz: not golden inputs and outputs"):
        bundle.golden()


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    """When writing fails half-way there is no bundle and no unfinished folder."""

    def fail(folder: Path) -> Manifest:
        (folder / GRAPH).write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "books", fail)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_bundle(written: Path) -> None:
    """The bundle that was there is served until the new one is complete."""

    def fail(folder: Path) -> Manifest:
        (folder / GRAPH).write_bytes(b"half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_bundle(written, fail)
    assert Bundle.load(written).manifest.version == "1.2.0"
    assert [path.name for path in written.parent.iterdir()] == ["books"]


def test_a_new_bundle_replaces_the_old_one_whole(written: Path) -> None:
    """Nothing of the old bundle, its engines included, stays beside the new one."""
    (written / "old.plan").write_bytes(b"engine of the old graph")

    def newer(folder: Path) -> Manifest:
        fill(folder)
        return a_manifest(version="2.0.0")

    assert write_bundle(written, newer).manifest.version == "2.0.0"
    assert not (written / "old.plan").exists()
    assert [path.name for path in written.parent.iterdir()] == ["books"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "multi", "labels": ("A",)}, "expected a threshold for each label"),
        ({"kind": "regression", "labels": ("A",)}, "a regression task has 1 labels"),
        ({"labels": ("A", "A")}, "a label occurs twice"),
        ({"labels": ("A",), "name": "_version"}, "expected lower-case letters"),
        ({"labels": ("A",), "name": "embedding"}, "not 'embedding'"),
        ({"kind": "ordinal", "labels": ("A", "B"), "groups": {"USD": (0, 3)}}, "group USD is 0..3 of 2 labels"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(values: dict[str, Any], message: str) -> None:
    """A manifest with such a task cannot be made."""
    with pytest.raises(ValidationError, match=message):
        TaskSpec.model_validate({"name": "subject", "kind": "single"} | values)
