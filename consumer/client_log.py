"""What the Kafka clients say: their log lines come through here when a client is polled."""

import logging
import time

REPEAT_AFTER_S = 30.0
_KINDS_MAX = 1_000


class _OnceInAWhile(logging.Filter):
    """A line that was said is said again after `REPEAT_AFTER_S` at the earliest, with how often it came meanwhile.

    A broker that is away makes every connection of every client say so several times a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, tuple[float, int]] = {}  # when it was let through, how many were not since

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        kind = text.partition(" (after ")[0]  # "(after 3ms in state CONNECT, 11 identical error(s) suppressed)"
        said_s, unsaid = self._said.get(kind, (0.0, 0))
        now_s = time.monotonic()
        if kind in self._said and now_s < said_s + REPEAT_AFTER_S:
            self._said[kind] = (said_s, unsaid + 1)
            return False
        if len(self._said) >= _KINDS_MAX:
            self._said.clear()
        self._said[kind] = (now_s, 0)
        if unsaid:
            record.msg, record.args = f"{text} ({unsaid} more of them in the last {now_s - said_s:.0f} s)", ()
        return True


CLIENT_LOG = logging.getLogger("librdkafka")
# `kafka.properties` are for every client: that one of them means nothing to a producer is no news.
CLIENT_LOG.addFilter(lambda record: " property and will be ignored by this " not in record.getMessage())
CLIENT_LOG.addFilter(_OnceInAWhile())
