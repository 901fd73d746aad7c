"""Writes dashboard.json, which Grafana imports: `python deploy/monitoring/make_dashboard.py`.

A panel is a title, a unit, what to read in it, and its queries, each with its legend. Grafana's own form is five times as long.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("dashboard.json")
_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 3
_OF = '{job=~"$job",pod=~"$pod"}'  # what every query is limited to
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


class Panel(NamedTuple):
    title: str
    unit: str
    meaning: str
    queries: dict[str, str]  # legend to PromQL, in which <metric> is that of the chosen job and pods


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate(<{metric}>[$__rate_interval]))"


def _share(metric: str, of: str, by: str) -> str:
    return f"{_rate(metric, by)} / ignoring ({by}) group_left () sum(rate(<{of}>[$__rate_interval]))"


def _quantile(quantile: float, metric: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({quantile}, {_rate(metric + '_bucket', labels)})"


def _mean(metric: str, by: str) -> str:
    return f"{_rate(metric + '_sum', by)} / {_rate(metric + '_count', by)}"


ROWS = {
    "Is it well?": [
        Panel(
            "Records by outcome",
            "ops",
            "A second, over all replicas.",
            {"{{outcome}}": _rate("enricher_records_total", "outcome")},
        ),
        Panel(
            "Lag",
            "short",
            "Records after the last commit.",
            {"partition {{partition}}": "max by (partition) (<enricher_lag_records>)"},
        ),
        Panel(
            "From the record's timestamp to its commit",
            "s",
            "Of the oldest record of each transaction.",
            {"median": _quantile(0.5, "enricher_latency_seconds"), "p99": _quantile(0.99, "enricher_latency_seconds")},
        ),
        Panel(
            "Dead letters",
            "ops",
            "By stage and reason; `consumer dead-letters list` shows them.",
            {"{{stage}}: {{reason}}": _rate("enricher_dead_letters_total", "stage, reason")},
        ),
        Panel(
            "Rejects against the breaker",
            "percentunit",
            "At the limit the service stops itself.",
            {"{{pod}}": "<enricher_reject_share>", "limit": "max(<enricher_reject_share_max>)"},
        ),
        Panel(
            "Waits for dependencies",
            "ops",
            "Tries that got no answer.",
            {"{{dependency}}": _rate("enricher_dependency_waits_total", "dependency")},
        ),
    ],
    "Where the time goes": [
        Panel(
            "Stage, 99th percentile",
            "s",
            "Seconds of a batch; known and store are Redis, commit is Kafka.",
            {"{{stage}}": _quantile(0.99, "enricher_stage_seconds", "stage")},
        ),
        Panel(
            "Share of a replica's time by stage",
            "percentunit",
            "Stages overlap: the sum may be above 1; one near 1 is the bottleneck.",
            {"{{stage}}": "avg by (stage) (rate(<enricher_stage_seconds_sum>[$__rate_interval]))"},
        ),
        Panel(
            "Batches",
            "short",
            "Mean records of a batch, and batches in flight.",
            {
                "records": "sum(rate(<enricher_batch_records_sum>[$__rate_interval]))"
                " / sum(rate(<enricher_batch_records_count>[$__rate_interval]))",
                "in flight, {{pod}}": "<enricher_in_flight_batches>",
            },
        ),
        Panel(
            "Age of a batch at its start",
            "s",
            "What waiting in the topic costs.",
            {"median": _quantile(0.5, "enricher_batch_age_seconds"), "p99": _quantile(0.99, "enricher_batch_age_seconds")},
        ),
        Panel(
            "Answered without the model",
            "percentunit",
            "Listings whose content did not change.",
            {"{{result}}": _share("enricher_content_lookups_total", "enricher_content_lookups_total", "result")},
        ),
        Panel("Covers by URL", "ops", "How fetching them went.", {"{{result}}": _rate("enricher_cover_fetches_total", "result")}),
    ],
    "Kafka and what runs": [
        Panel(
            "Transactions", "ops", "An aborted one is read again.", {"{{result}}": _rate("enricher_transactions_total", "result")}
        ),
        Panel(
            "Rebalances",
            "short",
            "In the last quarter of an hour; and the partitions that each pod reads: with none it stands idle.",
            {
                "{{kind}}": "sum by (kind) (increase(<enricher_rebalances_total>[15m]))",
                "partitions of {{pod}}": "<enricher_assigned_partitions>",
            },
        ),
        Panel(
            "Client round trip, 99th percentile",
            "s",
            "Of the slowest broker.",
            {"{{client}}": "max by (client) (<enricher_client_rtt_seconds>)"},
        ),
        Panel("Client queues", "short", "Records.", {"{{client}} {{pod}}": "<enricher_client_queue_records>"}),
        Panel(
            "Client errors",
            "ops",
            "Failed and timed out requests; beside them the brokers connected to.",
            {
                "{{client}} errors": _rate("enricher_client_errors_total", "client"),
                "{{client}} brokers": "min by (client) (<enricher_client_brokers_up>)",
            },
        ),
        Panel(
            "What runs",
            "short",
            "Replicas by model, engine, bundle and version; more than one of a kind only while a rollout lasts.",
            {
                "{{name}}@{{version}} {{epoch}} {{backend}}": "count by (name, version, epoch, backend) (<enricher_model_info>)",
                "bundle {{sha256}} {{engine}}": "count by (sha256, engine) (<enricher_bundle_info>)",
                "service {{version}}, Python {{python}}": "count by (version, python) (<enricher_build_info>)",
                "fallback": "sum(<enricher_backend_fallback>)",
            },
        ),
        Panel(
            "Models asked for while it runs",
            "short",
            "In the last quarter of an hour; one that was refused leaves the former to answer.",
            {"{{outcome}}": "sum by (outcome) (increase(<enricher_model_swaps_total>[15m]))"},
        ),
    ],
    "What comes in and what is said of it": [
        Panel(
            "Listings that lack a field",
            "percentunit",
            "A jump is a changed feed.",
            {"{{field}}": _share("enricher_listings_lacking_total", "enricher_listings_total", "field")},
        ),
        Panel(
            "Languages",
            "percentunit",
            "As stated; unknown: not taught to the model.",
            {"{{language}}": _share("enricher_listing_languages_total", "enricher_listings_total", "language")},
        ),
        Panel(
            "Characters of title and description",
            "short",
            "The median listing, and the longest of a hundred.",
            {"median": _quantile(0.5, "enricher_listing_characters"), "p99": _quantile(0.99, "enricher_listing_characters")},
        ),
        Panel(
            "Stability index",
            "short",
            "Labels given against those of the validation data: above 0.25 is a large shift.",
            {"{{task}}": "max by (task) (<enricher_prediction_stability_index>)"},
        ),
        Panel("Confidence", "percentunit", "Mean of the best label's.", {"{{task}}": _mean("enricher_confidence", "task")}),
        Panel(
            "Stale writes",
            "ops",
            "Refused by the store's version guard.",
            {"refused": "sum(rate(<enricher_stale_writes_total>[$__rate_interval]))"},
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """Grafana's model of it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row, members in ROWS.items():
        panels.append({"type": "row", "title": row, "collapsed": False, "gridPos": _place(0, top, width=24, height=1)})
        top += 1
        for at, panel in enumerate(members):
            place = _place(at % _COLUMNS * _WIDTH, top + at // _COLUMNS * _HEIGHT, width=_WIDTH, height=_HEIGHT)
            panels.append(_time_series(panel, place))
        top += -(-len(members) // _COLUMNS) * _HEIGHT
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


def _time_series(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.meaning,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _SOURCE, "expr": _limited(query), "legendFormat": legend}
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }


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
