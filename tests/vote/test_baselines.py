"""What the trained floor of a split is trained on."""

import json
import random
from dataclasses import replace
from pathlib import Path

from src.data import Item, load_items
from src.files.writing import write_text
from src.vote.baselines import TRAINED, all_floors
from src.worth.floors import floor_answers
from src.worth.metrics import chance_range
from src.worth.trained_floor import cross_validated_answers
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
    assert f"trained on 9 items of {tmp_path / 'data_train.json'}, those of 1 dialogue of both files left out" in told


def test_without_other_dialogues_there_is_no_trained_floor(tmp_path: Path) -> None:
    items: list[Item] = make_split(tmp_path, "dev", 3)
    found = all_floors(items, tmp_path / "data_dev.json")
    assert TRAINED not in found.answers and TRAINED not in found.note and "most alike option" in found.answers
    # All of a training split may be here, or it may be of no use.
    make_split(tmp_path, "train", 3)
    assert TRAINED not in all_floors(items, tmp_path / "data_dev.json").answers
    write_text(tmp_path / "data_train.json", "[")
    assert TRAINED not in all_floors(items, tmp_path / "data_dev.json").answers


def test_what_is_right_in_one_dialogue_only_is_no_shortcut(tmp_path: Path) -> None:
    """A dialogue's items have the same right option and the same wrong ones: words that no other dialogue has."""
    rng = random.Random(0)
    items: list[Item] = []
    for place, item in enumerate(make_split(tmp_path, "dev", 120)):
        if place % 3 == 0:  # three items of a dialogue follow each other
            words = ["".join(chr(rng.randrange(0xAC00, 0xD7A3)) for _ in range(5)) for _ in range(3)]
        mixed = rng.sample(words, 3)
        items.append(replace(item, options=tuple(mixed), label=mixed.index(words[0])))

    def right(answers: list[int]) -> float:
        return sum(item.label == answer for item, answer in zip(items, answers, strict=True)) / len(items)

    assert right(cross_validated_answers(items, [place % 3 for place in range(120)])) > 0.9, "dialogues in all folds"
    low, high = chance_range(120)
    assert low <= right(all_floors(items, tmp_path / "data_dev.json").answers[TRAINED]) <= high
