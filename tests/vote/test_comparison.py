from pathlib import Path

import pytest

from src.vote.ballots import read_sources
from src.vote.comparison import Comparison, compare
from tests.made_runs import make_predictions, make_split


def compared(folder: Path, *answers: list[int], against: str | None = None) -> Comparison:
    items = make_split(folder / "data", "dev", 6)
    files = [str(make_predictions(folder / f"{place}.json", items, given)) for place, given in enumerate(answers)]
    data = folder / "data" / "data_dev.json"
    return compare(items, data, read_sources(files, items, data, "dev", folder), against)


def test_answers_are_held_against_labels_rules_and_each_other(tmp_path: Path) -> None:
    found = compared(tmp_path, [0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, 1], [2, 1, 2, 0, 1, 1])
    assert [result.correct for result in found.results.values()] == [6, 5, 4]
    assert len(found.pairs) == 3 and "longest option" in found.floors
    worst = str(tmp_path / "2.json")
    assert [(one["id"], one["label"], one["answer"]) for one in found.missed(worst)] == [
        ("made-0000", "inference_1", "inference_3"),
        ("made-0005", "inference_3", "inference_2"),
    ]
    told = found.as_json()
    assert told["floors"]["chance"]["accuracy"] == pytest.approx(1 / 3)
    assert [one["correct"] for one in told["inputs"]] == [6, 5, 4] and len(told["inputs"][2]["missed"]) == 2


def test_all_may_be_held_against_one(tmp_path: Path) -> None:
    found = compared(tmp_path, [0] * 6, [1] * 6, [2] * 6, against=str(tmp_path / "1.json"))
    assert len(found.pairs) == 2
    assert all(str(tmp_path / "1.json") in (pair.one, pair.other) for pair in found.pairs)
