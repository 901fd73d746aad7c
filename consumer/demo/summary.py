"""What the demo says at the end, for a person who runs a shop and not a cluster."""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from consumer.demo.answers import DeadLetter, EnrichedEvent
from consumer.demo.catalogue import DemoListing
from consumer.demo.scenario import STEADY_PER_S, Figures, latencies_ms, percentile

ROWS_SHOWN = 12
CHINESE = "zh"
WIDE_COLUMNS = 118
WRAPPED_ALREADY = ("Language", "Department", "Topics", "Price band", "Pages")
LANGUAGES = {
    "en": "English", "zh": "Chinese", "fr": "French", "de": "German", "es": "Spanish", "it": "Italian",
    "ja": "Japanese", "fi": "Finnish", "pt": "Portuguese", "ru": "Russian", "nl": "Dutch", "sv": "Swedish",
    "el": "Greek", "la": "Latin", "pl": "Polish", "hu": "Hungarian", "da": "Danish", "ca": "Catalan", "eo": "Esperanto",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Story:
    """All that the demo saw."""

    listings: Sequence[DemoListing]
    events: Sequence[EnrichedEvent]
    dead_letters: Sequence[DeadLetter]
    broken_names: Mapping[bytes, str]
    figures: Figures
    published: int
    stored: int
    own_file: bool


def show(story: Story, console: Console) -> None:
    """Prints the tables and what to type next."""
    _show_predictions(story, console)
    _show_rejects(story, console)
    console.print()
    for line in (*_speed_lines(story), *_outcome_lines(story)):
        console.print(line)
    console.print()
    for line in _next_lines(story):
        console.print(line, soft_wrap=True)


def _show_predictions(story: Story, console: Console) -> None:
    latest = {event.listing_id: event for event in story.events if event.predictions}
    shown = [one for one in story.listings if one.listing_id in latest]
    step = max(1, len(shown) // ROWS_SHOWN)
    model = next((event.model for event in latest.values()), "?")
    is_wide = console.width >= WIDE_COLUMNS
    widths = (40, 15, 22, 22, 22, 16) if is_wide else (13, 11, 15, 14, 11, 11)
    table = _table("Title", "Language", "Department", "Topics", "Price band", "Pages", max_widths=widths)
    for listing in shown[::step][:ROWS_SHOWN]:
        title = escape(_shortened(listing.title, 40))
        table.add_row(title, *prediction_cells(latest[listing.listing_id].predictions, is_wide=is_wide))
    console.print(f"\n[bold]What the model {model} says[/bold] of {_every(step)} listing, right or wrong")
    console.print(table)
    console.print(
        "[dim]Percentages: calibrated confidence. Pages: the best guess, and the range that should hold 8 books of 10. "
        "Chinese listings are shown with the Chinese shop's departments and topics, all others with the English ones.[/dim]"
    )


def prediction_cells(predictions: Mapping[str, Any], *, is_wide: bool) -> list[str]:
    """Language, department, topics, price band and pages of one listing; a task without an answer is "-"."""
    languages = _labels(predictions, "language")
    is_chinese = bool(languages) and languages[0]["label"] == CHINESE
    named = [{**one, "label": LANGUAGES.get(one["label"], one["label"])} for one in languages[:1]]
    department = _labels(predictions, "group" if is_chinese else "department")[:1]
    topics = _labels(predictions, "topics" if is_chinese else "shelves")[: 2 if is_wide else 1]
    band = _labels(predictions, "price_band")[:1]
    language_width, width, band_width = (15, 22, 22) if is_wide else (11, 14, 11)
    return [
        _with_confidence(named, width=language_width),
        _with_confidence(department, width=width),
        _with_confidence(topics, width=width),
        _with_confidence(band, width=band_width),
        _interval(predictions.get("page_count"), separator=" " if is_wide else "\n"),
    ]


def _labels(predictions: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (predictions.get(task) or {}).get("labels") or []
    return found


def _with_confidence(labels: Sequence[Mapping[str, Any]], *, width: int) -> str:
    lines = []
    for one in labels:
        # Wrapped here, and at hyphens: a label such as Science-Fiction-Fantasy-Horror has no spaces to break at.
        *first, last = textwrap.wrap(f"{one['label']} {one['confidence']:.0%}", width)
        label, space, percentage = last.rpartition(" ")
        lines += [*map(escape, first), f"{escape(label)}{space}[dim]{percentage}[/dim]"]
    return "\n".join(lines) or "-"


def _interval(prediction: Mapping[str, Any] | None, *, separator: str) -> str:
    if not prediction or prediction.get("value") is None:
        return "-"
    return f"{prediction['value']:.0f}{separator}[dim]({prediction['low']:.0f}-{prediction['high']:.0f})[/dim]"


def _show_rejects(story: Story, console: Console) -> None:
    table = _table("What was sent", "Rejected at", "Reason", "Count")
    rows = Counter(
        (story.broken_names.get(letter.key or b"", "a listing of the file"), letter.stage, letter.reason)
        for letter in story.dead_letters
    )
    order = {name: number for number, name in enumerate(story.broken_names.values())}
    for (name, stage, reason), count in sorted(rows.items(), key=lambda row: (order.get(row[0][0], -1), row)):
        table.add_row(escape(name), stage, escape(_shortened(reason, 120)), str(count))
    sent, rejected = len(story.broken_names), len(story.dead_letters)
    console.print(f"\n[bold]What was rejected[/bold]: {sent} events were broken on purpose, {rejected} became dead letters")
    console.print(table)


def _table(*columns: str, max_widths: Sequence[int | None] | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, width in zip(columns, max_widths or [None] * len(columns), strict=True):
        table.add_column(name, overflow="fold", max_width=width, no_wrap=name in WRAPPED_ALREADY)
    return table


def _speed_lines(story: Story) -> list[str]:
    figures = story.figures
    received = {(one.listing_id, one.version): one.received_s for one in story.events if one.version is not None}
    latencies = latencies_ms(figures, received.get)
    lines = []
    if figures.burst_listings and figures.burst_s is not None:
        per_s = figures.burst_listings / figures.burst_s
        lines.append(
            f"[bold]{per_s:,.0f} listings per second[/bold]: {figures.burst_listings:,} published all at once (most works "
            f"under several ids, and {figures.burst_broken} broken events among them), the last answered after "
            f"{figures.burst_s:.1f} s"
        )
    if latencies:
        lines.append(
            f"[bold]p50 {percentile(latencies, 0.5):.0f} ms, p99 {percentile(latencies, 0.99):.0f} ms[/bold] from publish "
            f"to enriched: {len(latencies)} published one by one, {STEADY_PER_S} a second"
        )
    return lines


def _outcome_lines(story: Story) -> list[str]:
    outcomes = Counter(event.outcome for event in story.events)
    answered = len(story.events) + len(story.dead_letters)
    in_time = "" if story.figures.is_complete else " before the time was up; the service stopped in good order"
    counts = [
        (outcomes["PREDICTED"], "predicted"),
        (outcomes["REUSED"], "reused: only the price had changed, so the model was not asked again"),
        (outcomes["SUPERSEDED"], "superseded: an older version came late and changed nothing"),
        (outcomes["DELETED"], "deleted"),
        (len(story.dead_letters), "rejected, see above"),
    ]
    return [
        f"[bold]{answered:,} of {story.published:,} events answered[/bold]{in_time}",
        *(f"{count:>7,} {what}" for count, what in counts),
        f"Entries in the store: {story.stored:,}; of a deleted listing it keeps a tombstone.",
    ]


def _next_lines(story: Story) -> list[str]:
    python = ".venv/bin/python -m consumer"
    book = '{"listing_id": "1", "title": "Moby-Dick", "authors": ["Herman Melville"]}'
    own = [] if story.own_file else [("your own listings, one JSON object a line", f"{python} demo --listings FILE")]
    commands = [
        ("one book, without broker and store", f"echo '{book}' | {python} predict -"),
        *own,
        ("the same journey on real servers, with faults", "make test"),
    ]
    return [
        "[bold]What this does not show[/bold]: the embedded broker proves nothing about exactly-once. "
        "[bold]make test[/bold] does, on Apache Kafka.",
        "",
        "[bold]What to type next[/bold]",
        *(f"  [dim]# {what}[/dim]\n  {escape(command)}" for what, command in commands),
    ]


def _shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"


def _every(step: int) -> str:
    suffix = "th" if 10 <= step % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(step % 10, "th")
    return "every" if step == 1 else f"every {step}{suffix}"
