"""Writes dashboard.json, which Grafana imports: `python deploy/monitoring/make_dashboard.py`.

A panel is a title, a unit, what to read in it, and its queries, each with its legend. Grafana's own form is ten times as long.
`python -m tests.monitoring.screenshot` shows what it looks like.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

FILE = Path(__file__).with_name("dashboard.json")
_COLUMNS = 24
_OF = '{job=~"$job",pod=~"$pod"}'  # what every query is limited to
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_NONE: Mapping[Any, str] = MappingProxyType({})


class Panel(NamedTuple):
    """A graph over time, or with the kind "stat" the values of now: one with its past, or several with their names.

    Attributes:
        queries: legend to PromQL, in which <metric> is that of the chosen job and pods.
        width, height: of a grid of 24 columns; a row of it is 38 pixels high.
        steps: the value from which a colour holds; a graph shows them as lines.
        colors: legend to colour; other series take the next of Grafana's palette.
        stacked: the series are parts of a whole.
        log: of no use to what is often 0.
        many: so many series that the legend is a table beside the graph, the highest first.
        right: the legend whose series has an axis of its own.
    """

    title: str
    unit: str
    meaning: str
    queries: dict[str, str]
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 8
    height: int = 8
    steps: Mapping[float, str] = _NONE
    colors: Mapping[str, str] = _NONE
    stacked: bool = False
    log: bool = False
    many: bool = False
    right: str = ""


def _now(title: str, unit: str, meaning: str, query: str, steps: Mapping[float, str]) -> Panel:
    return Panel(title, unit, meaning, {title: query}, kind="stat", width=3, height=5, steps=steps)


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate(<{metric}>[$__rate_interval]))"


def _share(metric: str, of: str, by: str) -> str:
    return f"{_rate(metric, by)} / ignoring ({by}) group_left () sum(rate(<{of}>[$__rate_interval]))"


def _quantile(quantile: float, metric: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({quantile}, {_rate(metric + '_bucket', labels)})"


def _mean(metric: str, by: str) -> str:
    return f"{_rate(metric + '_sum', by)} / {_rate(metric + '_count', by)}"


# A panel is read as a whole; the formatter's form is twice as long.
# fmt: off
ROWS = {
    "Is it well?": [
        _now("Alerts", "none", "That ring now, of the rules in alerts.yml; 0 also where Prometheus was not given them.",
             'count(ALERTS{alertname=~"Enricher.+",alertstate="firing",job=~"$job"}) or vector(0)', {1: "red"}),
        _now("Replicas", "none", "That tell what they do.",
             "count(<enricher_build_info>) or vector(0)", {0: "red", 1: "green"}),
        _now("Records", "recps", "A second, of all replicas.",
             "sum(rate(<enricher_records_total>[$__rate_interval]))", {}),
        _now("Lag", "short", "Records after the last commit.",
             "sum(max by (partition) (<enricher_lag_records>))", {1_000: "orange", 100_000: "red"}),
        _now("Latency, p99", "s", "From a record's timestamp to its commit.",
             _quantile(0.99, "enricher_latency_seconds"), {5: "orange", 60: "red"}),
        _now("Dead letters", "percentunit", "Of all records in the last quarter of an hour.",
             "sum(increase(<enricher_dead_letters_total>[15m])) / sum(increase(<enricher_records_total>[15m]))",
             {0.01: "orange", 0.1: "red"}),
        _now("Breaker", "percentunit", "Share of the rejects at which a replica stops itself.",
             "max(<enricher_reject_share> / <enricher_reject_share_max>)", {0.5: "orange", 0.8: "red"}),
        _now("Waits", "none", "Tries of the last five minutes that a dependency left without an answer.",
             "sum(round(increase(<enricher_dependency_waits_total>[5m])))", {1: "orange", 20: "red"}),
        Panel("Records by outcome", "recps", "A second, over all replicas.",
              {"{{outcome}}": _rate("enricher_records_total", "outcome")},
              colors={"predicted": "green", "reused": "blue", "superseded": "purple", "deleted": "yellow",
                      "dead_letter": "red"},
              stacked=True),
        Panel("Lag by partition", "short", "Records after the last commit.",
              {"partition {{partition}}": "max by (partition) (<enricher_lag_records>)"}),
        Panel("From a record's timestamp to its commit", "s", "Of the oldest record of each transaction.",
              {"median": _quantile(0.5, "enricher_latency_seconds"), "p99": _quantile(0.99, "enricher_latency_seconds")},
              log=True),
        Panel("Dead letters", "recps", "By stage and reason; `consumer dead-letters list` shows them.",
              {"{{stage}}: {{reason}}": _rate("enricher_dead_letters_total", "stage, reason")}),
        Panel("Rejects against the breaker", "percentunit", "At the limit the service stops itself.",
              {"{{pod}}": "<enricher_reject_share>", "limit": "max(<enricher_reject_share_max>)"},
              colors={"limit": "red"}),
        Panel("Waits for dependencies", "ops", "Tries that got no answer.",
              {"{{dependency}}": _rate("enricher_dependency_waits_total", "dependency")}),
    ],
    "Where the time goes": [
        Panel("Stage, p99", "s", "Seconds of a batch; known and store are Redis, commit is Kafka.",
              {"{{stage}}": _quantile(0.99, "enricher_stage_seconds", "stage")},
              log=True),
        Panel("Share of a replica's time by stage", "percentunit", "They overlap; one near 100 % is the bottleneck.",
              {"{{stage}}": "avg by (stage) (rate(<enricher_stage_seconds_sum>[$__rate_interval]))"}),
        Panel("Batches", "short", "Mean records of a batch; on the right batches in flight, most of a replica's.",
              {"records": "sum(rate(<enricher_batch_records_sum>[$__rate_interval]))"
                          " / sum(rate(<enricher_batch_records_count>[$__rate_interval]))",
               "in flight": "max(<enricher_in_flight_batches>)"},
              right="in flight"),
        Panel("Age of a batch at its start", "s", "What waiting in the topic costs.",
              {"median": _quantile(0.5, "enricher_batch_age_seconds"),
               "p99": _quantile(0.99, "enricher_batch_age_seconds")},
              log=True),
        Panel("Content looked up in the store", "percentunit", "A hit did not change and is answered without the model.",
              {"{{result}}": _share("enricher_content_lookups_total", "enricher_content_lookups_total", "result")},
              colors={"hit": "green", "miss": "blue"}, stacked=True),
        Panel("Covers by URL", "ops", "How fetching them went.",
              {"{{result}}": _rate("enricher_cover_fetches_total", "result")}),
    ],
    "Kafka and Redis": [
        Panel("Transactions", "ops", "An aborted one is read again.",
              {"{{result}}": _rate("enricher_transactions_total", "result")},
              colors={"committed": "green", "aborted": "red"}),
        Panel("Partitions of a replica", "none", "With none it stands idle.",
              {"{{pod}}": "<enricher_assigned_partitions>"},
              stacked=True),
        Panel("Rebalances", "none", "In the last quarter of an hour.",
              {"{{kind}}": "sum by (kind) (round(increase(<enricher_rebalances_total>[15m])))"}),
        Panel("Client round trip, p99", "s", "Of the slowest broker.",
              {"{{client}}": "max by (client) (<enricher_client_rtt_seconds>)"},
              width=6),
        Panel("Client queues", "short", "Records, of all replicas.",
              {"{{client}}": "sum by (client) (<enricher_client_queue_records>)"},
              width=6),
        Panel("Client errors", "ops", "Requests that failed or timed out; on the right the brokers connected to.",
              {"{{client}}": _rate("enricher_client_errors_total", "client"),
               "brokers": "min(<enricher_client_brokers_up>)"},
              width=6, right="brokers"),
        Panel("Stale writes", "ops", "Refused by the store's version guard.",
              {"refused": "sum(rate(<enricher_stale_writes_total>[$__rate_interval]))"},
              width=6),
    ],
    "What runs": [
        Panel("Replicas by what runs in them", "none",
              "More than one of a kind only while a rollout lasts; fallback: another backend than the one asked for.",
              {"{{name}}@{{version}}/{{epoch}} on {{backend}}":
                   "count by (name, version, epoch, backend) (<enricher_model_info>)",
               "bundle {{sha256}} {{engine}}": "count by (sha256, engine) (<enricher_bundle_info>)",
               "service {{version}}, Python {{python}}": "count by (version, python) (<enricher_build_info>)",
               "fallback": "sum(<enricher_backend_fallback>)"},
              kind="stat", width=16, height=6),
        Panel("Models asked for while it runs", "none",
              "In the last quarter of an hour; one that was refused leaves the former to answer.",
              {"{{outcome}}": "sum by (outcome) (round(increase(<enricher_model_swaps_total>[15m])))"},
              height=6, colors={"refused": "red", "taken_over": "green"}),
    ],
    "What comes in and what is said of it": [
        Panel("Listings that lack a field", "percentunit", "A jump is a changed feed.",
              {"{{field}}": _share("enricher_listings_lacking_total", "enricher_listings_total", "field")}),
        Panel("Languages", "percentunit", "As stated; unknown: not taught to the model.",
              {"{{language}}": _share("enricher_listing_languages_total", "enricher_listings_total", "language")},
              colors={"known": "green", "none": "blue", "unknown": "orange"}, stacked=True),
        Panel("Characters of title and description", "short", "The median listing, and the longest of a hundred.",
              {"median": _quantile(0.5, "enricher_listing_characters"),
               "p99": _quantile(0.99, "enricher_listing_characters")},
              log=True),
        Panel("Stability index", "none",
              "Labels given against those of validation data: above 0.25 is a large shift. Needs a bundle with a reference.",
              {"{{task}}": "max by (task) (<enricher_prediction_stability_index>)"},
              width=12, height=11, steps={0.25: "red"}, many=True),
        Panel("Confidence", "percentunit", "Mean of the best label's.",
              {"{{task}}": _mean("enricher_confidence", "task")},
              width=12, height=11, many=True),
    ],
}
# fmt: on


def dashboard() -> dict[str, Any]:
    """Grafana's model of it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row, members in ROWS.items():
        panels.append({"type": "row", "title": row, "collapsed": False, "gridPos": _place(0, top, width=_COLUMNS, height=1)})
        top, left, height = top + 1, 0, 0
        for panel in members:
            if left + panel.width > _COLUMNS:
                top, left = top + height, 0
            height = panel.height  # which all in a line have in common
            panels.append(_panel(panel, _place(left, top, width=panel.width, height=height)))
            left += panel.width
        top += height
    return {
        "title": "Listing enricher",
        "uid": "listing-enricher",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_data_source(), _variable("job"), _variable("pod")]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, start=1)],
    }


def _place(left: int, top: int, *, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": _SOURCE,
        "gridPos": place,
        **(_stat(panel) if panel.kind == "stat" else _graph(panel)),
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _SOURCE,
                "expr": _limited(query),
                "legendFormat": legend,
                # A graph over time shows also what is no more.
                "instant": _named(panel),
                "range": not _named(panel),
            }
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _named(panel: Panel) -> bool:
    return panel.kind == "stat" and len(panel.queries) > 1


def _stat(panel: Panel) -> dict[str, Any]:
    defaults = {"unit": panel.unit, "min": 0, "color": {"mode": "thresholds"}, "thresholds": _thresholds(panel.steps, "green")}
    return {
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "none" if _named(panel) else "area",
            "textMode": "value_and_name" if _named(panel) else "value",
            "justifyMode": "center",
            "orientation": "auto",
        },
    }


def _graph(panel: Panel) -> dict[str, Any]:
    custom: dict[str, Any] = {"showPoints": "never", "fillOpacity": 40 if panel.stacked else 0}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    defaults: dict[str, Any] = {"unit": panel.unit, "custom": custom}
    if panel.log:
        custom["scaleDistribution"] = {"type": "log", "log": 10}
    else:
        defaults["min"], custom["axisSoftMax"] = 0, _least(panel.unit)
    if panel.steps:
        custom["thresholdsStyle"] = {"mode": "dashed"}
        defaults["thresholds"] = _thresholds(panel.steps, "transparent")
    legend = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
    if panel.many:
        legend |= {"displayMode": "table", "placement": "right", "calcs": ["lastNotNull"], "sortBy": "Last *", "sortDesc": True}
    return {
        "fieldConfig": {"defaults": defaults, "overrides": list(_overrides(panel))},
        "options": {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}},
    }


def _overrides(panel: Panel) -> Iterator[dict[str, Any]]:
    for legend, color in panel.colors.items():
        yield _override("byName", legend, "color", {"mode": "fixed", "fixedColor": color})
    if panel.right:
        yield _override("byName", panel.right, "custom.axisPlacement", "right")
        yield _override("byName", panel.right, "unit", "none")
    # A dozen reasons that never came would fill the legend.
    if any("{{" in legend for legend in panel.queries):
        hidden = {"legend": True, "tooltip": True, "viz": False}
        yield _override("byValue", {"reducer": "allIsZero", "op": "gte", "value": 0}, "custom.hideFrom", hidden)


def _override(matcher: str, options: Any, setting: str, value: Any) -> dict[str, Any]:
    return {"matcher": {"id": matcher, "options": options}, "properties": [{"id": setting, "value": value}]}


def _least(unit: str) -> float:
    """To where the axis goes at least: nothing but zeros is a line at the bottom, not one of a hundred."""
    return {"s": 0.1, "percentunit": 0.1}.get(unit, 1)


def _thresholds(steps: Mapping[float, str], base: str) -> dict[str, Any]:
    colored: list[tuple[float | None, str]] = [(None, base), *sorted(steps.items())]
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for value, color in colored]}


def _limited(query: str) -> str:
    return query.replace("<", "").replace(">", _OF)


def _data_source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(name: str) -> dict[str, Any]:
    """A choice among the values of a label; all of them at first. `.*` also takes series that lack the label."""
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": f"label_values(enricher_build_info, {name})",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
