"""Is an engine the bundle's model? Its outputs beside those of ONNX Runtime, row by row and task by task.

The bundle's golden inputs are few. `verification_rows` makes thousands of them: tokens of two rows mixed and scaled to the length
of one, covers moved and dimmed; rows without text, rows without a cover, and texts as long as the engine takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from build_engine.errors import NotVerified
from build_engine.precision import Precision
from build_engine.runner import Arrays, Runner
from model.bundle import Manifest, TaskSpec
from model.features import PAD_ID, Features

ROWS_MIN = 2_000
AGREEMENT_MIN = 0.999
COSINE_MIN = 0.999
DIFFERENCE_MAX: dict[Precision, float] = {"fp16": 0.01, "fp32": 1e-4}
_ROWS_NAMED = 10
_EMBEDDING = "embedding"
_MADE_KINDS = ("empty text", "no cover", "longest text", "mixed")


@dataclass(frozen=True, slots=True)
class Rows:
    """Inputs [rows, …], and what each row is: one of golden, empty text, no cover, longest text, mixed."""

    features: Features
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.kinds)


@dataclass(frozen=True, slots=True)
class Finding:
    """One output.

    Attributes:
        agreement: share of rows with the same best label; of a `multi` task the share of all labels given or not given alike;
            1.0 where there are no labels.
        difference_max: of probabilities; of a regression |a - b| / max(1, |b|); infinite where a value is not finite.
        cosine_min: of the embedding, else 1.0.
        bad_rows: those that break a limit or have another answer, the worst first.
    """

    output: str
    agreement: float
    difference_max: float
    cosine_min: float
    bad_rows: tuple[int, ...]
    passed: bool


@dataclass(frozen=True, slots=True)
class Report:
    """All outputs over all rows."""

    rows: Rows
    precision: Precision
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return all(finding.passed for finding in self.findings)

    def require(self) -> None:
        """Raises: NotVerified, naming each output that failed and its rows."""
        failed = [self._sentence(finding) for finding in self.findings if not finding.passed]
        if failed:
            raise NotVerified("; ".join(failed))

    def _sentence(self, finding: Finding) -> str:
        rows = ", ".join(f"{row} ({self.rows.kinds[row]})" for row in finding.bad_rows[:_ROWS_NAMED])
        more = f" and {len(finding.bad_rows) - _ROWS_NAMED} more" if len(finding.bad_rows) > _ROWS_NAMED else ""
        return (
            f"{finding.output}: agreement {finding.agreement:.5f} (at least {AGREEMENT_MIN}), "
            f"largest difference {finding.difference_max:.2g} (at most {DIFFERENCE_MAX[self.precision]:g}), "
            f"smallest cosine {finding.cosine_min:.5f} (at least {COSINE_MIN}); rows {rows}{more}"
        )


def verification_rows(golden: Features, *, tokens: int, count: int = 2_048, seed: int = 0) -> Rows:
    """The golden rows and rows made of them, all `tokens` wide; the same for the same arguments.

    Raises:
        ValueError: `count` leaves no place for made rows of every kind.
    """
    made = count - len(golden)
    if made < len(_MADE_KINDS):
        raise ValueError(f"verification rows: expected more than the {len(golden)} golden ones, found {count}")
    random = np.random.default_rng(seed)
    ids, weights = _widened(golden.token_ids, tokens), _widened(golden.token_weights, tokens)
    kinds = [_MADE_KINDS[row % len(_MADE_KINDS)] for row in range(made)]
    texts = [_text(ids, weights, kind, random) for kind in kinds]
    covers = [_cover(golden, kind, random) for kind in kinds]
    features = Features(
        token_ids=np.concatenate([ids, np.stack([text[0] for text in texts])]),
        token_weights=np.concatenate([weights, np.stack([text[1] for text in texts])]),
        cover=np.concatenate([golden.cover, np.stack(covers)]),
        cover_present=np.concatenate([golden.cover_present, np.array([[kind != "no cover"] for kind in kinds], np.float32)]),
    )
    return Rows(features, (*["golden"] * len(golden), *kinds))


def _widened(array: NDArray[Any], tokens: int) -> NDArray[Any]:
    return np.pad(array[:, :tokens], ((0, 0), (0, max(0, tokens - array.shape[1]))))


def _text(
    ids: NDArray[np.int32], weights: NDArray[np.float32], kind: str, random: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Ids and weights [tokens]. Weights keep the length of a golden row's, as the extractor's have: others give wild logits."""
    made_ids, made_weights = np.full(ids.shape[1], PAD_ID, np.int32), np.zeros(ids.shape[1], np.float32)
    if kind == "empty text":
        return made_ids, made_weights
    sources = random.permutation(len(ids))
    parents = sources if kind == "longest text" else sources[:2]
    pool = np.argwhere((ids != PAD_ID) & np.isin(np.arange(len(ids)), parents)[:, None])
    size = ids.shape[1] if kind == "longest text" else int(len(pool) * random.uniform(0.2, 0.9))
    chosen = random.permutation(pool)[: min(size, ids.shape[1])]
    made_ids[: len(chosen)] = ids[chosen[:, 0], chosen[:, 1]]
    drawn = weights[chosen[:, 0], chosen[:, 1]]
    length = float(np.linalg.norm(drawn))
    made_weights[: len(chosen)] = drawn * (float(np.linalg.norm(weights[sources[0]])) / length if length > 0 else 1.0)
    return made_ids, made_weights


def _cover(golden: Features, kind: str, random: np.random.Generator) -> NDArray[np.uint8]:
    """A golden cover, moved and dimmed; noise where there is no golden one."""
    if kind == "no cover":
        return np.zeros_like(golden.cover[0])
    with_cover = np.flatnonzero(golden.cover_present[:, 0] > 0)
    if not len(with_cover):
        return random.integers(0, 256, golden.cover.shape[1:], dtype=np.uint8)
    moved = np.roll(golden.cover[random.choice(with_cover)], random.integers(0, golden.cover.shape[-1], size=2), axis=(1, 2))
    dimmed: NDArray[np.uint8] = (moved * random.uniform(0.3, 1.0)).astype(np.uint8)
    return dimmed


def verify(runner: Runner, reference: Runner, rows: Rows, manifest: Manifest, *, precision: Precision, batch: int) -> Report:
    """Runs all rows through both and compares.

    Args:
        batch: rows of one pass; the last pass has what is left.

    Raises:
        NotVerified: an output is missing or has another shape.
    """
    return compare(
        manifest,
        expected=outputs_of(reference, rows, batch),
        found=outputs_of(runner, rows, batch),
        rows=rows,
        precision=precision,
    )


def outputs_of(runner: Runner, rows: Rows, batch: int) -> dict[str, NDArray[np.float32]]:
    """All outputs for all rows, in passes of `batch`."""
    feed = rows.features.as_feed()
    passes = [
        runner.infer({name: array[start : start + batch] for name, array in feed.items()}) for start in range(0, len(rows), batch)
    ]
    return {name: np.concatenate([each[name] for each in passes]) for name in passes[0]}


def compare(manifest: Manifest, *, expected: Arrays, found: Arrays, rows: Rows, precision: Precision) -> Report:
    """Holds each output against the limits of the precision.

    Raises:
        NotVerified: an output is missing or has another shape.
    """
    tasks = {task.name: task for task in manifest.tasks}
    for output in manifest.outputs:
        shapes = [
            None if name not in arrays else arrays[name].shape for name, arrays in ((output.name, expected), (output.name, found))
        ]
        if shapes[0] is None or shapes[0] != shapes[1]:
            raise NotVerified(f"{output.name}: expected the shape {shapes[0]}, found {shapes[1]}")
    findings = (_finding(output.name, tasks.get(output.name), expected, found, precision) for output in manifest.outputs)
    return Report(rows=rows, precision=precision, findings=tuple(findings))


def _finding(name: str, task: TaskSpec | None, expected: Arrays, found: Arrays, precision: Precision) -> Finding:
    wanted, given = expected[name].astype(np.float64), found[name].astype(np.float64)
    cosines = np.ones(len(wanted))
    if name == _EMBEDDING:
        cosines, differences = _cosines(wanted, given), np.where(np.isfinite(given).all(axis=1), 0.0, np.inf)
    else:
        scale = np.maximum(1.0, np.abs(wanted)) if task is not None and task.kind == "regression" else 1.0
        with np.errstate(invalid="ignore"):
            apart = np.abs(given - wanted) / scale
        differences = np.where(np.isfinite(given), apart, np.inf).max(axis=1, initial=0.0)
    agreeing = _agreement(task, wanted, given)
    limit = DIFFERENCE_MAX[precision]
    bad = (differences > limit) | (cosines < COSINE_MIN) | (agreeing < 1.0)
    worst = np.lexsort((-differences, agreeing, cosines))
    agreement, difference, cosine = float(agreeing.mean()), float(differences.max(initial=0.0)), float(cosines.min(initial=1.0))
    passed = agreement >= AGREEMENT_MIN and difference <= limit and cosine >= COSINE_MIN
    return Finding(name, agreement, difference, cosine, tuple(int(row) for row in worst if bad[row]), passed)


def _agreement(task: TaskSpec | None, wanted: NDArray[Any], given: NDArray[Any]) -> NDArray[np.float64]:
    """Per row the share of answers that are the same: [rows]."""
    if task is None or task.kind == "regression":
        return np.ones(len(wanted))
    if task.kind == "multi":
        thresholds = np.array(task.thresholds)
        return np.asarray(((wanted >= thresholds) == (given >= thresholds)).mean(axis=1))
    return np.asarray(wanted.argmax(axis=1) == given.argmax(axis=1), dtype=np.float64)


def _cosines(wanted: NDArray[Any], given: NDArray[Any]) -> NDArray[np.float64]:
    """[rows]; 1 where both are zero, -1 where a value is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(given, axis=1)
        cosines = (wanted * given).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)
    both_zero = ~wanted.any(axis=1) & ~given.any(axis=1)
    return np.asarray(np.where(both_zero, 1.0, np.nan_to_num(cosines, nan=-1.0, posinf=-1.0, neginf=-1.0)))


def as_document(report: Report) -> Mapping[str, Any]:
    """For `--json`."""
    return {
        "passed": report.passed,
        "rows": len(report.rows),
        "precision": report.precision,
        "outputs": [
            {
                "output": finding.output,
                "passed": finding.passed,
                "agreement": finding.agreement,
                "difference_max": finding.difference_max if np.isfinite(finding.difference_max) else "not finite",
                "cosine_min": finding.cosine_min,
                "bad_rows": [{"row": row, "kind": report.rows.kinds[row]} for row in finding.bad_rows[:100]],
            }
            for finding in report.findings
        ],
    }
