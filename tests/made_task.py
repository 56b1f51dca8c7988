"""Another task of the same shape: four options, two categories, names with capitals and blanks."""

import contextlib
from collections.abc import Iterator
from typing import Any

from src import task
from src.data import Item, dump_items, parse_items
from src.task import Task
from tests.conftest import make_item

FOUR = Task("weather talk", ("Cause", "What follows"), ("Choice_1", "Choice_2", "Choice_3", "Choice_4"), tuple("ABCD"))

TASK_FILE = """
name: weather talk
categories: [Cause, What follows]
options: [Choice_1, Choice_2, Choice_3, Choice_4]
letters: [A, B, C, D]
"""

PROMPT = """
name: four
system: Choose.
user: |-
  {% for turn in dialogue %}
  {{ turn.speaker }}{{ "!" if turn.target }} {{ turn.text }}
  {% endfor %}
  Question: {{ question }}
  {% for option in options %}
  {{ option.letter }}. {{ option.text }}
  {% endfor %}
categories:
  Cause: What led to it?
  What follows: What comes next?
answer: "{{ letter }}. {{ option }}"
"""


@contextlib.contextmanager
def working_on(one: Task) -> Iterator[Task]:
    """Within, `one` is the current task; after it the one before."""
    before = task.current()
    task.use(one)
    try:
        yield one
    finally:
        task.use(before)


def make_four(number: int, **changes: Any) -> dict[str, Any]:
    """The raw object of item `number` of the task `FOUR`; options, label and category go round."""
    label = number % 4
    raw = make_item(number, category=FOUR.categories[number % 2], output=FOUR.options[label])
    inner = raw["input"]
    texts = [inner.pop(f"inference_{place}") for place in (1, 2, 3)]
    inner |= dict(zip(FOUR.options, [*texts, "두 사람은 아무 말도 하지 않았다."], strict=True))
    for key, value in changes.items():
        (raw if key in ("id", "output") else inner)[key] = value
    return raw


def four_items(count: int, **changes: Any) -> list[Item]:
    """The first items of the task `FOUR`, as loaded from a file; only within `working_on(FOUR)`."""
    raw = [make_four(number, **changes) for number in range(count)]
    found, problems = parse_items(dump_items(raw).encode(), "made")
    assert not problems, problems
    return found
