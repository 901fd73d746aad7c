"""A bundle with a key set is loaded only when that key's owner signed exactly it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model import signing
from model.bundle import GOLDEN, GRAPH, MANIFEST, VOCABULARY, Bundle, BundleError, write_bundle
from model.features import Vocabulary
from tests.model.test_bundle import fill, rewritten

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, str]:
    """The private key's file and the public key."""
    signing.generate_keys(tmp_path / "private.pem", tmp_path / "public.pem")
    return tmp_path / "private.pem", (tmp_path / "public.pem").read_text(encoding="ascii")


@pytest.fixture
def signed(tmp_path: Path, keys: tuple[Path, str]) -> Path:
    folder = write_bundle(tmp_path / "books", fill).path
    signing.sign(folder / MANIFEST, keys[0])
    return folder


def test_a_signed_bundle_is_loaded_with_and_without_the_key(signed: Path, keys: tuple[Path, str]) -> None:
    """Who asks for no signature need not know that there is one."""
    assert Bundle.load(signed, public_key=keys[1]).manifest == Bundle.load(signed).manifest


def test_an_unsigned_bundle_is_refused(signed: Path, keys: tuple[Path, str]) -> None:
    """The message names the file that is not there."""
    (signed / f"{MANIFEST}.sig").unlink()
    with pytest.raises(BundleError, match=r"manifest\.json\.sig: expected a signature, found none"):
        Bundle.load(signed, public_key=keys[1])


def test_a_bundle_that_another_signed_is_refused(signed: Path, keys: tuple[Path, str], tmp_path: Path) -> None:
    """A valid signature by a key that is not ours is none."""
    signing.generate_keys(tmp_path / "other.pem", tmp_path / "other.pub.pem")
    signing.sign(signed / MANIFEST, tmp_path / "other.pem")
    with pytest.raises(BundleError, match="expected the key owner's signature of the manifest, found another"):
        Bundle.load(signed, public_key=keys[1])


def test_a_manifest_rewritten_with_its_checksum_is_refused(signed: Path, keys: tuple[Path, str]) -> None:
    """What sha256 alone cannot see: an attacker who writes the sum, too."""
    rewritten(signed, lambda values: values.update(version="6.6.6"))
    assert Bundle.load(signed).manifest.version == "6.6.6"
    with pytest.raises(BundleError, match="found another"):
        Bundle.load(signed, public_key=keys[1])


@pytest.mark.parametrize("name", [GRAPH, VOCABULARY, GOLDEN, MANIFEST, f"{MANIFEST}.sha256", f"{MANIFEST}.sig"])
def test_one_flipped_bit_of_any_file_is_refused(signed: Path, keys: tuple[Path, str], name: str) -> None:
    """With a key set there is no byte of a bundle that may differ."""
    data = bytearray((signed / name).read_bytes())
    data[10] ^= 1
    (signed / name).write_bytes(bytes(data))
    with pytest.raises(BundleError, match=name.removesuffix(".sha256")):
        Bundle.load(signed, public_key=keys[1])


@pytest.mark.parametrize("text", [b"", b"not base64 \xff", b"AAAA", b"\n"])
def test_a_signature_file_of_other_bytes_is_refused(signed: Path, keys: tuple[Path, str], text: bytes) -> None:
    """Whatever stands there: it is no signature, and no traceback."""
    (signed / f"{MANIFEST}.sig").write_bytes(text)
    with pytest.raises(BundleError, match="found another"):
        Bundle.load(signed, public_key=keys[1])


@pytest.mark.parametrize("key", ["", "secret text", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_public_key_is_said_to_be_none(signed: Path, key: str) -> None:
    """An empty key does not mean that no signature is asked for. The text is not quoted."""
    with pytest.raises(signing.KeyUnusable, match="expected an Ed25519 public key in PEM, found something else"):
        Bundle.load(signed, public_key=key)


def test_a_private_key_belongs_to_its_owner_and_is_never_overwritten(keys: tuple[Path, str], tmp_path: Path) -> None:
    """Mode 600, and a second `keygen` to the same place leaves the first's key."""
    assert keys[0].stat().st_mode & 0o777 == 0o600
    before = keys[0].read_bytes()
    with pytest.raises(FileExistsError):
        signing.generate_keys(keys[0], tmp_path / "another.pem")
    assert keys[0].read_bytes() == before


def command(*words: str, **environment: str) -> tuple[int, str]:
    """Runs `python -m …`: exit code and all output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONSUMER_")}
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, cwd=ROOT, env={**kept, **environment}, timeout=60, check=False
    )
    return done.returncode, (done.stdout + done.stderr).decode()


def test_the_commands_make_keys_and_a_signature_that_the_service_takes(tmp_path: Path) -> None:
    """`keygen`, `sign`, then the service's own way to its bundle; before `sign` and after a change it is refused."""
    folder, private, public = write_bundle(tmp_path / "books", fill).path, tmp_path / "a.pem", tmp_path / "a.pub.pem"
    assert command("model", "keygen", "--private", str(private), "--public", str(public))[0] == 0
    service = {"CONSUMER_MODEL__BUNDLE": str(folder), "CONSUMER_MODEL__PUBLIC_KEY_FILE": str(public)}

    code, said = command("consumer", "run", **service, CONSUMER_HTTP__PORT="0")
    assert (code, "manifest.json.sig: expected a signature, found none" in said) == (2, True)
    assert command("model", "sign", "--bundle", str(folder), "--key", str(private))[0] == 0
    loaded = Bundle.load(folder, public_key=public.read_text(encoding="ascii"))
    assert loaded.manifest.label == "books@1.2.0"

    rewritten(folder, lambda values: values.update(seed=1))
    code, said = command("consumer", "predict", os.devnull, **service)
    assert (code, "found another" in said, "Traceback" in said) == (2, True, False)
    code, said = command("model", "sign", "--bundle", str(folder), "--key", str(public))
    assert (code, "expected an Ed25519 private key" in said) == (2, True)


def test_a_pickle_in_the_arrays_is_refused_unread(tmp_path: Path) -> None:
    """An object array is a pickle; loading one runs what its author likes."""

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    def fill_with_pickles(folder: Path) -> object:
        manifest = fill(folder)
        for name in (VOCABULARY, GOLDEN):
            with np.load(folder / name) as plain:
                arrays = {key: np.array([Bomb()], dtype=object) for key in plain.files}
            np.savez(folder / name, **arrays)
        return manifest

    bundle = write_bundle(tmp_path / "books", fill_with_pickles)  # type: ignore[arg-type]
    for read in (bundle.extractor, bundle.golden, lambda: Vocabulary.load(bundle.path / VOCABULARY)):
        with pytest.raises(ValueError, match=r"allow_pickle=False|not a vocabulary|not golden"):
            read()
    assert not (tmp_path / "exploded").exists()
