from pathlib import Path

import pytest

from src.console.cli import UserError
from src.files.paths import record_path
from src.files.writing import write_json
from src.runs.record import read_record


def test_a_record_is_read_back(tmp_path: Path) -> None:
    write_json(record_path(tmp_path), {"run": "mini", "seconds": 1.5})
    assert read_record(tmp_path) == {"run": "mini", "seconds": 1.5}


def test_a_run_without_record_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "mini-bllossom").mkdir()
    with pytest.raises(UserError, match=r"mini-bllossom is not finished: it has no record.json"):
        read_record(tmp_path / "mini-bllossom")
    with pytest.raises(UserError, match=r"no such run; runs there: mini-bllossom. Did you mean 'mini-bllossom'\?"):
        read_record(tmp_path / "mini-blossom")
    with pytest.raises(UserError, match=r"there are no runs there"):
        read_record(tmp_path / "nowhere" / "mini")


@pytest.mark.parametrize("text", ["", '{"run": ', "[]", "null"])
def test_a_damaged_record_is_not_a_record(tmp_path: Path, text: str) -> None:
    record_path(tmp_path).write_text(text)
    with pytest.raises(UserError, match=r"record.json is damaged"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"splits": []}', "splits is no object"),
        ('{"splits": {"dev": 1}}', "splits: dev is no object"),
        ('{"recipe": "polar"}', "recipe is no object"),
        ('{"splits": {"dev": {"accuracy": "high"}}}', "splits: dev: accuracy is 'high'"),
        ('{"splits_6orders": {"dev": {"correct": 9, "items": 4}}}', "splits_6orders: dev: 9 of 4 items are right"),
    ],
)
def test_a_record_of_another_shape_is_damaged(tmp_path: Path, text: str, words: str) -> None:
    record_path(tmp_path).write_text(text)
    with pytest.raises(UserError, match=f"record.json is damaged: {words}"):
        read_record(tmp_path)
