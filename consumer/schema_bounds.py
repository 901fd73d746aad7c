"""Which registered schemas records are not read with: those that let a few bytes claim any amount of memory, stack or time."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from fastavro.read import LOGICAL_READERS

FREE_VALUES_MAX = 1_000
SCALE_MAX = 1_000
DECIMAL_BYTES_MAX = 64  # 154 digits; a converter's time grows with the square: 1 MB took 143 s


class Unbounded(ValueError):
    """What makes the schema one that records are not read with."""


def check_bounds(schema: Any, named: Mapping[str, Any]) -> None:
    """Returns when what a record decodes to is bounded by its bytes.

    Args:
        schema: as `fastavro.parse_schema` gives it, `named` the named types that it refers to.

    Raises:
        Unbounded: a type contains itself, or values that take no bytes can be repeated at will.
    """
    if recursive := _recursive_name(schema, named, inside=(), checked=set()):
        # fastavro descends in C without a limit: some kilobytes nested deep enough end the process.
        raise Unbounded(f"expected a schema of bounded depth, found {recursive}, which contains itself")
    if (free := _free_values(schema, named, {})) > FREE_VALUES_MAX:
        raise Unbounded(f"expected at most {FREE_VALUES_MAX} values that take no bytes, found {free}")


def _recursive_name(schema: Any, named: Mapping[str, Any], *, inside: tuple[str, ...], checked: set[str]) -> str | None:
    """The name of a type that contains itself; None when there is none. `checked` holds those that do not."""
    if isinstance(schema, str):
        if schema in inside:
            return schema
        parts = [named[schema]] if schema in named and schema not in checked else []
    elif isinstance(schema, list):
        parts = schema
    elif "fields" in schema:
        inside = (*inside, schema["name"])
        parts = [field["type"] for field in schema["fields"]]
    else:
        parts = [schema[part] for part in ("items", "values", "type") if part in schema]
    found = (_recursive_name(part, named, inside=inside, checked=checked) for part in parts)
    if name := next(filter(None, found), None):
        return name
    if isinstance(schema, str):
        checked.add(schema)
    return None


def _free_values(schema: Any, named: Mapping[str, Any], known: dict[str, int]) -> int:
    """How many values more than bytes a record may hold at most; `known` keeps the answers by name.

    An array of nulls holds as many as its count says, and records of records of nulls grow with a power of their depth.
    """
    if isinstance(schema, list):  # a union's branch is chosen by a byte
        return max((_free_values(branch, named, known) for branch in schema), default=0) - 1
    if isinstance(schema, str):
        if schema not in named:
            return int(schema == "null")
        if schema not in known:
            known[schema] = _free_values(named[schema], named, known)
        return known[schema]
    if "fields" in schema:
        name = schema["name"]
        if name not in known:
            fields = schema["fields"]
            known[name] = sum(_free_values(field["type"], named, known) for field in fields) if fields else 1
        return known[name]
    kind = schema["type"]
    if kind in ("array", "map"):
        items = _free_values(schema["items" if kind == "array" else "values"], named, known)
        if items > (0 if kind == "array" else 1):  # a map's entry has a key, which takes a byte
            raise Unbounded(f"expected {kind} entries that take as many bytes as they hold values, found ones that take fewer")
        return 0
    if kind == "fixed":
        return int(schema["size"] == 0)
    return _free_values(kind, named, known)


def _bounded_decimal(data: bytes, writer_schema: Any = None, reader_schema: Any = None) -> Decimal:
    return scaled(data, writer_schema.get("scale", 0))


def scaled(data: bytes, scale: int) -> Decimal:
    """The number of an Avro decimal's bytes. Raises: ValueError, where it would take long or has no meaning."""
    if len(data) > DECIMAL_BYTES_MAX:
        raise ValueError(f"decimal: at most {DECIMAL_BYTES_MAX} bytes, found {len(data)}")
    if abs(scale) > SCALE_MAX:
        raise ValueError(f"decimal: expected a scale of at most {SCALE_MAX}, found {scale}")
    return Decimal(int.from_bytes(data, "big", signed=True)).scaleb(-scale)


# fastavro's own way to say how a logical type is read; there is one for the process.
LOGICAL_READERS["bytes-decimal"] = LOGICAL_READERS["fixed-decimal"] = _bounded_decimal
