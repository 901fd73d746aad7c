"""Writes the service's settings into the chart's `values.schema.json`: `make chart-schema`.

Only `$defs.settings` and `$defs.settingName` are written; what the chart adds of its own is kept by hand in the same file.
A test holds the file against the settings.
"""

import json
from pathlib import Path
from typing import Any

from consumer.settings import Settings

CHART = Path(__file__).resolve().parents[2] / "deploy" / "chart"
SCHEMA = CHART / "values.schema.json"
# Of the service's process, not of what a person may write: a path of this machine, or the name of a type.
_LEFT_OUT = ("default", "format", "title", "writeOnly", "description")


def current() -> str:
    """The file's text as it should be."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    described = Settings.model_json_schema(ref_template="#/$defs/{model}")
    sections = {name: described["$defs"][field["$ref"].rpartition("/")[2]] for name, field in described["properties"].items()}
    schema["$defs"]["settings"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _plain(section) for name, section in sections.items()},
    }
    schema["$defs"]["settingName"] = {
        "enum": [f"{section}.{name}" for section, described in sections.items() for name in described["properties"]]
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _plain(node: Any) -> Any:
    """Without what `_LEFT_OUT` names; a setting may be called like one of them, so names of properties stay."""
    if isinstance(node, list):
        return [_plain(one) for one in node]
    if not isinstance(node, dict):
        return node
    kept = {}
    for key, value in node.items():
        if key == "properties":
            kept[key] = {name: _plain(one) for name, one in value.items()}
        elif key not in _LEFT_OUT:
            kept[key] = _plain(value)
    return kept


if __name__ == "__main__":
    SCHEMA.write_text(current(), encoding="utf-8")
