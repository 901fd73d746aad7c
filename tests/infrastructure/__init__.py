"""A real Kafka, Redis and schema registry for the tests, on whatever this machine offers.

`python -m tests.infrastructure prepare` sets them up (Docker with pulled images, Docker with images built here, or
local processes) and says what it chose; the fixtures in `tests/conftest.py` start them on first use.

    paths ← debian ← docker_engine ← images ┐
                   ← jars ──────────────────┴ probe → choose → prepare ← __main__
    kafka_settings ← servers ← containers, processes ← start ← tests/conftest.py
"""

import os
from pathlib import Path

# Both are read once, when testcontainers is imported, so they must be set before that, here.
# Ryuk is one more image to pull; our containers carry their owner's process id, by which the next `prepare` finds those
# that a killed run left behind.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
if Path("/.dockerenv").exists():
    # Inside a container testcontainers would address its containers by the bridge's gateway. Our ports are published
    # by an engine beside us, on loopback.
    os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
