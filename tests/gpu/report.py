"""One document and one table: every figure beside its target.

Figures mean something on hardware alone. On the software CUDA driver, or where the step that names the GPU did not say which
it is, none is kept and every target is "not run".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tests.gpu.plan import FACTS
from tests.gpu.steps import Outcome

SOFTWARE = "software driver: figures mean nothing"
UNKNOWN = "unknown: the step `facts` did not say"
_SOFTWARE_GPU = "software CUDA device"

Verdict = Literal["met", "missed", "not run"]
Figures = Mapping[str, Mapping[str, Any]]  # by step
ROWS_PER_S_MIN, REPLAYED_MIN, EVENTS_PER_S_MIN, SWAPS_MIN, LISTINGS_MIN = 100_000, 0.9, 20_000, 100, 50_000
VERIFIED_ROWS_MIN, AGREEMENT_MIN, COSINE_MIN = 2_000, 0.999, 0.999
DIFFERENCE_MAX = {"fp16": 0.01, "fp32": 1e-4}


@dataclass(frozen=True, slots=True)
class Target:
    """What issue 5 asks for. `measure` raises KeyError where a figure is missing; `ok` says whether its answer will do."""

    name: str
    wanted: str
    steps: tuple[str, ...]
    measure: Callable[[Figures], Any]
    ok: Callable[[Any], bool]
    remark: Callable[[Figures], str] = lambda figures: ""


def _best(figures: Figures) -> float:
    best = figures["bench fp16"]["best"]
    return float(max(one["rows_per_s"] for name, one in best.items() if name.startswith("engine")))


def _parity(precision: str) -> Target:
    def measure(figures: Figures) -> dict[str, Any]:
        found = figures[f"verify {precision}"]
        return {name: found[name] for name in ("rows", "agreement_min", "difference_max", "cosine_min")}

    def ok(found: Any) -> bool:
        return bool(
            found["rows"] >= VERIFIED_ROWS_MIN
            and found["agreement_min"] >= AGREEMENT_MIN
            and found["cosine_min"] >= COSINE_MIN
            and found["difference_max"] != "not finite"
            and found["difference_max"] <= DIFFERENCE_MAX[precision]
        )

    limits = f"agreement ≥ {AGREEMENT_MIN}, difference ≤ {DIFFERENCE_MAX[precision]:g}, cosine ≥ {COSINE_MIN}"
    wanted = f"≥ {VERIFIED_ROWS_MIN:,} rows: {limits}"
    return Target(f"parity with ONNX Runtime, {precision}", wanted, (f"verify {precision}",), measure, ok)


TARGETS = (
    Target(
        "engine, rows/s with covers at the best batch",
        f"≥ {ROWS_PER_S_MIN:,}",
        ("bench fp16",),
        _best,
        lambda found: bool(found >= ROWS_PER_S_MIN),
    ),
    Target(
        "engine, share of itself replayed without copies",
        f"≥ {REPLAYED_MIN}",
        ("bench fp16", "replay fp16"),
        lambda figures: _best(figures) / figures["replay fp16"]["rows_per_s"],
        lambda found: bool(found >= REPLAYED_MIN),
    ),
    Target(
        f"pipeline, events/s over ≥ {LISTINGS_MIN:,} listings",
        f"≥ {EVENTS_PER_S_MIN:,}, or the CPU stage that limits it",
        ("pipeline",),
        lambda figures: {name: figures["pipeline"][name] for name in ("listings", "events_per_s")},
        lambda found: bool(found["listings"] >= LISTINGS_MIN and found["events_per_s"] >= EVENTS_PER_S_MIN),
        lambda figures: f"limited by {figures['pipeline']['limited_by']}",
    ),
    _parity("fp16"),
    _parity("fp32"),
    Target(
        "hot swaps under load",
        f"{SWAPS_MIN}, 0 failures",
        ("swaps",),
        lambda figures: {name: figures["swaps"][name] for name in ("swaps", "failures")},
        lambda found: bool(found["swaps"] >= SWAPS_MIN and not any(found["failures"].values())),
    ),
)


def hardware(outcomes: Mapping[str, Outcome]) -> str:
    """The GPU's name, or why no figure means anything."""
    facts = outcomes.get(FACTS)
    gpu = str(facts.figures.get("gpu", "")) if facts is not None and facts.status == "ok" else ""
    if gpu.startswith(_SOFTWARE_GPU):
        return SOFTWARE
    return gpu or UNKNOWN


def document(outcomes: Mapping[str, Outcome], about: Mapping[str, Any]) -> dict[str, Any]:
    """What is written as JSON."""
    where = hardware(outcomes)
    real = where not in {SOFTWARE, UNKNOWN}
    steps = {name: outcome.as_document() for name, outcome in outcomes.items()}
    if not real:
        for step in steps.values():
            step["figures"] = {}
            step["seconds"] = None
    return {**about, "hardware": where, "targets": [judged(target, outcomes, real=real) for target in TARGETS], "steps": steps}


def judged(target: Target, outcomes: Mapping[str, Outcome], *, real: bool) -> dict[str, Any]:
    """A target with its figure and verdict. A step that failed after it had measured counts by its figures."""
    figures = {name: outcome.figures for name, outcome in outcomes.items()}
    measured, verdict, remark = None, "not run", ""
    if real:
        try:
            measured, remark = target.measure(figures), target.remark(figures)
            failed = [name for name in target.steps if outcomes[name].status != "ok"]
            verdict = "met" if target.ok(measured) and not failed else "missed"
        except (KeyError, ValueError, ZeroDivisionError):  # a step that it needs has no figures
            measured, remark = None, ""
    return {"target": target.name, "wanted": target.wanted, "measured": measured, "verdict": verdict, "remark": remark}


def table(found: Mapping[str, Any]) -> str:
    """For people: targets, then steps."""
    lines = [f"hardware: {found['hardware']}", ""]
    rows = [("target", "wanted", "measured", "verdict")]
    for one in found["targets"]:
        verdict = f"{one['verdict']} ({one['remark']})" if one["remark"] else one["verdict"]
        rows.append((one["target"], one["wanted"], _shown(one["measured"]), verdict))
    lines += [*_aligned(rows), ""]
    steps = [("step", "status", "seconds", "reason")]
    for name, step in found["steps"].items():
        steps.append((name, step["status"], _shown(step["seconds"]), step["reason"][:160]))
    return "\n".join([*lines, *_aligned(steps)])


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
