"""A figure is met, missed or not run, and one of the software driver is never shown."""

from typing import Any

from tests.gpu.report import SOFTWARE, UNKNOWN, document, table
from tests.gpu.steps import Outcome

PARITY = {"passed": True, "rows": 2048, "agreement_min": 0.9995, "cosine_min": 0.9999}
NO_FAILURES = {"refused": 0, "late": 0, "lost": 0, "doubled": 0, "dead": 0, "mixed": 0}


def a_run(gpu: str = "A GPU", **changes: Any) -> dict[str, Outcome]:
    """Every target is met; made-up figures."""
    figures: dict[str, dict[str, Any]] = {
        "facts": {"gpu": gpu},
        "bench fp16": {"best": {"engine": {"rows_per_s": 123_456.0}, "onnxruntime, CPU": {"rows_per_s": 999_999.0}}},
        "replay fp16": {"rows_per_s": 130_000.0},
        "pipeline": {"listings": 50_000, "events_per_s": 21_000.0, "limited_by": "the CPU stage features"},
        "verify fp16": {**PARITY, "difference_max": 0.002},
        "verify fp32": {**PARITY, "difference_max": 1e-6},
        "swaps": {"swaps": 100, "failures": NO_FAILURES},
    }
    return {name: Outcome("ok", seconds=1.5, figures={**found, **changes.get(name, {})}) for name, found in figures.items()}


def verdicts(outcomes: dict[str, Outcome]) -> list[str]:
    return [one["verdict"] for one in document(outcomes, {})["targets"]]


def test_every_target_can_be_met() -> None:
    assert verdicts(a_run()) == ["met"] * 6


def test_every_target_can_be_missed() -> None:
    missed = a_run(
        **{
            "bench fp16": {"best": {"engine": {"rows_per_s": 99_999.0}}},
            "pipeline": {"events_per_s": 19_999.0},
            "verify fp16": {"difference_max": 0.011},
            "verify fp32": {"difference_max": "not finite"},
            "swaps": {"failures": {**NO_FAILURES, "lost": 1}},
        }
    )
    assert verdicts(missed) == ["missed"] * 6


def test_fewer_listings_rows_or_swaps_than_asked_for_are_not_enough() -> None:
    less = a_run(**{"pipeline": {"listings": 49_999}, "verify fp16": {"rows": 1_999}, "swaps": {"swaps": 99}})
    assert verdicts(less) == ["met", "met", "missed", "missed", "met", "missed"]


def test_a_pipeline_that_is_too_slow_says_what_limits_it() -> None:
    found = table(document(a_run(pipeline={"events_per_s": 3_000.0}), {}))
    assert "missed (limited by the CPU stage features)" in found


def test_a_step_without_figures_leaves_its_targets_not_run() -> None:
    outcomes = a_run()
    outcomes["bench fp16"] = Outcome("failed", "it said nothing")
    assert verdicts(outcomes) == ["not run", "not run", "met", "met", "met", "met"]


def test_a_step_that_failed_after_it_had_measured_meets_nothing() -> None:
    outcomes = a_run()
    outcomes["swaps"].status = "failed"
    assert verdicts(outcomes)[-1] == "missed"


def test_no_figure_of_the_software_driver_is_kept() -> None:
    found = document(a_run("software CUDA device 0"), {})
    assert found["hardware"] == SOFTWARE == "software driver: figures mean nothing"
    assert [one["verdict"] for one in found["targets"]] == ["not run"] * 6
    assert {one["measured"] for one in found["targets"]} == {None}
    assert all(step["figures"] == {} and step["seconds"] is None for step in found["steps"].values())
    assert not any(figure in table(found) for figure in ("123,456", "21,000", "1.5"))


def test_where_nobody_said_which_gpu_it_was_no_figure_is_kept() -> None:
    outcomes = a_run()
    outcomes["facts"].status = "failed"
    found = document(outcomes, {})
    assert found["hardware"] == UNKNOWN
    assert {one["measured"] for one in found["targets"]} == {None}
