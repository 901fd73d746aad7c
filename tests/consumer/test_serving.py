"""Which model is wanted, and how one is opened."""

import shutil
import threading
from pathlib import Path

import pytest

from consumer import serving
from consumer.doctor import _bundle
from consumer.errors import SettingsError
from consumer.inference.choice import Choice
from consumer.prediction import Predictor
from consumer.records import ModelIdentity
from consumer.serving import Wanted, load_bundle, open_model, read_wanted
from consumer.settings import ModelSettings, Settings
from model.bundle import Bundle
from tests.fake_model import FakeBackend


def pointing(folder: Path, text: str) -> ModelSettings:
    (folder / "pointer.toml").write_text(text, encoding="utf-8")
    return ModelSettings(pointer=folder / "pointer.toml")


def test_the_pointer_goes_before_the_setting(tmp_path: Path) -> None:
    """The pointer's bundle is looked for beside it, or where an absolute path says; its epoch is optional."""
    assert read_wanted(ModelSettings(bundle=tmp_path / "books")) == Wanted(tmp_path.resolve() / "books")
    assert read_wanted(pointing(tmp_path, 'bundle = "b"\nepoch = 7')) == Wanted(tmp_path.resolve() / "b", 7)
    assert read_wanted(pointing(tmp_path, 'bundle = "/nowhere/b"')) == Wanted(Path("/nowhere/b"))


def test_a_symbolic_link_that_is_switched_is_another_bundle(tmp_path: Path) -> None:
    """Where `model.bundle` is a link, what it leads to is wanted."""
    link = tmp_path / "current"
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        found.append(read_wanted(ModelSettings(bundle=link)).bundle.name)
    assert found == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "bundle: Field required"),
        ("bundle = ", "expected a TOML file in UTF-8"),
        ('bundle = ""', "bundle: String should have at least 1 character"),
        ('bundle = "b"\nepoch = -1', "epoch: Input should be greater than or equal to 0"),
        ('bundle = "b"\nepoch = "9"', "epoch: Input should be a valid integer"),
        ('bundel = "b"', "bundle: Field required"),
    ],
)
def test_a_file_that_is_no_pointer_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """The message names the setting, the file and what is wrong in it."""
    with pytest.raises(SettingsError, match=f"^model.pointer: {tmp_path}/pointer.toml: ") as found:
        read_wanted(pointing(tmp_path, text))
    assert complaint in str(found.value)


def test_a_pointer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A missing file is an error, and no way back to `model.bundle`."""
    with pytest.raises(SettingsError, match=r"pointer\.toml: expected a readable file, found: No such file"):
        read_wanted(ModelSettings(pointer=tmp_path / "pointer.toml"))


def test_a_bundle_is_verified_whoever_names_it(tmp_path: Path, tiny_bundle: Bundle) -> None:
    """A changed byte is found, and the message names the setting to look at."""
    shutil.copytree(tiny_bundle.path, tmp_path / "b")
    settings = pointing(tmp_path, 'bundle = "b"')
    assert load_bundle(settings).manifest == tiny_bundle.manifest
    (tmp_path / "b" / "model.onnx").write_bytes(b"no grapH")
    with pytest.raises(SettingsError, match=r"^model\.pointer: .*model\.onnx: expected sha256"):
        load_bundle(settings)
    with pytest.raises(SettingsError, match=r"^model\.bundle: "):
        load_bundle(ModelSettings(bundle=tmp_path / "b"))


class ThreadBackend(FakeBackend):
    """Notes on which threads it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.threads = [threading.current_thread()]

    def infer(self, inputs):  # type: ignore[no-untyped-def]
        self.threads.append(threading.current_thread())
        return super().infer(inputs)

    def close(self) -> None:
        self.threads.append(threading.current_thread())


def test_one_thread_opens_proves_and_frees_a_model(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend lives on a thread of its own from its creation to its end; the epoch is the wanted one."""
    backends: list[ThreadBackend] = []

    def opened(*_: object) -> Choice:
        backends.append(ThreadBackend())
        return Choice(backends[-1], "a test", fallback=False)

    monkeypatch.setattr(serving, "open_backend", opened)
    one, other = (open_model(Settings(), tiny_bundle, epoch) for epoch in (8, 9))
    assert one.identity == ModelIdentity("tiny", "1.0.0", 8)
    assert one.under(12).identity.epoch == 12
    for model in (one, other):
        model.close()
        model.thread.shutdown()
    assert [len(backend.threads) for backend in backends] == [3, 3], "made, golden inputs, freed"
    first, second = (set(backend.threads) for backend in backends)
    assert len(first) == len(second) == 1
    assert not (first | {threading.current_thread()}) & second


def test_a_model_that_fails_its_proof_is_freed(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not give the golden answers leaves no backend and no thread behind."""
    backend = ThreadBackend()
    monkeypatch.setattr(serving, "open_backend", lambda *_: Choice(backend, "a test", fallback=False))

    def unproven(_: Predictor) -> None:
        raise SettingsError("other answers")

    monkeypatch.setattr(Predictor, "warm_up", unproven)
    with pytest.raises(SettingsError, match="other answers"):
        open_model(Settings(), tiny_bundle, 1)
    assert len(backend.threads) == 2, "made, freed"
    assert not backend.threads[1].is_alive()


def test_the_doctor_looks_at_what_the_pointer_names(tmp_path: Path, tiny_bundle: Bundle) -> None:
    """`consumer doctor` says which model a service would serve, and under which epoch."""
    settings = Settings(model=pointing(tmp_path, f'bundle = "{tiny_bundle.path}"\nepoch = 7'))
    assert _bundle(settings).startswith("tiny@1.0.0, epoch 7, ")
