"""A URL that leads nowhere, or is none."""

from collections.abc import Callable

import pytest
import redis

from consumer.errors import DependencyUnavailable, SettingsError
from consumer.prediction_store import PredictionStore
from tests.consumer.test_prediction_store import ENCODER, NOW_MS, novel


def test_a_store_that_is_not_there_is_a_dependency() -> None:
    """Every call to a store that is not there says so, and never shows the password."""
    store = PredictionStore("redis://:hunter2@127.0.0.1:1/0", key_prefix="listing:", ttl_seconds=None)
    calls: list[Callable[[], object]] = [
        store.check,
        lambda: store.read(["a"]),
        lambda: store.write([novel()], now_ms=NOW_MS),
        lambda: store.unchanged({"a": "b"}, model_epoch=1, recall=ENCODER.recall),
    ]
    for call in calls:
        with pytest.raises(DependencyUnavailable, match="redis is not available") as caught:
            call()
        assert caught.value.dependency == "redis"
        assert isinstance(caught.value.__cause__, redis.RedisError)
        assert "hunter2" not in str(caught.value)
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "redis://u:hunter2/x@h:port/0",
        "redis://h:99999999",
        "redis+cluster://",
        "redis+cluster://h,",
        "redis+cluster://u:hunter2@h:port",
        "redis+cluster://h/1",
        "unix+cluster://h",
    ],
)
def test_a_url_that_cannot_be_read_is_a_wrong_setting(url: str) -> None:
    """A URL that cannot be read is a wrong setting, and is not shown."""
    with pytest.raises(SettingsError, match=r"redis\.url: expected redis://") as caught:
        PredictionStore(url, key_prefix="listing:", ttl_seconds=None)
    assert "hunter2" not in str(caught.value)
