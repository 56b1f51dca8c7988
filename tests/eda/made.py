"""Small corpora by hand, whose figures can be worked out on paper, and one of another task."""

import dataclasses
from pathlib import Path
from typing import Any

from src.data import SPLITS, Item, dump_items, parse_items, split_path
from src.eda.corpus import Corpus
from src.task import Task
from tests.conftest import make_item


def read(raw: list[dict[str, Any]]) -> list[Item]:
    items, problems = parse_items(dump_items(raw).encode(), "made")
    assert not problems
    return items


def talk(*lines: Any, speakers: str = "") -> list[dict[str, Any]]:
    """A conversation; speakers take turns unless `speakers` ("1121") tells."""
    return [
        {"speaker": int(speakers[turn]) if speakers else 1 + turn % 2, "utterance": line, "utterance_id": f"u{turn}"}
        for turn, line in enumerate(lines)
    ]


def item(
    number: int, *lines: Any, targets: tuple[int, ...] = (0,), speakers: str = "", **changes: Any
) -> dict[str, Any]:
    ids = [f"u{turn}" for turn in targets]
    return make_item(number, conversation=talk(*lines, speakers=speakers), reference_id=ids, **changes)


def write_corpus(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, raw in splits.items():
        split_path(folder, split).write_text(dump_items(raw), encoding="utf-8")


def weather(options: int) -> Task:
    """A task with other categories and so many options, of whose official corpus nothing is known."""
    return Task(
        name="날씨 추론",
        categories=("까닭", "결과", "예보"),
        options=tuple(f"choice_{number}" for number in range(1, options + 1)),
        letters=tuple("ABCDEFGHI"[:options]),
    )


def corpus_of(task: Task) -> Corpus:
    """A dozen items of the task in each split, test without labels. No item has the last category."""
    splits = {}
    for place, split in enumerate(SPLITS):
        items = []
        for number, one in enumerate(read([make_item(12 * place + number) for number in range(12)])):
            texts = tuple(f"{number}번 문항의 {other}번째 사람은 우산을 샀다." for other in range(len(task.options)))
            label = None if split == "test" else number % len(texts)
            category = task.categories[number % (len(task.categories) - 1)]
            kept = {key: one.source["input"][key] for key in ("conversation", "reference_id")}
            inner = {**kept, "category": category, **dict(zip(task.options, texts, strict=True))}
            source = {"id": one.id, "input": inner, "output": "" if label is None else task.options[label]}
            items.append(dataclasses.replace(one, category=category, options=texts, label=label, source=source))
        splits[split] = items
    return Corpus("own", splits, "fedcba9876543210")
