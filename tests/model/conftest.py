"""The made-up shop that tests of training share."""

from pathlib import Path

import pytest

from tests.model.examples import TASK_FILE, a_shop_folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_shop_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def task_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "tiny.toml"
    path.write_text(TASK_FILE, encoding="utf-8")
    return path
