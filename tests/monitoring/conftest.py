"""promtool, without which a rule is a text that nobody ran."""

import pytest

from tests.infrastructure import prometheus


@pytest.fixture(scope="session")
def promtool() -> str:
    """The program. Where it is missing the test is skipped, and a run in CI fails."""
    found = prometheus.find("promtool")
    if found is None:
        pytest.skip("promtool is not there: `python -m tests.infrastructure prepare` fetches it on Debian")
    return found
