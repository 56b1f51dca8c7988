"""Small corpora by hand, whose figures can be worked out on paper."""

from pathlib import Path
from typing import Any

from src.data import Item, dump_items, parse_items, split_path
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
