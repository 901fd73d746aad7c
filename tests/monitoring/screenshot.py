"""Takes deploy/monitoring/dashboard.png: `python -m tests.monitoring.screenshot`, about ten minutes, not part of `make test`.

A real Prometheus watches real replicas on real servers while a shop works (`busy_shop`); then a headless Chromium opens a page
that draws dashboard.json with Grafana's own components (`viewer/`). It needs what `make test` needs, and Node 20 or later with
npm, and Chromium.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image

from tests.infrastructure import prometheus
from tests.infrastructure.commands import SetupError, Stopwatch, run
from tests.infrastructure.paths import cache_folder
from tests.infrastructure.start import UnavailableError
from tests.monitoring.busy_shop import SCRAPE_S, Recording, recorded
from tests.monitoring.names import MONITORING

VIEWER = Path(__file__).with_name("viewer")
_WIDTH, _GRID_ROW, _HEADER = 1600, 38, 44  # pixels, as in viewer.tsx
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_DRAWN_WITHIN_MS = 20_000  # of the page's own clock, which stands still while an answer is awaited
_LOADERS = ("--loader:.woff=empty", "--loader:.woff2=dataurl", "--loader:.ttf=empty")


def browser() -> str:
    """The program. Raises: SetupError."""
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None or shutil.which("npm") is None:
        raise SetupError(f"expected npm and one of {', '.join(_BROWSERS)} on PATH (Debian: apt-get install npm chromium)")
    return found


def built_page() -> Path:
    """The viewer as a page that needs no server. Its packages are fetched once, into the cache. Raises: SetupError."""
    folder = cache_folder() / "dashboard-viewer"
    folder.mkdir(exist_ok=True)
    wanted, fetched = (VIEWER / "package.json").read_text(encoding="utf-8"), folder / "fetched.json"
    if not fetched.is_file() or fetched.read_text(encoding="utf-8") != wanted:
        with Stopwatch("fetching Grafana's components"):
            shutil.copy(VIEWER / "package.json", folder)
            install = ["npm", "install", "--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"]
            run(install, log_name="npm", timeout_seconds=600, cwd=folder)
            fetched.write_text(wanted, encoding="utf-8")
    shutil.copy(VIEWER / "index.html", folder)
    icons = folder / "public" / "build"  # where the components look for them
    icons.mkdir(parents=True, exist_ok=True)
    if not (icons / "img").is_symlink():
        (icons / "img").symlink_to(folder / "node_modules" / "@grafana" / "ui" / "dist" / "public" / "img")
    packages = folder / "node_modules"
    bundle = [str(packages / ".bin" / "esbuild"), str(VIEWER / "viewer.tsx"), "--bundle", "--minify", f"--outdir={folder}"]
    options = [*_LOADERS, "--jsx=automatic", '--define:process.env.NODE_ENV="production"', "--log-level=warning"]
    run([*bundle, *options], log_name="npm", timeout_seconds=120, env={**os.environ, "NODE_PATH": str(packages)})
    return folder / "index.html"


def photograph(page: Path, recording: Recording, target: Path) -> None:
    """Afterwards `target` is a PNG of the whole dashboard. Raises: SetupError, also where a panel has no data."""
    panels = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    asked = {"prometheus": recording.prometheus_url, "from": recording.from_ms, "to": recording.to_ms, "scrape": SCRAPE_S}
    options = {
        "user-data-dir": page.parent / "profile",
        "window-size": f"{_WIDTH},{_HEADER + rows * _GRID_ROW + 8}",
        "virtual-time-budget": _DRAWN_WITHIN_MS,
        "enable-logging": "stderr",
        "screenshot": page.with_suffix(".png"),
    }
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files")
    argv = [browser(), *flags, *(f"--{name}={value}" for name, value in options.items()), f"{page.as_uri()}?{urlencode(asked)}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180, check=False)
    said = [line.partition("CONSOLE")[2] for line in done.stderr.splitlines() if "CONSOLE" in line]
    drawn = {int(found[1]) for line in said if (found := re.search(r'"DRAWN (\d+)"', line))}
    missing = [panel["title"] for panel in panels if panel["type"] != "row" and panel["id"] not in drawn]
    if done.returncode != 0 or missing:
        wrong = [line for line in said if "DRAWN" not in line]
        raise SetupError(f"Chromium exited {done.returncode}; without data: {missing}; the page says: {' '.join(wrong)[:2000]}")
    with Image.open(page.with_suffix(".png")) as shot:
        shot.convert("RGB").quantize(255).save(target, optimize=True)  # a third of the size


def main() -> int:
    """Takes it. Exit code 2: something that it needs is not there, or a panel could not be drawn."""
    program = prometheus.find("prometheus")
    try:
        if program is None:
            raise SetupError("expected prometheus: `python -m tests.infrastructure prepare` fetches it on Debian")
        browser()
        page = built_page()
        with Stopwatch("a shop works"), recorded(program) as recording:
            photograph(page, recording, MONITORING / "dashboard.png")
    except (SetupError, UnavailableError) as failed:
        print(failed, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
