"""Changed dialogues: nothing else of an item changes, and its targets stay utterances of its dialogue."""

import json
import random
from pathlib import Path

import pytest

from src.console.cli import UserError
from src.data import Item, parse_items
from src.items.changes import CHANGES, change_dialogues
from tests.conftest import make_item
from tests.made_runs import make_split


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Of five dialogues with three items each, and a longer sixth with two targets, in one item."""
    turns = [{"speaker": 1, "utterance": f"말 {turn}", "utterance_id": f"z{turn}"} for turn in range(9)]
    long, problems = parse_items(
        json.dumps([make_item(15, conversation=turns, reference_id=["z8", "z7"])]).encode(), "made"
    )
    assert not problems
    return [*make_split(tmp_path, "dev", 15), *long]


@pytest.mark.parametrize("how", CHANGES)
def test_all_but_the_dialogue_stays_and_targets_are_in_it(how: str, items: list[Item]) -> None:
    changed = change_dialogues(items, how)
    for before, after in zip(items, changed, strict=True):
        same = ("id", "category", "options", "label", "source")
        assert all(getattr(before, name) == getattr(after, name) for name in same)
        assert before.dialogue_key != after.dialogue_key
        assert [turn.id for turn in after.dialogue].count(after.targets[0]) == 1
        assert len(after.target_utterances) == len(after.targets) > 0
    assert changed == change_dialogues(items, how)
    mixed = random.Random(0).sample(items, len(items))
    assert {item.id: item for item in change_dialogues(mixed, how)} == {item.id: item for item in changed}


def test_items_of_a_dialogue_are_changed_alike(items: list[Item]) -> None:
    for how in CHANGES:
        keys = {
            (one.dialogue_key, other.dialogue_key)
            for one, other in zip(items, change_dialogues(items, how), strict=True)
        }
        assert len(keys) == len({item.dialogue_key for item in items})


def test_blanked_leaves_speakers_without_words(items: list[Item]) -> None:
    for before, after in zip(items, change_dialogues(items, "blanked"), strict=True):
        assert {turn.text for turn in after.dialogue} == {""} and after.targets == before.targets
        assert [(one.id, one.speaker) for one in after.dialogue] == [(one.id, one.speaker) for one in before.dialogue]


def test_shuffled_has_the_same_utterances_in_another_order(items: list[Item]) -> None:
    for before, after in zip(items, change_dialogues(items, "shuffled"), strict=True):
        assert sorted(after.dialogue, key=lambda turn: turn.id) == sorted(before.dialogue, key=lambda turn: turn.id)
        assert set(after.target_utterances) == set(before.target_utterances)
    alone = make_item(0, conversation=make_item(0)["input"]["conversation"][:1])
    (one,), _ = parse_items(json.dumps([alone]).encode(), "made")
    assert change_dialogues([one], "shuffled") == [one]


def test_swapped_has_each_dialogue_once_and_none_its_own(items: list[Item]) -> None:
    changed = change_dialogues(items, "swapped")
    follower = {one.dialogue_key: other.dialogue_key for one, other in zip(items, changed, strict=True)}
    assert all(own != other for own, other in follower.items()) and set(follower) == set(follower.values())
    targets = {(item.dialogue_key, item.targets) for item in items}
    assert all((item.dialogue_key, item.targets) in targets for item in changed), "those of an item of that dialogue"
    asked = {(item.dialogue_key, item.category): item.targets for item in items}
    same = [item for item in changed if (item.dialogue_key, item.category) in asked]
    assert same and all(item.targets == asked[item.dialogue_key, item.category] for item in same)


def test_what_cannot_be_done_is_refused(items: list[Item]) -> None:
    with pytest.raises(UserError, match="swapped: the items are of one dialogue"):
        change_dialogues(items[:3], "swapped")
    with pytest.raises(UserError, match="cannot be 'reversed'; allowed: blanked, shuffled, swapped"):
        change_dialogues(items, "reversed")
