"""What a study wrote, and what it says: the gain of one network for all tasks over one for each, and what each of both costs.

The gain is Δm, the mean over tasks of the relative difference of the scores.
Source: Maninis et al., CVPR 2019, arXiv:1904.08918, for Δm.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.dataset import DataError

_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Run:
    """The score of one task from one trained network.

    Attributes:
        arrangement: "together" or "alone".
        scarce: the task of whose labels only `share` were kept; None where all were.
        score: accuracy, micro-F1 or the share of variance explained, on `valid`, before calibration.
        parameters: numbers in the network, table included; seconds: of its training, after the linear models.
        microseconds: the network's time for one listing without a cover, text sums included, in batches as of `study`.
        recipe: a hash of data, task file and limit, since runs of different ones cannot be compared.
    """

    task: str
    arrangement: str
    scarce: str | None
    share: float
    seed: int
    score: float
    parameters: int
    seconds: float
    microseconds: float
    recipe: str

    @property
    def key(self) -> tuple[str, str, str | None, float, int]:
        """What a run is the only one of in its study."""
        return (self.task, self.arrangement, self.scarce, self.share, self.seed)


@dataclass(frozen=True, slots=True)
class Gain:
    """Together against alone for one task and share: mean relative gain over so many seeds and half of its 95 % interval."""

    task: str
    share: float
    together: float
    alone: float
    gain: float
    half_width: float
    seeds: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one network for all tasks, or of one for each in sum: numbers, seconds of training, microseconds a listing."""

    parameters: float
    seconds: float
    microseconds: float


def read_runs(path: Path) -> list[Run]:
    """What a study wrote.

    Raises:
        DataError: the file cannot be read or a line is not a run.
    """
    try:
        return [Run(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: expected the JSON lines that `model study` writes: {error}") from error


def gains(runs: Sequence[Run]) -> list[Gain]:
    """Each task's gain; runs without their counterpart are left out. Intervals are Student's: seeds are few."""
    from scipy.stats import t as student  # a report without a study is made where only the service's packages are

    found = []
    keys = dict.fromkeys((run.task, run.share) for run in runs)
    for task, share in keys:
        by_seed: dict[str, dict[int, float]] = {"together": {}, "alone": {}}
        for run in runs:
            if (run.task, run.share) == (task, share) and run.scarce in (None, task):
                by_seed[run.arrangement][run.seed] = run.score
        both = sorted(set(by_seed["together"]) & set(by_seed["alone"]))
        if not both:
            continue
        together, alone = (np.array([by_seed[name][seed] for seed in both]) for name in ("together", "alone"))
        relative = (together - alone) / np.maximum(np.abs(alone), 1e-9)
        half_width = float("nan")
        if len(both) > 1:
            half_width = float(student.ppf((1 + _CONFIDENCE) / 2, len(both) - 1) * relative.std(ddof=1) / np.sqrt(len(both)))
        found.append(
            Gain(task, share, float(together.mean()), float(alone.mean()), float(relative.mean()), half_width, len(both))
        )
    return found


def costs(runs: Sequence[Run]) -> tuple[Cost, Cost] | None:
    """With all labels, the mean over seeds: of the one network, and of the others in sum; None where one of both is missing."""
    whole = [run for run in runs if run.scarce is None]
    seeds = len({run.seed for run in whole})
    # The one network stands in the file once for each of its tasks.
    together = list({run.seed: run for run in whole if run.arrangement == "together"}.values())
    alone = [run for run in whole if run.arrangement == "alone"]
    if not together or not alone:
        return None
    return _mean(together, seeds), _mean(alone, seeds)


def _mean(runs: Sequence[Run], seeds: int) -> Cost:
    return Cost(*(sum(getattr(run, name) for run in runs) / seeds for name in ("parameters", "seconds", "microseconds")))
