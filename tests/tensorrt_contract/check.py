"""Looks uses up in a real module: `python -m tests.tensorrt_contract.check MODULE < uses.json` prints what is missing.

Nothing is run: signatures are read from the docstrings that pybind11 writes. Without a driver no builder can be made (10.6 ends
the process), and a call on the `Runtime` that is made all the same is a segmentation fault.
"""

import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterable
from typing import Any

from tests.tensorrt_contract.recorder import MODULE, Use


def missing(module: Any, uses: Iterable[Use]) -> list[str]:
    """One line for each use that the module does not allow."""
    return [problem for use in sorted(uses) if (problem := _problem(module, use)) is not None]


def _problem(module: Any, use: Use) -> str | None:
    owner = module if use.owner == MODULE else getattr(module, use.owner, None)
    where = use.name if use.owner == MODULE else f"{use.owner}.{use.name}"
    if owner is None:
        return f"{where}: there is no {use.owner}"
    if (found := getattr(owner, use.name, None)) is None:
        return f"{where}: there is none"
    if use.form == "set" and getattr(found, "fset", None) is None:
        return f"{where}: it cannot be set"
    if use.form == "call" and not any(_fits(parameters, use) for parameters in _signatures(found)):
        given = ", ".join([f"{use.positional} arguments", *use.keywords])
        return f"{where}: no overload takes {given}: {(found.__doc__ or '').partition(chr(10))[0]}"
    return None


def _signatures(found: Any) -> list[list[tuple[str, bool]]]:
    if inspect.isfunction(found):  # a few of the module's own are written in Python
        parameters = inspect.signature(found).parameters.values()
        return [[(one.name, one.default is not inspect.Parameter.empty) for one in parameters]]
    return overloads(found.__doc__ or "")


def overloads(doc: str) -> list[list[tuple[str, bool]]]:
    """The parameters of each signature in a pybind11 docstring, without `self`: name, and whether it has a default."""
    signatures = re.findall(r"^(?:\d+\. )?\w+\((self\b.*|(?!\*args).*?)\)(?: -> .*)?$", doc, re.MULTILINE)
    return [[_parameter(one) for one in _split(text) if not re.match(r"self\b|\*$|/$", one)] for text in signatures]


def _split(text: str) -> list[str]:
    """At the commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "[(<{") - (letter in "])>}")
        if letter == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    return [part for part in [*parts, text[start:].strip()] if part]


def _parameter(text: str) -> tuple[str, bool]:
    name, _, rest = text.partition(":")
    return name.strip().partition("=")[0].strip(), "=" in text if not rest else " = " in rest


def _fits(parameters: list[tuple[str, bool]], use: Use) -> bool:
    names = [name for name, _ in parameters]
    by_name = names[use.positional :]
    if len(names) < use.positional or not set(use.keywords) <= set(by_name):
        return False
    return all(optional or name in use.keywords for name, optional in parameters[use.positional :])


def main() -> int:
    module = importlib.import_module(sys.argv[1])
    uses = [Use(**(one | {"keywords": tuple(one["keywords"])})) for one in json.load(sys.stdin)]
    print(json.dumps({"version": module.__version__, "missing": missing(module, uses)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
