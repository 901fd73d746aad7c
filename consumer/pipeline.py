"""A listing's journey, top to bottom.

    change topic ─ poll ─ decode ─ collapse ─ known? ─ features ─ infer ─ assemble ─ Redis ─ enriched topic + offsets ─ commit
                              └────────── bad record: dead-letter topic, with the reason ──────────┘

`prepare` (poll to features), `predict` (infer, assemble) and `finish` (Redis to commit) each take a whole batch. They overlap:
one thread prepares batch n+1, the model's thread predicts batch n, the main thread polls, finishes batch n-1 and commits.
Batches finish in the order in which they were read. Between two of them another model may take over (`model_swap.py`).

The delivery guarantee, by number, where the code keeps it:
  1. Each input offset is answered exactly once: answers, dead letters and offsets are one transaction       `finish`, `commit`
  2. The store leads the topic and never goes back: it is written first, guarded by version and model epoch   `finish`
  3. What this process no longer owns is dropped whole: batches of an older generation, open transactions     `_owned`, `lost`
  4. A dependency that is away is waited for, with the partitions paused, and nothing is skipped              `patience`
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event

import structlog

from consumer import assemble, codec, failpoints
from consumer.batches import Batch, InFlight, Outputs, Partition, partition_of, split_by_cost, without_answer
from consumer.breaker import CircuitBreaker
from consumer.cover_fetch import CoverFetcher
from consumer.covers import covers_used, urls_to_fetch
from consumer.edges import Delivery, Schemas, Source, Store
from consumer.errors import CircuitOpen, DependencyUnavailable, DrainIncomplete, TransactionAborted
from consumer.health import Health
from consumer.patience import Patience
from consumer.records import Change, CoverUse, InputRecord, Rejected
from consumer.serving import ServedModel
from consumer.settings import Settings
from consumer.suspects import Suspects, no_suspects
from consumer.telemetry import Metrics
from consumer.traces import Traces
from model.signature import content_hash

log = structlog.get_logger(__name__)

IDLE_S = 0.2  # how long a poll may hold up the reaction to SIGTERM
KEEP_ALIVE_AFTER_S = 5.0  # work this stuck: poll with the partitions paused, or the group throws this member out


class Pipeline:
    """The journey, and the loop that keeps a bounded number of batches on it.

    Call `run` on one thread; that thread polls, writes, commits, and asks `model` for the one that the next batch is for.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        source: Source,
        delivery: Delivery,
        store: Store,
        schemas: Schemas,
        model: Callable[[], ServedModel],
        outputs: Outputs,
        metrics: Metrics,
        health: Health,
        fetcher: CoverFetcher | None = None,
        suspects: Suspects | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._settings = settings
        self._source = source
        self._delivery = delivery
        self._store = store
        self._schemas = schemas
        self._model = model
        self._fetcher = fetcher  # None: covers named by URL are ignored
        self._prepare_thread = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._outputs = outputs
        self._metrics = metrics
        self._health = health
        self._suspects = suspects or no_suspects()
        self._traces = traces or Traces()
        self._in_flight: deque[InFlight] = deque()
        self._positions: dict[Partition, int] = {}  # answered in the open transaction, not committed yet
        self._oldest_ms: int | None = None  # timestamp of the oldest record in it
        self._open_since_s = 0.0
        self._polled_at_s = time.monotonic()
        self._must_rewind = False
        self._patience = Patience(metrics=metrics, health=health)
        self._breaker = CircuitBreaker(settings.delivery.max_reject_share, window=settings.delivery.reject_window)
        metrics.reject_share_max.set(settings.delivery.max_reject_share)
        self._stop = Event()
        self._deadline_s: float | None = None

    # ── the journey ─────────────────────────────────────────────────────────────────────────────────────────

    def prepare(self, records: Sequence[InputRecord], generations: dict[Partition, int | None], model: ServedModel) -> Batch:
        """Decode, collapse, known?, features. Waits for the registry and the store where they are away."""
        self._patience.ask(lambda: self._suspects.begin(records, generations))
        with self._metrics.stage("decode"):
            schemas = self._patience.ask(lambda: self._schemas.schemas(codec.schema_ids(records)))
            killers = {id(one.record): one for one in self._suspects.tried(records, schemas)}
            decoded = [killers.get(id(record)) or codec.decode(record, schemas) for record in records]
        changes = [one for one in decoded if isinstance(one, Change)]
        batch = self._prepare(changes, [one for one in decoded if isinstance(one, Rejected)], model)
        self._metrics.drift.count_listings(changes, batch.covers)
        failpoints.reached("after_prepare")
        return batch

    def _prepare(self, changes: list[Change], rejected: list[Rejected], model: ServedModel, *, may_wait: bool = True) -> Batch:
        winners = assemble.collapse(changes)
        listings = {key: winner.listing for key, winner in winners.items() if winner.listing is not None}
        urls = urls_to_fetch(listings) if self._fetcher else {}
        contents = {key: content_hash(listing, cover_url=urls.get(key)) for key, listing in listings.items()}
        seen = covers_used(listings, urls, urls.values())  # or its content would be no known one
        with self._metrics.stage("known"):
            epoch, recall = model.identity.epoch, model.predictor.recall
            known = self._patience.ask(lambda: self._store.unchanged(contents, model_epoch=epoch, recall=recall))
        self._metrics.count_lookups(hits=len(known), misses=len(contents) - len(known))
        proposed, unseen = assemble.without_model(winners, known, seen)
        wanted = [url for one in unseen if (url := urls.get(one.listing_id))]  # what is known as it is needs no fetch
        if self._suspects.on_trial:
            wanted = []  # the child fetches nothing, so a cover that kills its decoder must count as missing
        fetched = self._fetcher.fetch(wanted, may_wait=may_wait) if self._fetcher else {}
        covers = covers_used(listings, urls, fetched)
        contents |= {one.listing_id: "" for one in unseen if covers[one.listing_id] is CoverUse.MISSING}
        with self._metrics.stage("features"):
            prepared, broken = model.predictor.prepare(unseen, fetched)
        return Batch(model, changes, rejected + broken, proposed, prepared, contents, covers)

    def predict(self, batch: Batch) -> Batch:
        """Infer, assemble; runs on the model's thread. A record that the model cannot take is rejected alone.

        Where the newest version of a listing is rejected, the next newest of the batch takes its place.
        """
        self._infer(batch)
        while orphans := without_answer(batch):  # each round rejects a version of every orphan, or answers it
            rest = self._prepare(orphans, [], batch.model, may_wait=False)  # the batch has waited for covers
            self._infer(rest)
            batch.proposed |= rest.proposed
            batch.rejected += rest.rejected
        failpoints.reached("after_predict")
        return batch

    def _infer(self, batch: Batch) -> None:
        with self._metrics.stage("infer"):
            answered, rejected = batch.model.predictor.predict(batch.unseen)
        batch.proposed |= assemble.predicted(answered, batch.contents, batch.covers, batch.model.identity)
        batch.rejected.extend(rejected)

    def finish(self, work: InFlight) -> None:
        """Redis, then enriched events and dead letters into the open transaction.

        Raises:
            CircuitOpen: too many rejects among the last records; nothing of this batch was written.
            TransactionAborted: rewind.
        """
        batch = work.batch.result()
        changes, rejected, _ = self._owned(work, batch)
        try:
            self._breaker.check([change.record for change in changes], rejected)
        except CircuitOpen:
            self.commit()  # what was answered before stands
            raise

        failpoints.reached("before_store")
        proposed = {change.listing_id: batch.proposed[change.listing_id] for change in changes}
        with self._metrics.stage("store"):  # guarantee 2: before the topic, never back
            wanted = [state for _, state in proposed.values()]
            held = self._patience.ask(lambda: self._store.write(wanted, now_ms=_now_ms()), between=self._while_away)
        failpoints.reached("after_store")
        changes, rejected, owned = self._owned(work, batch)  # guarantee 3: waiting may have cost us partitions
        stored = {state.listing_id: state for state in held}
        answers = assemble.answers(changes, proposed=proposed, stored=stored)

        with self._metrics.stage("produce"):  # guarantee 1: one output for each input offset
            records = self._outputs.records(answers, rejected, enriched_at_ms=_now_ms(), trace=work.trace)
            if not self._positions:
                self._open_since_s = time.monotonic()
            self._delivery.send(records)
        failpoints.reached("after_produce")
        for record in work.records:
            if (partition := partition_of(record)) in owned:
                self._positions[partition] = record.offset + 1
                self._oldest_ms = min(self._oldest_ms or record.timestamp_ms, record.timestamp_ms)
        refused = sum(wish is not state for wish, state in zip(wanted, held, strict=True))
        self._metrics.count_batch(answers, rejected, refused=refused)

    def _owned(self, work: InFlight, batch: Batch) -> tuple[list[Change], list[Rejected], set[Partition]]:
        """What of a batch is still ours: its partitions have the generation they had when it was read (guarantee 3)."""
        # None: the partition went while the poll that brought its records was still under way.
        owned = {p for p, begun in work.generations.items() if begun is not None and self._source.generation(p) == begun}
        changes = [one for one in batch.changes if partition_of(one.record) in owned]
        rejected = [one for one in batch.rejected if partition_of(one.record) in owned]
        return changes, rejected, owned

    def commit(self) -> None:
        """Ends the transaction: answers, dead letters and offsets become visible together (guarantee 1)."""
        if not self._positions:
            return
        with self._metrics.stage("commit"):
            self._patience.ask(self._commit_open, between=self._stay_alive)

    def _commit_open(self) -> None:
        self._check_ownership()
        if positions := dict(self._positions):  # else `before_revoked` committed them, while this commit was waiting
            failpoints.reached("before_commit")
            self._delivery.commit(positions)
            failpoints.reached("after_commit")
            self._committed(positions)

    def _committed(self, positions: dict[Partition, int]) -> None:
        self._source.committed(positions)
        self._positions.clear()
        self._metrics.transactions.labels("committed").inc()
        self._metrics.latency_seconds.observe(max(0, _now_ms() - (self._oldest_ms or 0)) / 1000)
        self._metrics.set_lag(self._source.lag())
        self._oldest_ms = None
        self._breaker.committed()
        self._metrics.reject_share.set(self._breaker.share)
        self._suspects.committed(positions)
        self._health.progress()

    # ── the loop ────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, stop: Event) -> None:
        """Goes on until `stop` is set, then finishes what is in flight within the grace period and commits it.

        Raises:
            CircuitOpen, Fenced, DependencyUnavailable (the grace period ended while waiting).
        """
        self._stop = stop
        with self._suspects.watching():
            self._work()

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                self._step()
            self._drain()
        finally:
            self._positions.clear()  # what is still open is dropped: leaving the group must not commit offsets without answers
            self._patience.give_up()
            self._suspects.give_up()
            self._prepare_thread.shutdown(wait=True, cancel_futures=True)

    def _step(self) -> None:
        try:
            model = self._model()  # between two batches: another one may take over here, and only here
            records = self._poll()
            self._check_ownership()
            self._suspects.leave(self._source.generation)
            if records:
                failpoints.reached("after_poll")
                self._start(records, model)
            elif self._in_flight:
                wait([self._in_flight[0].batch], timeout=self._wait_s())
            self._finish_done()
            self._commit_when_due()
        except TransactionAborted as error:
            self._rewind(str(error))
        self._health.beat(unfinished=self._unfinished())

    def _commit_when_due(self) -> None:
        if self._positions and time.monotonic() >= self._open_since_s + self._settings.delivery.transaction_ms / 1000:
            self.commit()

    def _poll(self) -> list[InputRecord]:
        batch = self._settings.batch
        if len(self._in_flight) >= batch.max_in_flight:
            self._stay_alive()
            return []
        busy = bool(self._in_flight)
        self._polled_at_s = time.monotonic()
        # While a batch is on its way the next one takes what is there; records that come meanwhile make the one after it fuller.
        idle_s = 0 if busy else min(IDLE_S, self._wait_s())
        linger_s = 0 if busy else batch.max_linger_ms / 1000

        def poll() -> list[InputRecord]:
            if self._stop.is_set():  # SIGTERM ends a wait for the broker
                return []
            return self._source.poll(records_max=batch.max_records, idle_s=idle_s, linger_s=linger_s)

        return self._patience.ask(poll, between=self._while_away)

    def _wait_s(self) -> float:
        if not self._positions:
            return IDLE_S
        due_s = self._open_since_s + self._settings.delivery.transaction_ms / 1000
        return min(IDLE_S, max(0.0, due_s - time.monotonic()))

    def _start(self, records: Sequence[InputRecord], model: ServedModel) -> None:
        parts = split_by_cost(records, self._settings.batch.max_cost)
        # Before any of them waits: what a partition that goes and comes back meanwhile brings is read again.
        begun = [{p: self._source.generation(p) for p in {partition_of(record) for record in part}} for part in parts]
        for part, generations in zip(parts, begun, strict=True):
            while len(self._in_flight) >= self._settings.batch.max_in_flight:
                wait([self._in_flight[0].batch], timeout=self._wait_s())
                self._stay_alive()
                self._finish_done()
                self._commit_when_due()
            trace = self._traces.begin(part)
            prepared = self._prepare_thread.submit(trace.run, self.prepare, part, generations, model)
            predicted = model.thread.submit(trace.run, self._predict_prepared, prepared)
            self._in_flight.append(InFlight(part, generations, predicted, trace))
            self._metrics.begin_batch(part, now_ms=_now_ms())
        self._metrics.in_flight_batches.set(len(self._in_flight))

    def _predict_prepared(self, prepared: "Future[Batch]") -> Batch:
        return self.predict(prepared.result())

    def _unfinished(self) -> int:
        return sum(len(work.records) for work in self._in_flight) or len(self._positions)

    def _finish_done(self) -> None:
        while self._in_flight and self._in_flight[0].batch.done():
            work = self._in_flight[0]
            work.trace.run(self.finish, work)
            self._in_flight.popleft()
            work.trace.end()
            self._metrics.in_flight_batches.set(len(self._in_flight))
            self._health.progress()

    def _drain(self) -> None:
        log.info("draining", batches=len(self._in_flight))
        if self._deadline_s is None:  # it began while a step was waiting, and does not begin anew
            self._deadline_s = time.monotonic() + self._settings.shutdown.drain_seconds
        try:
            while self._in_flight:
                wait([self._in_flight[0].batch], timeout=IDLE_S)
                self._stay_alive()
                self._check_ownership()
                self._finish_done()
                self._give_up_if_late()
            self.commit()
        except TransactionAborted as error:  # what was in it is read again by whoever takes over
            log.warning("last_transaction_aborted", error=str(error))
        log.info("drained")

    # ── what can go wrong ───────────────────────────────────────────────────────────────────────────────────

    def _stay_alive(self) -> None:
        """Keeps this member in the group while work is stuck; a transaction must not grow old meanwhile either."""
        self._beat()
        if time.monotonic() - self._polled_at_s > KEEP_ALIVE_AFTER_S:
            self._source.keep_alive()
            self._check_ownership()
            self._metrics.set_lag(self._source.lag())

    def _while_away(self) -> None:
        """An open transaction must not time out while something else is waited for."""
        self._stay_alive()
        self.commit()

    def _beat(self) -> None:
        self._give_up_if_late()
        self._health.beat(unfinished=self._unfinished())

    def _give_up_if_late(self) -> None:
        if self._stop.is_set() and self._deadline_s is None:
            self._deadline_s = time.monotonic() + self._settings.shutdown.drain_seconds
        if self._deadline_s is not None and time.monotonic() > self._deadline_s:
            self._patience.give_up()
            raise DrainIncomplete(f"not done within shutdown.drain_seconds; {len(self._in_flight)} batches are read again")

    def before_revoked(self) -> None:
        """The source calls this while partitions are being given up: what is answered is committed, or dropped whole."""
        failpoints.reached("before_revoked")
        if self._positions:
            try:
                self._commit_open()
            except (TransactionAborted, DependencyUnavailable) as error:
                log.warning("commit_before_revoke_failed", error=str(error))
                self._must_rewind = True

    def lost(self) -> None:
        """The source calls this when partitions went without a chance to commit: another member answers them by now."""
        self._must_rewind = self._must_rewind or bool(self._positions)

    def _check_ownership(self) -> None:
        if self._must_rewind:
            raise TransactionAborted("partitions went away before the open transaction was committed")

    def _rewind(self, reason: str) -> None:
        log.warning("transaction_aborted", reason=reason)
        self._metrics.transactions.labels("aborted").inc()
        if self._patience.ask(self._delivery.abort, between=self._beat):  # committed after all, or nobody knows but the group
            self._patience.ask(self._source.recall, between=self._beat)
        self._must_rewind = False
        for work in self._in_flight:
            work.trace.end(failure=reason)
        self._in_flight.clear()
        self._positions.clear()
        self._oldest_ms = None
        self._breaker.rewind()
        self._patience.ask(self._source.rewind, between=self._beat)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
