"""The folders of a vote: `data` with eight unlabelled items of test, and `results`, which is not there yet."""

from pathlib import Path

import pytest

from tests.made_runs import make_split


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_split(tmp_path / "data", "test", 8, labelled=False)
    return tmp_path / "data"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"
