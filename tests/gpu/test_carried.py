"""What is carried arrives whole or not at all, and is installed with nothing but Python."""

import base64
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest

from tests.gpu.carried import CONTENTS, Contents, NotWhole, join, part_name, split_all
from tests.gpu.carry import without
from tests.gpu.install import Places, install

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def a_carried_folder(folder: Path, *, part_bytes: int = 1_000, python: str = PYTHON) -> Path:
    """A package, what stands for pip, and a jar with a library."""
    folder.mkdir()
    a_wheel(folder)
    a_pip(folder)
    with zipfile.ZipFile(folder / "tensorrt-redist.jar", "w") as jar:
        jar.writestr("org/somewhere/libnvinfer.so.10", b"library " * 1_000)
        jar.writestr("META-INF/reflect-config.json", b"{}")
    split_all(folder, python=python, part_bytes=part_bytes)
    return folder


def a_wheel(folder: Path) -> None:
    write_wheel(folder, "carried_package", {"carried_package.py": b"answer = 42\n"})


def a_pip(folder: Path) -> None:
    """Stands for pip: unpacks the wheels that it is given into the folder after --target."""
    script = (
        b"import sys, zipfile\n"
        b"target = sys.argv[sys.argv.index('--target') + 1]\n"
        b"for name in sys.argv:\n"
        b"    if name.endswith('.whl'):\n"
        b"        zipfile.ZipFile(name).extractall(target)\n"
    )
    write_wheel(folder, "pip", {"pip/__main__.py": script})


def write_wheel(folder: Path, name: str, files: dict[str, bytes]) -> None:
    about = f"{name}-1.0.dist-info"
    files = {
        **files,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()},{len(content)}\n"
        for path, content in files.items()
    )
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, content in {**files, f"{about}/RECORD": f"{record}{about}/RECORD,,\n".encode()}.items():
            wheel.writestr(path, content)


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 25])
def test_what_was_split_is_joined_to_the_same_bytes(tmp_path: Path, size: int) -> None:
    content = bytes(range(size))
    (tmp_path / "file").write_bytes(content)
    contents = split_all(tmp_path, python="3.12", part_bytes=10)
    assert max(path.stat().st_size for path in tmp_path.iterdir() if path.name != CONTENTS) <= 10
    assert Contents.read(tmp_path) == contents
    join(tmp_path, "file", contents.files["file"], tmp_path / "joined")
    assert (tmp_path / "joined").read_bytes() == content


def test_a_part_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(25))
    carried = split_all(tmp_path, python="3.12", part_bytes=10).files["file"]
    part = tmp_path / part_name("file", 1)
    part.write_bytes(b"other byte")
    with pytest.raises(NotWhole, match="file: expected 25 bytes with sha256"):
        join(tmp_path, "file", carried, tmp_path / "joined")
    part.unlink()
    with pytest.raises(NotWhole, match=r"file: expected 3 parts, missing: file\.part-001"):
        join(tmp_path, "file", carried, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_packages_and_libraries_are_installed_once(tmp_path: Path) -> None:
    carried, places = a_carried_folder(tmp_path / "carried"), Places(tmp_path / "work")
    assert not install(carried, places)["was_installed"]
    assert (places.packages / "carried_package.py").is_file()
    assert [path.name for path in places.libraries.iterdir()] == ["libnvinfer.so.10"]
    assert install(carried, places)["was_installed"]


def test_what_is_for_another_python_is_refused(tmp_path: Path) -> None:
    carried = a_carried_folder(tmp_path / "carried", python="3.9")
    with pytest.raises(NotWhole, match=r"expected Python 3\.9 on x86_64"):
        install(carried, Places(tmp_path / "work"))


def test_a_folder_without_contents_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotWhole, match=r"python -m tests\.gpu carry"):
        install(tmp_path, Places(tmp_path / "work"))
    (tmp_path / CONTENTS).write_text(json.dumps({"python": "3.12"}))
    with pytest.raises(NotWhole):
        Contents.read(tmp_path)


def test_the_lock_loses_what_comes_from_elsewhere_with_its_hashes() -> None:
    removed = "tensorrt-cu13==11 \\\n    --hash=sha256:b\n"
    kept = "onnx==1 \\\n    --hash=sha256:a\n    # via x\n", "typer==2 \\\n    --hash=sha256:c\n"
    assert without(kept[0] + removed + kept[1], ("tensorrt",)) == kept[0] + kept[1]
