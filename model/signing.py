"""Who made a bundle: an Ed25519 signature over its manifest, which holds the sha256 of every other file.

`manifest.json.sig` holds the 64 bytes of the signature in base64. `cryptography` is imported only where a key is at hand:
who signs nothing needs none of it.
Source: RFC 8032 (Ed25519), RFC 8410 (its keys in PEM).
"""

import base64
import binascii
import os
from pathlib import Path

SIGNATURE_SUFFIX = ".sig"


class KeyUnusable(ValueError):
    """What was given as a key is not an Ed25519 key in PEM; the message does not quote it."""


class NotSigned(ValueError):
    """There is no signature, or it is not of this text by this key."""


def verify(text: bytes, signature: Path, public_key: str) -> None:
    """Returns when the file `signature` is the key owner's of exactly these bytes.

    Raises:
        NotSigned: there is no signature, or another one.
        KeyUnusable: `public_key` is no Ed25519 public key in PEM.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(public_key.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyUnusable("expected an Ed25519 public key in PEM, found something else")
    try:
        key.verify(base64.b64decode(signature.read_bytes().strip(), validate=True), text)
    except OSError as error:
        raise NotSigned(f"{signature}: expected a signature, found none: {error.strerror}") from error
    except (InvalidSignature, binascii.Error) as error:
        raise NotSigned(f"{signature}: expected the key owner's signature of the manifest, found another") from error


def sign(manifest: Path, private_key: Path) -> Path:
    """Writes the signature beside the manifest; one that is there is replaced.

    Returns:
        The signature's path.

    Raises:
        KeyUnusable: the file holds no Ed25519 private key in PEM without a password.
        OSError: a file cannot be read or written.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(private_key.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it asks for a password
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnusable(f"{private_key}: expected an Ed25519 private key in PEM without a password, found something else")
    signature = manifest.with_name(manifest.name + SIGNATURE_SUFFIX)
    unfinished = signature.with_name(f".{signature.name}.unfinished")
    unfinished.write_bytes(base64.b64encode(key.sign(manifest.read_bytes())) + b"\n")
    unfinished.replace(signature)
    return signature


def generate_keys(private_key: Path, public_key: Path) -> None:
    """Writes a new pair; the private key's file is its owner's alone to read.

    Raises:
        OSError: one of the files cannot be written; FileExistsError: it is there already, a key is never overwritten.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with os.fdopen(os.open(private_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private)
    with public_key.open("xb") as file:
        file.write(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
