"""Prompts and items that several tests of prompts need."""

import json
from typing import Any

from src import task
from src.data import Item, parse_items
from src.prompt.prompts import combinations
from tests.conftest import make_item

TASK = task.current()
NAMES = ("bilingual", "english", "entry", "korean", "plain")
STRATEGIC = ("bilingual", "english", "korean")
COMBINED = [name for file in STRATEGIC for name in combinations(file)]
GOOD: dict[str, Any] = {
    "user": "{% for turn in dialogue %}{{ turn.target }}{{ turn.text }} {% endfor %}{{ question }} "
    "{% for option in options %}{{ option.letter }} {{ option.text }} {% endfor %}",
    "categories": dict(zip(TASK.categories, "12345", strict=True)),
    "answer": "{{ letter }}",
}


def item_of(**changes: Any) -> Item:
    found, problems = parse_items(json.dumps([make_item(4, **changes)]).encode(), "made")
    assert not problems, problems
    return found[0]


def turns(*texts: str) -> list[dict[str, Any]]:
    return [
        {"speaker": 1 + index % 2, "utterance": text, "utterance_id": f"t{index}"} for index, text in enumerate(texts)
    ]
