"""Where the service's time goes, on real servers: `python -m tests.benchmarks.flame --label after`.

py-spy looks 200 times a second at what each thread of `python -m consumer run` does while it works off a backlog of real
listings, and draws a flame graph for the shipped model, for one that costs nothing, and for listings whose content is unchanged.
Width is time spent running, of all threads, by function.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.progress import track

from tests.benchmarks.bundles import SHIPPED, bundle_of
from tests.benchmarks.contestants import BATCH, PARTITIONS, answered, console, newer, with_fresh_outputs
from tests.benchmarks.listings import real_listings
from tests.benchmarks.surroundings import own_surroundings
from tests.infrastructure.topics import create_topics
from tests.journey.publishing import publish
from tests.journey.running import RunningService, Surroundings, wait_until

RESULTS = Path(__file__).parent / "results"
RATE_HZ = 200
_TITLE = re.compile(r">[^<]*py-spy record [^<]*<")  # the command, with this machine's paths
_FRAME = re.compile(r'<g><title>[^<]*</title><rect x="[^"]*" y="[^"]*" width="([0-9.]+)%".*?</g>', re.DOTALL)
_WIDTH_MIN = 0.15  # per cent: narrower frames are a line that nobody can read, and most of the file


def draw(surroundings: Surroundings, out: Path, events: int, *, bundle: Path, gil: bool) -> None:
    """Runs the service over the input topic and writes its flame graph; what came before its first answers is left out."""
    with RunningService(surroundings, BATCH__MAX_RECORDS=str(BATCH), LOG__LEVEL="warning", MODEL__BUNDLE=str(bundle)) as service:
        wait_until(lambda: answered(service) > 0, "a first answer", deadline_s=120)
        spy = [str(Path(sys.executable).with_name("py-spy")), "record", "--pid", str(service.pid), "--rate", str(RATE_HZ)]
        options = ["--function", "--threads", "--nonblocking", "--format", "flamegraph", *(["--gil"] if gil else [])]
        with subprocess.Popen([*spy, *options, "--output", str(out)], stdout=subprocess.DEVNULL) as watching:
            wait_until(lambda: answered(service) >= events, "all are answered", deadline_s=300)
            service.terminate()
            watching.wait(timeout=60)
    drawn = _TITLE.sub(f">py-spy record --rate {RATE_HZ} {' '.join(options)}<", out.read_text(encoding="utf-8"))
    out.write_text(_FRAME.sub(lambda frame: frame[0] if float(frame[1]) >= _WIDTH_MIN else "", drawn), encoding="utf-8")


def main() -> None:
    """Starts real servers of its own and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", required=True, help="ends the files' names: flame-free-LABEL.svg")
    parser.add_argument("--events", type=int, default=15_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--gil", action="store_true", help="only threads that hold Python's lock")
    arguments = parser.parse_args()
    with own_surroundings("flame:") as surroundings, tempfile.TemporaryDirectory() as folder:
        free = bundle_of("free", Path(folder)).path
        listings = real_listings(arguments.events)
        publish(surroundings, track(listings, description="publishing", console=console))
        again = replace(surroundings, topics=create_topics(surroundings.bootstrap_servers, partitions=PARTITIONS))
        publish(again, track([newer(one) for one in listings], description="publishing again", console=console))
        first = with_fresh_outputs(surroundings)
        unchanged = replace(with_fresh_outputs(again), redis_prefix=first.redis_prefix)  # on the store that the first one filled
        runs = {
            "shipped": (first, SHIPPED),
            "unchanged": (unchanged, SHIPPED),
            "free": (with_fresh_outputs(surroundings), free),
        }
        for name, (one, bundle) in runs.items():
            out = arguments.out / f"flame-{name}-{arguments.label}.svg"
            draw(one, out, arguments.events, bundle=bundle, gil=arguments.gil)
            console.print(f"{out.name}: {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
