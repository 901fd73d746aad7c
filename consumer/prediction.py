"""From listings to predictions: features, one pass of the backend, assembly. The service and `consumer predict` share it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from consumer import assemble
from consumer.covers import cover_pixels
from consumer.errors import SettingsError
from consumer.inference import InferenceBackend, InferenceFailed
from consumer.records import Change, ModelIdentity, Rejected, Stage
from consumer.task_prediction import TaskPrediction
from model.bundle import Bundle, BundleError
from model.features import FeatureExtractor, Features

log = structlog.get_logger(__name__)

# Wide enough for another processor's rounding and for fp16, far below a changed weight.
GOLDEN_RTOL, GOLDEN_ATOL = 2e-2, 1e-2

Answered = list[tuple[Change, dict[str, TaskPrediction]]]


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
    """

    def __init__(self, bundle: Bundle, backend: InferenceBackend, *, cover_bytes_max: int) -> None:
        manifest = bundle.manifest
        self.identity = ModelIdentity(manifest.name, manifest.version, manifest.epoch)
        self._tasks = manifest.tasks
        self._extractor = read_extractor(bundle)
        self._bundle = bundle
        self._backend = backend
        self._cover_bytes_max = cover_bytes_max

    def prepare(self, changes: Sequence[Change]) -> tuple[Prepared, list[Rejected]]:
        """Decodes covers and makes features. Each change must carry a listing.

        Returns:
            The changes that the model can take, and those whose cover is broken.
        """
        settings = self._extractor.settings
        accepted, covers, rejected = [], [], []
        for change in changes:
            pixels = cover_pixels(change, settings, bytes_max=self._cover_bytes_max)
            if isinstance(pixels, Rejected):
                rejected.append(pixels)
            else:
                accepted.append(change)
                covers.append(pixels)
        features = self._extractor.extract([change.stated for change in accepted], covers) if accepted else None
        return Prepared(accepted, features), rejected

    def predict(self, prepared: Prepared) -> tuple[Answered, list[Rejected]]:
        """Runs the model; a batch that fails is halved until the record at fault stands alone, and the others go through."""
        changes, features = prepared.changes, prepared.features
        if features is None:
            return [], []
        try:
            outputs = self._backend.infer(features.as_feed())
        except InferenceFailed as error:
            if len(changes) == 1:
                return [], [Rejected(changes[0].record, Stage.INFERENCE, str(error))]
            log.warning("inference_failed_bisecting", records=len(changes), error=str(error))
            half = len(changes) // 2
            answered, rejected = self.predict(Prepared(changes[:half], features.rows(slice(0, half))))
            more, more_rejected = self.predict(Prepared(changes[half:], features.rows(slice(half, len(changes)))))
            return answered + more, rejected + more_rejected
        finite = assemble.finite_rows(outputs)
        rejected = [
            Rejected(changes[row].record, Stage.INFERENCE, "the model's output is not finite") for row in np.flatnonzero(~finite)
        ]
        if rejected:
            changes = [changes[row] for row in np.flatnonzero(finite)]
            outputs = {name: array[finite] for name, array in outputs.items()}
        predictions = assemble.predictions(outputs, [change.stated for change in changes], self._tasks)
        return list(zip(changes, predictions, strict=True)), rejected

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
