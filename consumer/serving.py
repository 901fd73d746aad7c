"""The model that is wanted, and one that serves: which bundle, under which epoch, on which thread.

`model.bundle` names the bundle; `model.pointer`, where it is set, names a small TOML file that does, and that may change while
the service runs (`model_swap.py`):

    bundle = "books-1.3.0"   # relative to the file's folder, or absolute
    epoch = 1795600000       # optional; default: the epoch in the bundle's manifest

The epoch stands in the file because the store's guard never lets a lower one win: a former bundle comes back under a new,
higher epoch, and all replicas, also those that restart later, must read the same one rather than count for themselves.
"""

import tomllib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from consumer.errors import SettingsError
from consumer.inference.choice import Choice, open_backend
from consumer.prediction import Predictor
from consumer.records import ModelIdentity
from consumer.settings import ModelSettings, Settings
from model.bundle import Bundle, BundleError
from model.signing import KeyUnusable

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the settings, or the pointer file, ask for. `bundle` is free of symbolic links: one that is switched is a change.

    `epoch`: None takes the manifest's.
    """

    bundle: Path
    epoch: int | None = None


class _Pointer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bundle: str = Field(min_length=1)
    epoch: int | None = Field(default=None, ge=0)


def read_wanted(settings: ModelSettings) -> Wanted:
    """Which model should serve now. Raises: SettingsError: the pointer file is not there, or is none."""
    pointer = settings.pointer
    if pointer is None:
        return Wanted(settings.bundle.resolve())
    try:
        found = _Pointer.model_validate(tomllib.loads(pointer.read_text(encoding="utf-8")))
    except OSError as error:
        raise SettingsError(f"model.pointer: {pointer}: expected a readable file, found: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"model.pointer: {pointer}: {where}: {first['msg']}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise SettingsError(f"model.pointer: {pointer}: expected a TOML file in UTF-8, found: {error}") from error
    return Wanted((pointer.parent / found.bundle).resolve(), found.epoch)


def load_bundle(settings: ModelSettings, wanted: Wanted | None = None) -> Bundle:
    """The wanted bundle, every file checked and, with `model.public_key`, who signed it. Raises: SettingsError."""
    path = (wanted or read_wanted(settings)).bundle
    try:
        return Bundle.load(path, public_key=settings.public_key)
    except KeyUnusable as error:
        raise SettingsError(f"model.public_key: {error}") from error
    except BundleError as error:
        raise SettingsError(f"{'model.pointer' if settings.pointer else 'model.bundle'}: {error}") from error


def open_predictor(settings: Settings, wanted: Wanted | None = None) -> Predictor:
    """The model for this thread alone, for what has no metrics and no health: the trial's child, and `consumer predict`.

    An engine is taken from the cache, never built: nobody waits minutes for either. Without one ONNX Runtime answers.

    Raises:
        SettingsError: see `load_bundle`.
        BackendUnavailable: see `open_backend`.
    """
    bundle = load_bundle(settings.model, wanted)
    backend = open_backend(settings.model, bundle, may_build=False).backend
    return Predictor(bundle, backend, cover_bytes_max=settings.covers.max_bytes)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that is loaded and proven, with the one thread that owns its backend from its creation to its end.

    Each batch carries the one that makes its features, so no batch is mixed.

    Attributes:
        identity: what its answers are signed with; the epoch may be above the manifest's.
        bundle: as it was loaded.
        choice: its backend, and why.
    """

    predictor: Predictor
    thread: ThreadPoolExecutor
    identity: ModelIdentity
    bundle: Bundle
    choice: Choice

    def under(self, epoch: int) -> "ServedModel":
        """The same model, for answers of another epoch."""
        return replace(self, identity=replace(self.identity, epoch=epoch))

    def close(self) -> None:
        """Frees the backend, on its thread, after what that thread still has to do. Does not wait."""
        self.thread.submit(self.predictor.close).add_done_callback(_say_if_it_failed)
        self.thread.shutdown(wait=False)


def _say_if_it_failed(closed: "Future[None]") -> None:
    if (error := closed.exception()) is not None:
        log.error("model_not_freed", error=type(error).__name__, reason=str(error))


def open_model(settings: Settings, bundle: Bundle, epoch: int) -> ServedModel:
    """Loads the bundle on a thread of its own and proves it on its golden inputs.

    Raises:
        SettingsError: its vocabulary is none, or its backend does not answer as the bundle says.
        BackendUnavailable: see `open_backend`.
    """
    # A GPU context belongs to its thread, so each model has one.
    thread = ThreadPoolExecutor(1, thread_name_prefix="backend")

    def opened() -> tuple[Predictor, Choice]:
        choice = open_backend(settings.model, bundle)
        try:
            predictor = Predictor(bundle, choice.backend, cover_bytes_max=settings.covers.max_bytes)
            predictor.warm_up()
        except BaseException:
            choice.backend.close()
            raise
        return predictor, choice

    try:
        predictor, choice = thread.submit(opened).result()
    except BaseException:
        thread.shutdown()
        raise
    return ServedModel(predictor, thread, replace(predictor.identity, epoch=epoch), bundle, choice)
