"""Small corpora by hand, whose figures can be worked out on paper, and one of another task."""

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


def corpus_of(current: Task) -> Corpus:
    """A dozen items of the current task in each split, test without labels. No item has the last category."""
    splits = {}
    for place, split in enumerate(SPLITS):
        raw = []
        for number in range(12):
            one = make_item(12 * place + number, category=current.categories[number % (len(current.categories) - 1)])
            for key in ("inference_1", "inference_2", "inference_3"):
                del one["input"][key]
            for other, key in enumerate(current.options):
                one["input"][key] = f"{number}번 문항의 {other}번째 사람은 우산을 샀다."
            one["output"] = "" if split == "test" else current.options[number % len(current.options)]
            raw.append(one)
        splits[split] = read(raw)
    return Corpus("own", splits, "fedcba9876543210")
