"""Which steps there are, and how what each prints becomes figures."""

import argparse
import json
from pathlib import Path
from typing import Any

from tests.gpu.install import Places
from tests.gpu.steps import Step, last_line

PRECISIONS = ("fp16", "fp32")
INSTALL = "install"
FACTS = "facts"


def steps(arguments: argparse.Namespace, places: Places) -> list[Step]:
    """All but the first, `install`, which makes the others possible."""
    bundle, engines = ("--bundle", str(arguments.bundle)), ("--cache", str(places.engines))
    engine = ("-m", "build_engine")
    shop = (*bundle, *engines, "--precision", "fp16")  # of the three below; the service runs no other
    found = [Step(FACTS, ("-m", "tests.gpu.facts"), 120, last_line)]
    for precision in PRECISIONS:
        chosen = (*bundle, *engines, "--precision", precision)
        found += [
            Step(f"build {precision}", (*engine, "build", *chosen, "--batch", arguments.batch), 900, _read_build),
            Step(f"verify {precision}", (*engine, "verify", *chosen, "--json"), 300, _read_verify),
            Step(
                f"bench {precision}",
                (*engine, "bench", *chosen, "--json", "--seconds", str(arguments.seconds)),
                300 + 60 * arguments.seconds,
                _read_bench,
            ),
            Step(f"replay {precision}", ("-m", "tests.gpu.replay", *chosen, "--seconds", str(arguments.seconds)), 300, last_line),
        ]
    listings = ("-m", "tests.gpu.pipeline", *shop)
    swaps = ("--swaps", str(arguments.swaps), "--per-s", str(arguments.per_s))
    return [
        *found,
        Step("pipeline", (*listings, "--listings", str(arguments.listings)), 900, last_line),
        Step("pipeline with covers", (*listings, "--listings", str(arguments.with_covers), "--covers"), 900, last_line),
        Step("swaps", ("-m", "tests.gpu.swaps", *shop, *swaps), 300 + 10 * arguments.swaps, last_line),
    ]


def names(arguments: argparse.Namespace) -> list[str]:
    """All steps by name, in order."""
    return [INSTALL, *(step.name for step in steps(arguments, Places(Path())))]


def _read_build(said: str, complaints: str) -> dict[str, Any]:
    path = Path(said.strip().splitlines()[-1])
    return {"plan_bytes": path.stat().st_size, "verified": "NOT verified" not in complaints, "engine": path.stem}


def _read_verify(said: str, complaints: str) -> dict[str, Any]:
    report = json.loads(said)
    outputs = report["outputs"]
    differences = [one["difference_max"] for one in outputs]
    return {
        "passed": report["passed"],
        "rows": report["rows"],
        "agreement_min": min(one["agreement"] for one in outputs),
        "difference_max": "not finite" if "not finite" in differences else max(differences),
        "cosine_min": min(one["cosine_min"] for one in outputs),
        "outputs": outputs,
    }


def _read_bench(said: str, complaints: str) -> dict[str, Any]:
    measured = json.loads(said)
    best: dict[str, dict[str, Any]] = {}
    for one in measured:
        if one["rows_per_s"] > best.get(one["runner"], {"rows_per_s": 0})["rows_per_s"]:
            best[one["runner"]] = one
    return {
        "best": best,
        "times_onnxruntime": best["engine"]["rows_per_s"] / best["onnxruntime, CPU"]["rows_per_s"],
        "not_measured": [line for line in complaints.splitlines() if line.startswith("not measured")],
        "measurements": measured,
    }
