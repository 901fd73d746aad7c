"""The committed results as one picture: `python -m tests.benchmarks.plot` draws `results/figures.png` from the JSON beside it.

Drawn with Pillow, which the service needs anyway.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

RESULTS = Path(__file__).parent / "results"
OURS, OTHERS, INK, FAINT = "#1f6f8b", "#b8b8b8", "#222222", "#dddddd"
WIDTH, BAR, LABELS = 1200, 30, 330  # pixels: the picture, a bar with its gap, the names before the bars
Bar = tuple[str, dict[str, float], str]  # name, median with min and max, colour


class Page:
    """A picture that is written on from top to bottom."""

    def __init__(self, height: int) -> None:
        self.image = Image.new("RGB", (WIDTH, height), "white")
        self._draw = ImageDraw.Draw(self.image)
        self._font, self._bold = ImageFont.load_default(17), ImageFont.load_default(21)
        self.y = 15

    def write(self, x: float, y: float, text: str, *, anchor: str = "lm", bold: bool = False) -> None:
        self._draw.text((x, y), text, INK, self._bold if bold else self._font, anchor=anchor)

    def title(self, text: str) -> None:
        self.write(15, self.y + 12, text, bold=True)
        self.y += 36

    def bars(self, bars: Sequence[Bar]) -> None:
        """One a line, the thin line from the lowest to the highest round."""
        most = max(spread["max"] for _, spread, _ in bars)
        scale = (WIDTH - LABELS - 110) / most
        for name, spread, colour in bars:
            middle = self.y + BAR // 2
            self.write(LABELS - 10, middle, name, anchor="rm")
            self._draw.rectangle((LABELS, middle - 9, LABELS + spread["median"] * scale, middle + 9), fill=colour)
            self._draw.line((LABELS + spread["min"] * scale, middle, LABELS + spread["max"] * scale, middle), fill=INK, width=2)
            self.write(LABELS + spread["max"] * scale + 8, middle, f"{spread['median']:,.0f}")
            self.y += BAR
        self.y += 18

    def curves(self, curves: Sequence[tuple[str, str, Sequence[tuple[str, float]]]]) -> None:
        """Milliseconds, each ten times as high, over loads by name."""
        left, right, top, bottom = 105, WIDTH - 60, self.y + 10, self.y + 300
        values = [value for _, _, points in curves for _, value in points]
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

        def place(index: int, value: float) -> tuple[float, float]:
            share = (math.log10(value) - low) / (high - low)
            return left + (right - left) * index / (len(curves[0][2]) - 1), bottom - (bottom - top) * share

        for power in range(low, high + 1):
            _, y = place(0, 10**power)
            self._draw.line((left, y, right, y), fill=FAINT)
            self.write(left - 10, y, f"{10**power:,} ms", anchor="rm")
        for index, (load, _) in enumerate(curves[0][2]):
            self.write(place(index, values[0])[0], bottom + 20, load, anchor="mm")
        for number, (name, colour, _) in enumerate(curves):
            self._draw.rectangle((left + 20, top + 14 + 24 * number, left + 40, top + 20 + 24 * number), fill=colour)
            self.write(left + 50, top + 17 + 24 * number, name)
        for _, colour, points in curves:
            places = [place(index, value) for index, (_, value) in enumerate(points)]
            self._draw.line(places, fill=colour, width=3)
            for x, y in places:
                self._draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
        self.y = bottom + 45


def rates(contestants: dict[str, Any], *, ours: Sequence[str]) -> list[Bar]:
    """Events/s of each, ours in their colour, the fastest first."""
    found = [(name, one["events_per_s"], OURS if name.startswith(tuple(ours)) else OTHERS) for name, one in contestants.items()]
    return sorted(found, key=lambda bar: -bar[1]["median"])


def draw(journey: dict[str, Any], peers: dict[str, Any], latency: dict[str, Any]) -> Image.Image:
    """The picture."""
    page = Page(2_000)
    page.title(f"Events/s, {journey['events']:,} listings, {journey['rounds']} rounds (median, min to max); ours in blue")
    parts = ("bare model", "bare loop", "decoding a cover")
    page.bars(rates(journey["contestants"], ours=[name for name in journey["contestants"] if name not in parts]))
    for size, result in peers["models"].items():
        page.title(f"Events/s against other runners, {size} model, {result['events']:,} listings, {peers['rounds']} rounds")
        page.bars(rates(result["contestants"], ours=["service"]))
    page.title("Milliseconds from publish to enriched, by share of the highest rate")
    shades = {"at_least_once": ("#8bbccb", "#1f6f8b"), "exactly_once": ("#e8b08a", "#c2561a")}
    page.curves(
        [
            (f"{guarantee.replace('_', ' ')}, {which}", shades[guarantee][number], points(measured["loads"], f"{which}_ms"))
            for guarantee, measured in latency["guarantees"].items()
            for number, which in enumerate(("p50", "p99"))
        ]
    )
    return page.image.crop((0, 0, WIDTH, page.y))


def points(loads: dict[str, Any], figure: str) -> list[tuple[str, float]]:
    """A figure by load."""
    return [(load, measured[figure]) for load, measured in loads.items()]


def main() -> None:
    """Reads the committed results and writes the picture beside them."""
    names = ("journey", "peers", "latency")
    results = [json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    out = RESULTS / "figures.png"
    draw(*results).quantize(64).save(out, optimize=True)
    print(f"{out.name}: {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
