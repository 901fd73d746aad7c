"""One HTML file about a bundle: tasks, curves, relations, calibration, confusion, study, examples. No network, no script."""

import csv
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.bundle import Bundle, BundleError
from model.report_examples import Example
from model.study_runs import Gain, Run, costs, gains

_CURVES, _EVALUATION = "curves.csv", "evaluation.json"
_WIDTH, _HEIGHT, _MARGIN = 260, 170, 34
_GAIN_SHOWN_MAX = 0.25
_DARK = 0.6
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1c2430 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #dde3ea }
th:first-child, td:first-child { text-align: left }
figure { display: inline-block; margin: .4rem } figcaption { font-weight: 600; font-size: .85rem }
svg text { font: 10px system-ui, sans-serif; fill: #55606e }
"""


def write_report(bundle: Bundle, out: Path, *, study: Sequence[Run] = (), examples: Sequence[Example] = ()) -> None:
    """Writes the report of what was measured when the bundle was made.

    Args:
        study: together against alone, see study.py; examples: listings with answers, which carry their covers.

    Raises:
        BundleError: the bundle carries no curves or evaluation.
    """
    evaluations = json.loads(_text(bundle, _EVALUATION))
    curves = list(csv.DictReader(_text(bundle, _CURVES).splitlines()))
    manifest = bundle.manifest
    body = [
        f"<h1>{_escaped(manifest.label)}</h1>",
        f"<p>{len(manifest.tasks)} tasks, trained in {manifest.settings.get('training_seconds', 0):.0f} s with seed "
        f"{manifest.seed}; kept: {_escaped(str(manifest.settings.get('kept', '')))}. All figures are of the validation part.</p>",
        "<h2>Tasks</h2><p>The baseline: TF-IDF with one LinearSVC a label (ridge for a number), same inputs, same rows.</p>",
        _table(evaluations, manifest.settings.get("baseline", {})),
        "<h2>Learning curves</h2><p>The metric on the validation part after each epoch; epoch 0 is the linear start and "
        "the last point the average of the last epochs.</p>",
        *(_curve_figure(task, points) for task, points in _by_task(curves).items()),
        "<h2>Relations between tasks</h2><p>How much of each task's view of the listing (across) a task (down) reads; learned, "
        "each row sums to 1. Without relations each would read its own alone.</p>",
        _relations_figure([task.name for task in manifest.tasks], manifest.settings.get("relations", [])),
        *_leanings(manifest.settings.get("leanings", {})),
        *_study(study),
        "<h2>Calibration</h2><p>Of the answers given with a confidence (across), how many were right (up). The closer to "
        "the diagonal, the more a confidence can be trusted; larger dots stand for more answers.</p>",
        *(_reliability_figure(each) for each in evaluations if each["reliability"]),
        "<h2>Confusion</h2><p>True label by row, predicted by column, each row as shares.</p>",
        *(_confusion_figure(each) for each in evaluations if len(each["confusion"]) > 1),
        *_examples(examples),
    ]
    out.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_escaped(manifest.label)}</title>'
        f"<style>{_STYLE}</style>{''.join(body)}</html>\n",
        encoding="utf-8",
    )


def _text(bundle: Bundle, name: str) -> str:
    if name not in bundle.manifest.files:
        raise BundleError(f"{bundle.path}: expected {name} in a bundle to report on, found none")
    return (bundle.path / name).read_text(encoding="utf-8")


def _escaped(text: str) -> str:
    return html.escape(text)


def _table(evaluations: Iterable[dict[str, Any]], baseline: dict[str, dict[str, float]]) -> str:
    titles = ("task", "kind", "rows", "metric", "ours", "baseline", "majority", "others")
    rows = ["<tr>" + "".join(f"<th>{title}</th>" for title in titles) + "</tr>"]
    for each in evaluations:
        figures: dict[str, float] = dict(each["metrics"])
        majority = figures.pop("majority")
        first, value = next(iter(figures.items()))
        others = ", ".join(f"{name} {number:.3f}" for name, number in list(figures.items())[1:])
        linear = f"{baseline[each['name']][first]:.3f}" if each["name"] in baseline else ""
        cells = [each["name"], each["kind"], each["rows"], first, f"{value:.3f}", linear, f"{majority:.3f}", others]
        rows.append("<tr>" + "".join(f"<td>{_escaped(str(cell))}</td>" for cell in cells) + "</tr>")
    return f"<table>{''.join(rows)}</table>"


def _by_task(curves: Sequence[dict[str, str]]) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for point in curves:
        if point["part"] == "valid":
            title = f"{point['task']}: {point['metric']}"
            found.setdefault(title, []).append((float(point["epoch"]), float(point["value"])))
    return found


def _figure(caption: str, inner: str, *, width: int = _WIDTH, height: int = _HEIGHT) -> str:
    return (
        f'<figure><svg width="{width}" height="{height}" role="img" aria-label="{_escaped(caption)}">{inner}</svg>'
        f"<figcaption>{_escaped(caption)}</figcaption></figure>"
    )


def _frame(labels: tuple[str, str, str, str]) -> str:
    """Axes with the ends of both scales: left, right, bottom, top."""
    left, right, low, high = labels
    bottom, end = _HEIGHT - _MARGIN / 2, _WIDTH - 8
    return (
        f'<path d="M{_MARGIN} 8V{bottom}H{end}" fill="none" stroke="#9aa5b1"/>'
        f'<text x="{_MARGIN}" y="{_HEIGHT - 4}">{left}</text>'
        f'<text x="{end}" y="{_HEIGHT - 4}" text-anchor="end">{right}</text>'
        f'<text x="{_MARGIN - 4}" y="{bottom}" text-anchor="end">{low}</text>'
        f'<text x="{_MARGIN - 4}" y="16" text-anchor="end">{high}</text>'
    )


def _at(x: float, y: float) -> tuple[float, float]:
    """Pixels of a point whose coordinates are shares of the axes."""
    width, height = _WIDTH - 8 - _MARGIN, _HEIGHT - _MARGIN / 2 - 8
    return round(_MARGIN + x * width, 1), round(8 + (1 - y) * height, 1)


def _curve_figure(caption: str, points: Sequence[tuple[float, float]]) -> str:
    last = max(x for x, _ in points) or 1.0
    low, high = min(y for _, y in points), max(y for _, y in points)
    span = (high - low) or 1.0
    path = " ".join("{},{}".format(*_at(x / last, (y - low) / span)) for x, y in points)
    line = f'<polyline points="{path}" fill="none" stroke="#1668a8" stroke-width="2"/>'
    return _figure(caption, _frame(("0", f"{last:.0f}", f"{low:.3f}", f"{high:.3f}")) + line)


def _reliability_figure(each: dict[str, Any]) -> str:
    (x0, y0), (x1, y1) = _at(0, 0), _at(1, 1)
    dots = [f'<path d="M{x0} {y0}L{x1} {y1}" stroke="#c3ccd6" stroke-dasharray="4"/>']
    for share, confidence, right in each["reliability"]:
        x, y = _at(confidence, right)
        dots.append(f'<circle cx="{x}" cy="{y}" r="{2 + 8 * share**0.5:.1f}" fill="#1668a8" fill-opacity=".6"/>')
    return _figure(each["name"], _frame(("0", "1", "0", "1")) + "".join(dots))


def _confusion_figure(each: dict[str, Any]) -> str:
    counts: list[list[int]] = each["confusion"]
    labels: list[str] = each["labels"]
    cell = 12 if len(counts) > 12 else 20
    names = 190
    parts = []
    for row, values in enumerate(counts):
        total = sum(values) or 1
        parts.append(f'<text x="{names - 6}" y="{row * cell + cell - 3}" text-anchor="end">{_escaped(labels[row][:30])}</text>')
        for column, count in enumerate(values):
            if count:
                title = f"{labels[row]} → {labels[column]}: {count}"
                parts.append(
                    f'<rect x="{names + column * cell}" y="{row * cell}" width="{cell}" height="{cell}" fill="#1668a8" '
                    f'fill-opacity="{count / total:.2f}"><title>{_escaped(title)}</title></rect>'
                )
    size = len(counts) * cell
    parts.append(f'<rect x="{names}" y="0" width="{size}" height="{size}" fill="none" stroke="#9aa5b1"/>')
    return _figure(each["name"], "".join(parts), width=names + size + 4, height=size + 4)


def _relations_figure(names: Sequence[str], matrix: Sequence[Sequence[float]]) -> str:
    cell, left, top = 34, 110, 96
    parts = []
    for row, values in enumerate(matrix):
        y = top + row * cell
        parts.append(f'<text x="{left - 6}" y="{y + 21}" text-anchor="end">{_escaped(names[row])}</text>')
        x = left + row * cell + 20
        parts.append(f'<text x="{x}" y="{top - 6}" transform="rotate(-60 {x} {top - 6})">{_escaped(names[row])}</text>')
        for column, value in enumerate(values):
            at = left + column * cell
            parts.append(
                f'<rect x="{at}" y="{y}" width="{cell}" height="{cell}" fill="#1668a8" fill-opacity="{value:.2f}"/>'
                f'<text x="{at + cell / 2}" y="{y + 21}" text-anchor="middle"{_on(value)}>{100 * value:.0f}</text>'
            )
    size = len(matrix) * cell
    return _figure("percent", "".join(parts), width=left + size + 60, height=top + size + 4)


def _on(share: float) -> str:
    """White letters where the cell behind them is dark."""
    return ' style="fill:#fff"' if share > _DARK else ""


def _leanings(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        f"<p>{_escaped(name)} leans, besides, on what {_escaped(each['other'])} finds, with a weight of {each['weight']:.2f}.</p>"
        for name, each in found.items()
    ]


def _study(runs: Sequence[Run]) -> list[str]:
    """Together against alone; studies of different data or task files, which cannot be compared, one after the other."""
    recipes = dict.fromkeys(run.recipe for run in runs)
    return [line for recipe in recipes for line in _study_of(recipe, [run for run in runs if run.recipe == recipe])]


def _study_of(recipe: str, runs: Sequence[Run]) -> list[str]:
    """A table and a bar for each task and share of labels."""
    found = gains(runs)
    whole = [each.gain for each in found if each.share == 1.0]
    lines = [
        f"<h2>Together against alone <small>({_escaped(recipe)})</small></h2>",
        "<p>One network for all tasks against one for each; the gain is relative to alone, the mean over seeds ± half of its 95 "
        f"% interval. Δm with all labels: {100 * sum(whole) / max(len(whole), 1):+.2f} % over {len(whole)} tasks.",
    ]
    if cost := costs(runs):
        together, alone = cost
        lines.append(
            f" The common network has {together.parameters:,.0f} numbers, trained in {together.seconds:.0f} s and takes "
            f"{together.microseconds:.1f} µs for a listing; the others in sum {alone.parameters:,.0f}, {alone.seconds:.0f} s and "
            f"{alone.microseconds:.1f} µs."
        )
    lines.append("</p>")
    head = "".join(f"<th>{title}</th>" for title in ("task", "labels kept", "together", "alone", "gain", "±", "seeds"))
    rows = [
        f"<tr><td>{_escaped(each.task)}</td><td>{each.share:.0%}</td><td>{each.together:.3f}</td><td>{each.alone:.3f}</td>"
        f"<td>{each.gain:+.1%}</td><td>{each.half_width:.1%}</td><td>{each.seeds}</td></tr>"
        for each in found
    ]
    return [*lines, f"<table><tr>{head}</tr>{''.join(rows)}</table>", _gains_figure(found)]


def _gains_figure(found: Sequence[Gain]) -> str:
    height, left, middle, scale_max = 18, 170, 420, 230
    # A score near zero makes gains of hundreds of percent, beside which no other bar could be seen.
    largest = min(max((abs(each.gain) + _finite(each.half_width) for each in found), default=0.0) or 1.0, _GAIN_SHOWN_MAX)
    parts = [f'<path d="M{middle} 0V{height * len(found)}" stroke="#9aa5b1"/>']
    for row, each in enumerate(found):
        y, width = row * height, min(abs(each.gain) / largest, 1.0) * scale_max
        x = middle if each.gain >= 0 else middle - width
        end = middle + max(-1.0, min(each.gain / largest, 1.0)) * scale_max
        half = min(_finite(each.half_width) / largest, 0.2) * scale_max
        colour = "#1668a8" if each.gain >= 0 else "#b5482f"
        parts.append(
            f'<text x="{left}" y="{y + 13}" text-anchor="end">{_escaped(each.task)} {each.share:.0%}</text>'
            f'<rect x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="10" fill="{colour}"/>'
            f'<path d="M{end - half:.1f} {y + 9}H{end + half:.1f}" stroke="#1c2430"/>'
        )
    return _figure(
        f"gain, whole width ±{largest:.0%}, longer bars cut",
        "".join(parts),
        width=middle + scale_max + 10,
        height=height * len(found),
    )


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _examples(examples: Sequence[Example]) -> list[str]:
    if not examples:
        return []
    rows = []
    for each in examples:
        cover = f'<img src="{each.cover}" width="64" alt="cover">' if each.cover else ""
        mark = "right" if each.right else f"wrong: it is {_escaped(each.truth)}"
        cells = (cover, f"<b>{_escaped(each.title)}</b><br>{_escaped(each.authors)}", _escaped(each.task),
                 f"{_escaped(each.answer)} ({each.confidence:.0%})", mark)  # fmt: skip
        rows.append("<tr>" + "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells) + "</tr>")
    return ["<h2>Examples</h2><p>Of the validation part, spread evenly.</p>", f"<table>{''.join(rows)}</table>"]
