"""Another model takes over while the service runs, and the former stays for a rollback.

A thread looks at the pointer file every second (its content, because Kubernetes replaces files behind symbolic links) and when
SIGHUP asked for it. What is wanted then is loaded, verified and proven beside the model that serves; the pipeline takes it over
between two batches. What was decided:

  * Whatever is wrong with the new model costs nothing but a log line and a count: the one that serves goes on.
  * The epoch must rise, or the store would refuse what the new model says of a version that the old one has answered. So a
    rollback names the former bundle with a higher epoch; it is instant, because the former is still loaded. See `serving.py`.
  * The same bundle under a higher epoch is opened anew: that is how a new engine of the same bundle takes over.
  * Tasks, labels and vocabulary may change: each batch carries its model, and the events' schema knows no task. The covers' size
    may not where covers are fetched, for those that are kept were decoded for the old one; such a bundle needs a restart.
  * The last change wins: what was loaded and did not take over yet is replaced.
  * Two models stay in memory, and a third while it is loaded. The former is freed when the next one has taken over.
"""

import threading
import time
from collections.abc import Callable

import structlog

from consumer.errors import SettingsError
from consumer.serving import ServedModel, Wanted
from consumer.telemetry import Metrics
from model.bundle import Bundle

log = structlog.get_logger(__name__)

POLL_S = 1.0


class ModelSwap:
    """The model that serves, and what may take its place.

    Call `current` on the pipeline's thread. Use as a context manager: around it the pointer is watched; its end frees all models.

    Args:
        first: the model that serves, and `wanted` what it was opened for.
        look: what is wanted now; raises SettingsError.
        load: the wanted bundle, verified.
        open_model: the bundle under an epoch, warm and proven.
        on_taken: called on the pipeline's thread with each model that takes over, before its first batch.
        same_covers: a bundle whose covers have another shape is refused.
    """

    def __init__(
        self,
        first: ServedModel,
        *,
        wanted: Wanted,
        look: Callable[[], Wanted],
        load: Callable[[Wanted], Bundle],
        open_model: Callable[[Bundle, int], ServedModel],
        on_taken: Callable[[ServedModel], None],
        metrics: Metrics,
        same_covers: bool,
    ) -> None:
        self._current = first
        self._former: ServedModel | None = None
        self._next: ServedModel | None = None
        self._seen: Wanted | str = wanted  # or why it could not be read
        self._look = look
        self._load = load
        self._open_model = open_model
        self._on_taken = on_taken
        self._metrics = metrics
        self._same_covers = same_covers
        self._lock = threading.Lock()  # over the three models
        self._asked = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="model-swap", daemon=True)

    def __enter__(self) -> "ModelSwap":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for a load under way: a backend is not left half open."""
        self._closing.set()
        self._thread.join()
        models = [one for one in (self._next, self._former, self._current) if one is not None]
        for model in {id(one.predictor): one for one in models}.values():
            model.close()
            model.thread.shutdown()

    def ask(self) -> None:
        """Looks again soon, also where nothing seems to have changed. For a signal handler: sets a flag and no more."""
        self._asked = True

    def current(self) -> ServedModel:
        """The model for the next batch; one that is ready takes over here, between two batches."""
        if self._next is not None:
            self._take_over()
        return self._current

    def _take_over(self) -> None:
        with self._lock:
            taken, self._next = self._next, None
            if taken is None:
                return
            retired, self._former, self._current = self._former, self._current, taken
        rollback = retired is not None and retired.predictor is taken.predictor
        if retired is not None and not rollback:
            retired.close()
        self._on_taken(taken)
        self._metrics.model_swaps.labels("rolled_back" if rollback else "taken_over").inc()
        log.info(
            "model_swap_taken_over",
            model=str(taken.identity),
            epoch=taken.identity.epoch,
            former=str(self._former.identity),
            former_epoch=self._former.identity.epoch,
            backend=taken.choice.backend.name,
            reason=taken.choice.reason,
            rollback=rollback,
        )

    # ── on the thread that watches ──────────────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        while not self._closing.wait(POLL_S):
            asked, self._asked = self._asked, False
            found = self._found()
            if asked or found != self._seen:
                self._seen = found
                self._swap(found)

    def _found(self) -> Wanted | str:
        try:
            return self._look()
        except SettingsError as error:
            return str(error)

    def _swap(self, found: Wanted | str) -> None:
        began_s = time.monotonic()
        try:
            if isinstance(found, str):
                raise SettingsError(found)
            log.info("model_swap_begun", bundle=str(found.bundle), epoch=found.epoch)
            bundle = self._load(found)
            epoch = bundle.manifest.epoch if found.epoch is None else found.epoch
            if self._refuses(bundle, epoch):
                return
            if not self._offer_former(bundle, epoch):
                model = self._open_model(bundle, epoch)
                if self._found() != found:  # perhaps somebody saw his mistake; the watch goes on with what is wanted now
                    model.close()
                    self._metrics.model_swaps.labels("superseded").inc()
                    log.info("model_swap_superseded", model=str(model.identity), epoch=epoch)
                    return
                self._offer(model)
            log.info("model_swap_ready", model=bundle.manifest.label, epoch=epoch, seconds=round(time.monotonic() - began_s, 3))
        except Exception as error:  # noqa: BLE001  whatever is wrong with a new model, the one that serves goes on
            self._metrics.model_swaps.labels("refused").inc()
            log.error("model_swap_refused", error=type(error).__name__, reason=str(error), serving=str(self._current.identity))

    def _refuses(self, bundle: Bundle, epoch: int) -> bool:
        """Whether there is nothing to do. Raises: SettingsError: it must not take over."""
        with self._lock:
            latest = self._next or self._current
        if bundle.manifest == latest.bundle.manifest and epoch == latest.identity.epoch:
            self._metrics.model_swaps.labels("unchanged").inc()
            log.info("model_swap_unchanged", model=str(latest.identity), epoch=epoch)
            return True
        if epoch <= latest.identity.epoch:
            raise SettingsError(
                f"{bundle.path}: expected an epoch above {latest.identity.epoch}, which {latest.identity} serves under, found "
                f"{epoch}; to go back to a former model say a higher one as `epoch` in the file of model.pointer"
            )
        if self._same_covers and _cover_shape(bundle) != _cover_shape(latest.bundle):
            raise SettingsError(
                f"{bundle.path}: expected covers of {_cover_shape(latest.bundle)}, as those that were fetched, found "
                f"{_cover_shape(bundle)}; a restart takes it"
            )
        return False

    def _offer_former(self, bundle: Bundle, epoch: int) -> bool:
        """The former is loaded and proven already. It is looked at and offered at once, or it might be freed in between."""
        with self._lock:
            if (former := self._former) is None or former.bundle.manifest != bundle.manifest:
                return False
            self._replace_next(former.under(epoch))
        return True

    def _offer(self, model: ServedModel) -> None:
        with self._lock:
            self._replace_next(model)

    def _replace_next(self, model: ServedModel) -> None:
        """With the lock. What did not take over yet never served, so it is freed, unless it is the former."""
        replaced, self._next = self._next, model
        if replaced is not None and (self._former is None or self._former.predictor is not replaced.predictor):
            replaced.close()


def _cover_shape(bundle: Bundle) -> tuple[int, int, int]:
    features = bundle.manifest.features
    return features.cover_channels, features.cover_height, features.cover_width
