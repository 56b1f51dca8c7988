"""The division of labelled items into folds."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest

from src import task
from src.console.cli import UserError
from src.data import Item, dump_items, parse_items
from src.toy.corpus import make_corpus
from src.worth.folds import divide
from tests.conftest import make_item

KINDS = task.official().categories


def items_of(*dialogues: Sequence[str]) -> list[Item]:
    """An item for each category of each dialogue."""
    raw = []
    for number, categories in enumerate(dialogues):
        turns = [{"utterance_id": "u1", "speaker": 1, "utterance": f"대화 {number}"}]
        for category in categories:
            raw.append(make_item(len(raw), category=category, conversation=turns, reference_id=["u1"]))
    items, problems = parse_items(dump_items(raw).encode(), "made up")
    assert not problems
    return items


def corpus() -> list[Item]:
    made = make_corpus()
    found = [item for split in ("train", "dev") for item in parse_items(dump_items(made[split]).encode(), split)[0]]
    assert len({item.id for item in found}) == len(found)
    return found


def spread(items: Sequence[Item], folds: Sequence[int]) -> int:
    """The largest difference of two folds in the number of items of a category."""
    counts = {category: Counter({fold: 0 for fold in folds}) for category in {item.category for item in items}}
    for item, fold in zip(items, folds, strict=True):
        counts[item.category][fold] += 1
    return max(max(count.values()) - min(count.values()) for count in counts.values())


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_a_corpus_is_divided_by_dialogue_and_evenly(count: int) -> None:
    items = corpus()
    folds = divide(items, count)
    of_dialogue = defaultdict(set)
    for item, fold in zip(items, folds, strict=True):
        of_dialogue[item.dialogue_key].add(fold)
    assert all(len(found) == 1 for found in of_dialogue.values())
    assert set(folds) == set(range(1, count + 1))
    # Whole dialogues have up to five items, so a difference of some items cannot always be avoided.
    assert spread(items, folds) <= 3 and max(Counter(folds).values()) - min(Counter(folds).values()) <= 6


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_categories_are_within_one_item_where_whole_dialogues_allow_it(count: int) -> None:
    singles = items_of(*([category] for category in KINDS for _ in range(23)))
    assert spread(singles, divide(singles, count)) == 1
    whole = items_of(*[KINDS] * 23)
    assert spread(whole, divide(whole, count)) == 1


def test_the_order_of_the_items_changes_nothing() -> None:
    items = corpus()
    folds = dict(zip([item.id for item in items], divide(items, 5), strict=True))
    for seed in range(3):
        other = random.Random(seed).sample(items, len(items))
        assert dict(zip([item.id for item in other], divide(other, 5), strict=True)) == folds


def test_as_many_folds_as_dialogues_have_one_each() -> None:
    items = items_of(*[KINDS] * 4)
    assert sorted(Counter(divide(items, 4)).values()) == [5] * 4
    assert sorted(divide(items_of(["원인"], ["원인"]), 2)) == [1, 2]


def test_no_fold_is_left_empty() -> None:
    generator = random.Random(1)
    for _ in range(50):
        groups = [generator.sample(KINDS, generator.randint(1, 5)) for _ in range(generator.randint(4, 9))]
        items = items_of(*groups)
        most = min(len(groups), max(Counter(item.category for item in items).values()))
        for count in range(2, most + 1):
            assert len(set(divide(items, count))) == count


@pytest.mark.parametrize("count", [-1, 0, 1, 5])
def test_too_few_and_too_many_folds_are_refused(count: int) -> None:
    with pytest.raises(UserError, match=rf"--folds {count}: the 20 labelled items are of 4 dialogues, .*2 to 4\."):
        divide(items_of(*[KINDS] * 4), count)


def test_a_category_has_to_have_an_item_for_each_fold() -> None:
    with pytest.raises(UserError, match=r"5 labelled items are of 5 dialogues, at most 1 of a category\. They cannot"):
        divide(items_of(*([category] for category in KINDS)), 2)
