"""Whether a file can be handed in: the official items, untouched, each with an answer."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from src import task
from src.console.cli import nearest
from src.console.words import IDS_SHOWN, some
from src.data import Item, parse_items
from src.items.json_files import read_json
from src.items.oddities import KINDS


def submission_problems(content: bytes, items: Sequence[Item]) -> list[str]:
    """Why a file with this content cannot be handed in as the answers to `items`: a line for each problem."""
    _, faults = parse_items(content, "the file")
    read = read_json(content, "the file", task.current().categories)
    raw = read.value
    if not isinstance(raw, list) or not raw:
        return faults
    # Our reader accepts more than the receiver of the file may.
    problems = [*read.problems, *(f"the file: {KINDS[one.kind].split(';')[0]} ({one.found})" for one in read.oddities)]
    problems += [f"the file: the key {', '.join(keys)} more than once in an object" for _, keys in read.repeated]
    if content.startswith(b"\xef\xbb\xbf"):
        problems.append("the file begins with a byte order mark; allowed: UTF-8 without one")
    ids = [entry.get("id") if isinstance(entry, dict) else None for entry in raw]
    problems += _id_problems(ids, [item.id for item in items])
    sources = {item.id: item.source for item in items}
    for position, (key, entry) in enumerate(zip(ids, raw, strict=True), start=1):
        where = f"item {position}" + (f" ({key})" if isinstance(key, str) else "")
        if not isinstance(entry, dict):
            problems.append(f"{where}: found {_told(entry)}; allowed: an object with id, input and output")
            continue
        if isinstance(key, str) and key in sources:
            problems += [f"{where}, {change}" for change in _changes(entry, sources[key])]
        problems += [f"{where}, {fault}" for fault in _label_problems(entry)]
    return problems


def _id_problems(ids: list[Any], expected: list[str]) -> list[str]:
    problems = []
    if len(ids) != len(expected):
        problems.append(f"found {len(ids)} items; allowed: {len(expected)}, as in the data")
    counts = Counter(key for key in ids if isinstance(key, str))
    known = set(expected)
    problems += [f"{key}: found {count} times; allowed: once" for key, count in counts.items() if count > 1]
    unknown = [key for key in counts if key not in known]
    if len(unknown) > IDS_SHOWN:
        problems.append(f"{len(unknown)} items are not of the data: {some(unknown)}. Is it another split's file?")
    else:
        problems += [f"{key}: not an item of the data.{nearest(key, expected)}" for key in unknown]
    if missing := [key for key in expected if key not in counts]:
        problems.append(f"{len(missing)} items of the data are missing: {some(missing)}")
    problems += [
        f"item {position}: it has no id" for position, key in enumerate(ids, start=1) if not isinstance(key, str)
    ]
    if not problems and ids != expected:
        position = next(position for position, pair in enumerate(zip(ids, expected, strict=True)) if pair[0] != pair[1])
        problems.append(
            f"the order differs: item {position + 1} is {ids[position]}; allowed: {expected[position]}, as in the data"
        )
    return problems


def _changes(entry: Any, source: Any, where: str = "") -> list[str]:
    """Fields that differ, but for the item's own `output`."""
    if isinstance(entry, dict) and isinstance(source, dict):
        keys = [key for key in dict.fromkeys([*source, *entry]) if (where, key) != ("", "output")]
        found = []
        for key in keys:
            name = f"{where}.{key}" if where else key
            if key not in entry:
                found.append(f"{name}: missing")
            elif key not in source:
                found.append(f"{name}: not in the data")
            else:
                found += _changes(entry[key], source[key], name)
        return found
    if isinstance(entry, list) and isinstance(source, list) and len(entry) == len(source):
        pairs = enumerate(zip(entry, source, strict=True), start=1)
        return [change for position, (one, other) in pairs for change in _changes(one, other, f"{where}, {position}")]
    # As JSON: to Python, 1, 1.0 and true are equal.
    same = json.dumps(entry, sort_keys=True) == json.dumps(source, sort_keys=True)
    return [] if same else [f"{where}: found {_told(entry)}; allowed, as in the data: {_told(source)}"]


def _label_problems(entry: dict[str, Any]) -> list[str]:
    label, options = entry.get("output"), task.current().options
    if isinstance(label, str) and label in options:
        return []
    found = "none" if label in (None, "") else _told(label)
    hint = nearest(label, options) if isinstance(label, str) else ""
    return [f"output: found {found}; allowed: {', '.join(options)}.{hint}"]


def _told(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
