"""From listings to predictions: features, one pass of the backend, assembly. The service and `consumer predict` share it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consumer import assemble
from consumer.batch_encoder import BatchEncoder
from consumer.bisection import Rows, sift
from consumer.covers import cover_pixels, url_to_fetch
from consumer.errors import SettingsError
from consumer.inference import InferenceBackend, InferenceFailed
from consumer.predictions import Predictions
from consumer.records import Change, ModelIdentity, Rejected, Stage
from model.bundle import Bundle, BundleError, TaskSpec
from model.features import PAD_ID, FeatureExtractor, Features, FeatureSettings, decode_cover

# Wide enough for another processor's rounding and for fp16, far below a changed weight.
GOLDEN_RTOL, GOLDEN_ATOL = 2e-2, 1e-2

Answered = list[tuple[Change, Predictions]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Changes whose features are made, row by row in the same order."""

    changes: list[Change]
    features: Features | None  # None when there is no change


def read_extractor(bundle: Bundle) -> FeatureExtractor:
    """The bundle's feature extractor. Raises: SettingsError: its vocabulary is none, whatever its checksum says."""
    try:
        return bundle.extractor()
    except BundleError as error:
        raise SettingsError(f"model.bundle: {error}") from error


class Predictor:
    """A loaded bundle with a backend.

    `prepare` may run on any thread; `predict` only on the one that opened the backend.

    Attributes:
        observe: told each task with labels and the probabilities of the listings that it was asked of (`drift.Drift.watch`).
    """

    def __init__(self, bundle: Bundle, backend: InferenceBackend, *, cover_bytes_max: int) -> None:
        manifest = bundle.manifest
        self.identity = ModelIdentity(manifest.name, manifest.version, manifest.epoch, backend.engine)
        self._encoder = BatchEncoder(manifest.tasks)
        self._extractor = read_extractor(bundle)
        self._bundle = bundle
        self._backend = backend
        self.cover_bytes_max = cover_bytes_max
        self.observe: Callable[[TaskSpec, NDArray[np.float32]], None] | None = None

    @property
    def feature_settings(self) -> FeatureSettings:
        """How the bundle's features are made."""
        return self._extractor.settings

    def decode_cover(self, data: bytes) -> NDArray[np.uint8]:
        """An image's bytes to uint8 [channels, height, width], as the model takes them. Raises: InvalidCover."""
        return decode_cover(data, self._extractor.settings)

    def prepare(
        self, changes: Sequence[Change], fetched: Mapping[str, NDArray[np.uint8]] | None = None
    ) -> tuple[Prepared, list[Rejected]]:
        """Decodes covers and makes features. Each change must carry a listing.

        Args:
            fetched: URL to the pixels of the cover that was found there.
        Returns:
            The changes that the model can take, and those whose cover is broken.
        """
        settings = self._extractor.settings
        accepted, covers, rejected = [], [], []
        for change in changes:
            try:
                pixels = cover_pixels(change, settings, bytes_max=self.cover_bytes_max)
            except Exception as error:  # noqa: BLE001  a decoder's surprise costs its record, never the service
                pixels = Rejected(change.record, Stage.COVER, f"cover: {_words(error)}")
            if pixels is None and fetched and (url := url_to_fetch(change.stated)):
                pixels = fetched.get(url)
            if isinstance(pixels, Rejected):
                rejected.append(pixels)
            else:
                accepted.append(change)
                covers.append(pixels)

        def extract(rows: Rows) -> Features:
            return self._extractor.extract([accepted[row].stated for row in rows], [covers[row] for row in rows])

        if not accepted:
            return Prepared([], None), rejected
        sifted = sift(len(accepted), extract, failures=Exception)
        rejected += [
            Rejected(accepted[row].record, Stage.FEATURES, _words(error))
            for row, error in sorted(sifted.blamed.items(), key=_row)
        ]
        rows, features = _joined(sifted.parts)
        return Prepared([accepted[row] for row in rows], features), rejected

    def predict(self, prepared: Prepared) -> tuple[Answered, list[Rejected]]:
        """Runs the model; of a batch that fails the records at fault are found (`bisection.sift`), and the others go through."""
        changes, features = prepared.changes, prepared.features
        if features is None:
            return [], []

        def infer(rows: Rows) -> dict[str, NDArray[np.float32]]:
            whole = len(rows) == len(changes)
            return self._backend.infer((features if whole else features.rows(np.array(rows))).as_feed())

        sifted = sift(len(changes), infer, failures=InferenceFailed)
        reasons = {row: str(error) for row, error in sifted.blamed.items()}
        found: dict[int, Predictions] = {}
        for rows, outputs in sifted.parts:
            finite = assemble.finite_rows(outputs)
            reasons |= {rows[at]: "the model's output is not finite" for at in np.flatnonzero(~finite)}
            if not finite.all():
                outputs = {name: array[finite] for name, array in outputs.items()}
            good = [rows[at] for at in np.flatnonzero(finite)]
            predictions = assemble.predictions(outputs, [changes[row].stated for row in good], self._encoder, self.observe)
            found |= zip(good, predictions, strict=True)
        answered = [(changes[row], found[row]) for row in sorted(found)]
        return answered, [Rejected(changes[row].record, Stage.INFERENCE, reasons[row]) for row in sorted(reasons)]

    def recall(self, compact: Sequence[bytes]) -> list[Predictions | None]:
        """See `BatchEncoder.recall`; on any thread."""
        return self._encoder.recall(compact)

    def warm_up(self) -> None:
        """Runs the bundle's golden inputs, so that the first listing finds a warm and proven model.

        Raises:
            SettingsError: the backend's answers are not those the bundle was made with.
        """
        features, expected = self._bundle.golden()
        try:
            found = self._backend.infer(features.as_feed())
        except InferenceFailed as error:
            raise SettingsError(f"model.bundle: its golden inputs do not run on {self._backend.name}: {error}") from error
        for name, array in expected.items():
            if not np.allclose(found[name], array, rtol=GOLDEN_RTOL, atol=GOLDEN_ATOL):
                worst = float(np.max(np.abs(found[name] - array)))
                raise SettingsError(
                    f"model.bundle: output {name!r} of {self._backend.name} differs from the golden one by up to {worst:.4g}"
                )

    def close(self) -> None:
        """Frees the backend, on its thread."""
        self._backend.close()


_row = itemgetter(0)


def _joined(parts: Sequence[tuple[Rows, Features]]) -> tuple[Rows, Features | None]:
    """The rows of all parts in ascending order, each padded to the widest; None where there is no part."""
    if len(parts) <= 1:
        return parts[0] if parts else ([], None)
    rows = [row for rows, _ in parts for row in rows]
    features = [part for _, part in parts]
    width = max(part.token_ids.shape[1] for part in features)

    def padded(array: NDArray[Any], fill: int) -> NDArray[Any]:
        return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=fill)

    joined = Features(
        token_ids=np.concatenate([padded(part.token_ids, PAD_ID) for part in features]),
        token_weights=np.concatenate([padded(part.token_weights, 0) for part in features]),
        cover=np.concatenate([part.cover for part in features]),
        cover_present=np.concatenate([part.cover_present for part in features]),
    )
    return sorted(rows), joined.rows(np.argsort(rows))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
