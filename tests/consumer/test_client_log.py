"""A broker that is away is said once in a while, not several times a second for each connection."""

import logging

import pytest

from consumer.client_log import CLIENT_LOG, REPEAT_AFTER_S


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets."""
    now = [1_000_000.0]
    monkeypatch.setattr("consumer.client_log.time.monotonic", lambda: now[0])
    return now


def test_a_line_that_repeats_is_said_once_in_a_while_with_how_often_it_came(
    now_s: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="librdkafka"):
        for number in range(5):
            CLIENT_LOG.error("FAIL [%s]: Connect failed (after %dms in state CONNECT)", "a-broker", number)
        CLIENT_LOG.error("FAIL [another-broker]: Connect failed (after 1ms in state CONNECT)")
        now_s[0] += REPEAT_AFTER_S
        CLIENT_LOG.error("FAIL [a-broker]: Connect failed (after 9ms in state CONNECT)")
    assert caplog.messages == [
        "FAIL [a-broker]: Connect failed (after 0ms in state CONNECT)",
        "FAIL [another-broker]: Connect failed (after 1ms in state CONNECT)",
        "FAIL [a-broker]: Connect failed (after 9ms in state CONNECT) (4 more of them in the last 30 s)",
    ]


def test_what_means_nothing_to_a_client_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="librdkafka"):
        CLIENT_LOG.warning("Configuration property x is a consumer property and will be ignored by this producer instance")
    assert caplog.messages == []
