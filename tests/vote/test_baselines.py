"""What the trained floor of a split is trained on."""

import json
from pathlib import Path

from src.data import Item, load_items
from src.files.writing import write_text
from src.vote.baselines import TRAINED, all_floors
from src.worth.floors import floor_answers
from tests.conftest import make_item
from tests.made_runs import make_split


def test_a_split_alone_is_cross_validated(tmp_path: Path) -> None:
    items = make_split(tmp_path, "dev", 12)
    found = all_floors(items, tmp_path / "data_dev.json")
    assert "cross-validated on these items in 4 folds by dialogue" in found.note and len(found.answers[TRAINED]) == 12
    assert floor_answers(items).items() <= found.answers.items()
    same = make_split(tmp_path, "train", 12)
    assert all_floors(same, tmp_path / "data_train.json").answers == found.answers


def test_the_training_split_beside_it_is_used_without_dialogues_of_both(tmp_path: Path) -> None:
    make_split(tmp_path, "train", 12)
    write_text(tmp_path / "data_dev.json", json.dumps([make_item(number) for number in (9, 10, 13, 16)]))
    items = load_items(tmp_path / "data_dev.json")
    told = all_floors(items, tmp_path / "data_dev.json").note
    assert f"trained on 9 items of {tmp_path / 'data_train.json'} without those of 1 dialogue that is here, too" in told


def test_without_other_dialogues_there_is_no_trained_floor(tmp_path: Path) -> None:
    items: list[Item] = make_split(tmp_path, "dev", 3)
    found = all_floors(items, tmp_path / "data_dev.json")
    assert TRAINED not in found.answers and TRAINED not in found.note and "most alike option" in found.answers
    # All of a training split may be here, or it may be of no use.
    make_split(tmp_path, "train", 3)
    assert TRAINED not in all_floors(items, tmp_path / "data_dev.json").answers
    write_text(tmp_path / "data_train.json", "[")
    assert TRAINED not in all_floors(items, tmp_path / "data_dev.json").answers
