"""An item of any task: what it may be asked for, and how its options are called, is given."""

from typing import Any

import pytest

from src.items.item import Item, parse_item
from tests.made_task import FOUR, make_four


def parsed(raw: dict[str, Any]) -> tuple[Item | None, list[str], list[str]]:
    """(item, faults, kinds of what is odd) of an item of the four-option task."""
    item, found = parse_item(raw, FOUR.categories, FOUR.options)
    return item, found.faults, [kind for kind, _ in found.odd]


@pytest.mark.parametrize("number", range(4))
def test_an_item_of_four_options(number: int) -> None:
    raw = make_four(number)
    item, faults, odd = parsed(raw)
    assert item is not None and not faults and not odd
    assert item.options == tuple(raw["input"][key] for key in FOUR.options)
    assert (item.label, item.category) == (number, FOUR.categories[number % 2])


@pytest.mark.parametrize("category", ["what follows", "WhatFollows", " What\u3000follows\u200b"])
def test_a_category_with_blanks_and_capitals_is_known_however_it_is_spelled(category: str) -> None:
    item, faults, odd = parsed(make_four(0, category=category))
    assert item is not None and not faults
    assert item.category == "What follows" and odd == ["category-spelling"]


def test_a_label_with_capitals_is_known_however_it_is_spelled() -> None:
    item, faults, odd = parsed(make_four(0, output=" choice_4"))
    assert item is not None and not faults
    assert item.label == 3 and odd == ["label-spelling"]


def test_names_that_differ_in_case_alone_are_told_apart() -> None:
    for category in ("cause", "Cause"):
        item, found = parse_item(make_four(0, category=category), ("cause", "Cause"), FOUR.options)
        assert item is not None and item.category == category and not found.odd


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"category": "원인"}, 'input.category: found "원인"; allowed: Cause, What follows.'),
        ({"category": "Casue"}, "allowed: Cause, What follows. Did you mean 'Cause'?"),
        ({"output": "inference_1"}, 'output: found "inference_1"; allowed: Choice_1, Choice_2, Choice_3, Choice_4, or'),
        ({"Choice_4": " "}, 'input.Choice_4: found " "; allowed: a text that is not blank'),
    ],
)
def test_what_another_task_does_not_know(changes: dict[str, Any], fault: str) -> None:
    item, faults, _ = parsed(make_four(0, **changes))
    assert item is None and len(faults) == 1 and fault in faults[0]


def test_two_equal_options_are_no_matter_only_where_both_are_wrong() -> None:
    equal = {"Choice_2": "같다.", "Choice_4": "같다."}
    item, faults, odd = parsed(make_four(0, **equal))
    assert item is not None and not faults and odd == ["options-equal"]
    item, (fault,), odd = parsed(make_four(1, **equal))
    assert item is None and "the same as Choice_2; allowed: 4 different options" in fault


def test_an_option_too_few_or_too_many() -> None:
    raw = make_four(0)
    del raw["input"]["Choice_3"]
    assert parsed(raw)[1] == ["input.Choice_3: missing."]
    raw = make_four(0, Choice_5="하나 더.")
    assert parsed(raw)[1:] == ([], ["unknown-key"])
