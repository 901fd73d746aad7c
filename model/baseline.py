"""What the network is measured against: TF-IDF and one LinearSVC a label (ridge for a regression) on the same inputs.

These are the very SVMs that the network's start comes from, before words' meanings join them and the table squeezes them.
Source: FACTS of the project's data; Fan et al. 2008, LIBLINEAR, for the solver.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model import metrics
from model.calibrate import in_its_band
from model.dataset import Labels, Rows
from model.evaluate import task_evaluations
from model.features import Tokens
from model.linear_models import LinearModels
from model.tasks import Task
from model.text_matrix import text_matrix

_THRESHOLDS = np.linspace(0.05, 0.85, 60)


def baseline(
    models: LinearModels, tasks: Sequence[Task], valid: Rows, tokens: Tokens, labels: Sequence[Labels]
) -> dict[str, dict[str, float]]:
    """Figures of the linear models on the validation part, by the names that `evaluate` gives them.

    A multi-label task has one threshold for all labels, the best on these rows.
    """
    found: dict[str, dict[str, float]] = {}
    first = 0
    for task, own in zip(tasks, labels, strict=True):
        columns = slice(first, first + task.width)
        first += task.width
        index = np.flatnonzero(own.present)
        if not len(index):
            continue
        matrix = text_matrix(tokens, table_rows=models.svm_weights.shape[1], hidden=task.hidden_input)[index]
        logits = np.asarray(
            matrix @ models.svm_weights[columns].T.astype(np.float64) + models.svm_biases[columns], dtype=np.float32
        )
        output, threshold = _outputs(task, logits, own.values[index])
        spec = task.spec(thresholds=(threshold,) * (task.width if task.entry.kind == "multi" else 0))
        for each in task_evaluations(task, spec, valid, index, output, own):
            found[each.name] = each.metrics
    return found


def _outputs(task: Task, logits: NDArray[np.float32], truth: NDArray[Any]) -> tuple[NDArray[np.float32], float]:
    """The logits as the graph's outputs would be, and for a multi task its threshold."""
    if task.entry.kind == "regression":
        value = torch.from_numpy(logits[:, 0])
        if task.edges:
            value = in_its_band(value, torch.from_numpy(logits[:, 1:]), task.edges)
        values = (value.exp() if task.entry.scale == "log" else value).numpy()[:, None]
        return np.repeat(values, 3, axis=1), 0.0
    if task.entry.kind == "multi":
        probabilities = (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
        scores = [metrics.micro_f1(probabilities >= threshold, truth > 0.5) for threshold in _THRESHOLDS]
        return probabilities, float(_THRESHOLDS[int(np.argmax(scores))])
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True), 0.0
