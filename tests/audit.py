"""Known vulnerabilities of locked requirements: `python -m tests.audit requirements/service.txt`.

Exit code 1 when there is one. Where nobody can be asked (no network, an index without advisories) it says so and is 0: a check
that fails on a train is soon switched off.
"""

import json
import os
import subprocess
import sys

TIMEOUT_S = 180


def audit(tool: list[str], requirements: str) -> tuple[int, str]:
    """Exit code and what to print, of pip-audit run as `tool`."""
    words = ["--requirement", requirements, "--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run([*tool, *words], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        packages = json.loads(done.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired) as error:
        return 0, f"audit: not run: {type(error).__name__}"
    except (ValueError, KeyError):
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return 0, f"audit: not run: {said[-1][:200]}"
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    found = [f"  {one['name']} {one['version']}: {each['id']}" for one in packages for each in one.get("vulns", [])]
    asked = f"{len(packages) - len(skipped)} packages of {requirements}" + (
        f", not known: {', '.join(skipped)}" if skipped else ""
    )
    if len(skipped) == len(packages):
        return 0, f"audit: not run: none of {len(packages)} packages is known where it asked"
    if found:
        return 1, "\n".join([f"audit: {asked}, {len(found)} known vulnerabilities:", *found])
    return 0, f"audit: {asked}, no known vulnerability"


if __name__ == "__main__":
    code, line = audit([os.environ.get("UV", "uv"), "tool", "run", "--quiet", "pip-audit"], sys.argv[1])
    print(line)
    sys.exit(code)
