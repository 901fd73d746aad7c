"""The audit fails on a finding only, and says so when it could not ask."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.audit import audit

CLEAN = {"name": "numpy", "version": "2.0.0", "vulns": []}
UNKNOWN = {"name": "private", "skip_reason": "not found"}
FOUND = {"name": "jinja2", "version": "2.0", "vulns": [{"id": "PYSEC-1"}]}


def tool(folder: Path, *packages: dict[str, Any], said: str | None = None, code: int = 0) -> list[str]:
    """A program that answers as pip-audit does."""
    answer = said if said is not None else json.dumps({"dependencies": packages, "fixes": []})
    script = folder / "tool.py"
    script.write_text(f"import sys\nprint({answer!r})\nprint('no route to host', file=sys.stderr)\nsys.exit({code})\n")
    return [sys.executable, str(script)]


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ([CLEAN], (0, "audit: 1 packages of r.txt, no known vulnerability")),
        ([CLEAN, UNKNOWN], (0, "audit: 1 packages of r.txt, not known: private, no known vulnerability")),
        ([UNKNOWN], (0, "audit: not run: none of 1 packages is known where it asked")),
        ([CLEAN, FOUND], (1, "audit: 2 packages of r.txt, 1 known vulnerabilities:\n  jinja2 2.0: PYSEC-1")),
    ],
)
def test_only_a_finding_fails(tmp_path: Path, packages: list[dict[str, Any]], expected: tuple[int, str]) -> None:
    """Packages that nobody knows are named; where none is known nothing was asked."""
    assert audit(tool(tmp_path, *packages, code=expected[0]), "r.txt") == expected


def test_an_audit_that_cannot_ask_says_so(tmp_path: Path) -> None:
    """No network, or no such program: it was not run, which is no failure."""
    assert audit(tool(tmp_path, said="", code=1), "r.txt") == (0, "audit: not run: no route to host")
    assert audit(["/nonexistent/tool"], "r.txt") == (0, "audit: not run: FileNotFoundError")
