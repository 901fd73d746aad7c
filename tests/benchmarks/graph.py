"""One thread of ONNX Runtime on real listings, features apart: `python -m tests.benchmarks.graph [--bundle DIR]`.

Through the service's backend, in batches of 256, which it sorts by length and cuts to 64. At first no row has a cover, then each.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from consumer.inference.onnx import OnnxRuntimeBackend
from model.bundle import Bundle
from model.dataset import read_rows

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
SETS = ("bookdepository", "douban-zh", "goodreads", "gutenberg")
ROWS, BATCH, RUNS = 2048, 256, 7


def rows_per_second(backend: OnnxRuntimeBackend, feeds: list[dict[str, np.ndarray]]) -> float:
    started = time.perf_counter()
    for feed in feeds:
        backend.infer(feed)
    return sum(len(feed["token_ids"]) for feed in feeds) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "model" / "bundles" / "books")
    arguments = parser.parse_args()
    bundle = Bundle.load(arguments.bundle)
    settings = bundle.manifest.features
    rows = read_rows([DATA / name for name in SETS], part="valid", settings=settings)
    chosen = [rows.listings[at] for at in np.linspace(0, len(rows) - 1, ROWS).astype(np.int64)]
    shape = (settings.cover_channels, settings.cover_height, settings.cover_width)
    cover = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    backend = OnnxRuntimeBackend(bundle.graph_path, threads=1)
    found: dict[str, list[float]] = {}
    for name, covers in (("without covers", [None] * ROWS), ("with covers", [cover] * ROWS)):
        features = bundle.extractor().extract(chosen, covers)
        feeds = [features.rows(slice(start, start + BATCH)).as_feed() for start in range(0, ROWS, BATCH)]
        rows_per_second(backend, feeds)
        found[name] = [round(rows_per_second(backend, feeds)) for _ in range(RUNS)]
    console = Console()
    for name, figures in found.items():
        low, middle, high = min(figures), statistics.median(figures), max(figures)
        console.print(f"{bundle.manifest.label} {name}: {middle:,.0f} rows/s ({low:,.0f} to {high:,.0f})", highlight=False)
    console.print_json(json.dumps(found))


if __name__ == "__main__":
    main()
