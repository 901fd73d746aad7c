"""A schema that contains itself is not read with: the decoder would follow it until the process ends."""

import json
from typing import Any

import pytest

from consumer.schema_registry import ParsedSchema, SchemaRegistry, UnknownSchema
from consumer.schemas import ENRICHED_LISTING, LISTING, LISTING_ENVELOPE


def read(text: str) -> ParsedSchema | UnknownSchema:
    registry = SchemaRegistry("mock://recursion", {})
    schema_id = registry.register("any-value", text)
    return registry.schemas([schema_id])[schema_id]


def record(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": field, "type": kind} for field, kind in fields.items()]}


RECURSIVE = {
    "in a union": (record("Node", next=["null", "Node"]), "Node"),
    "in an array": (record("Node", children={"type": "array", "items": "Node"}), "Node"),
    "in a map": (record("Node", children={"type": "map", "values": ["null", "Node"]}), "Node"),
    "by way of another": (record("A", b=record("B", a=["null", "A"])), "A"),
    "deep inside": (record("Outer", inner=["null", record("Inner", again=["null", "Inner"])]), "Inner"),
    "in a namespace": ({**record("Node", next=["null", "Node"]), "namespace": "shop"}, "shop.Node"),
}


@pytest.mark.parametrize(("schema", "name"), RECURSIVE.values(), ids=RECURSIVE.keys())
def test_a_schema_that_contains_itself_is_unknown(schema: dict[str, Any], name: str) -> None:
    """Records of a recursive schema are rejected, with the type's name in the reason."""
    found = read(json.dumps(schema))
    assert isinstance(found, UnknownSchema)
    assert found.reason == f"expected a schema of bounded depth, found {name}, which contains itself"


def test_a_type_that_is_named_twice_does_not_contain_itself() -> None:
    """A type that two fields share is no recursion; the project's own schemas are read."""
    money = record("Money", amount="double")
    shared = record("Offer", price=money, rebate=["null", "Money"], more={"type": "array", "items": "Money"})
    for text in (json.dumps(shared), LISTING, LISTING_ENVELOPE, ENRICHED_LISTING, '"string"'):
        assert isinstance(read(text), ParsedSchema)
