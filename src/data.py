"""Reads the official JSON, whole or not at all, and writes it back with answers.

A file is a list of items (see `resource/data/sample.json`). Three rules hold everywhere:

- The official text never changes: `Item.source` is the JSON object as it stood in the file, and a submission is a copy
  of it with `output` filled.
- The other fields of `Item` are for reading and prompting, so they are regular: text is NFC and holds whole characters,
  a JSON number in place of a text is its text (`7` is "7"), options have no blanks around them, `output` is an index or
  None, each target is named once. Utterances keep their blanks and newlines; an item's id stays as it is.
- An item that is unanswerable or ambiguous is refused, and so is a file that is broken or of another kind. Anything
  else that is odd is accepted and noted (`src/items/oddities.py`). The table in `resource/data/README.md` says which is
  which.
"""

import copy
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src import task
from src.console.cli import UserError
from src.console.start import ours
from src.files import reading
from src.files.reading import HALF
from src.items.item import Item, Utterance, id_of, parse_item
from src.items.json_files import Json, read_json, same, shown
from src.items.oddities import Oddity, counts
from src.task import SPLITS

__all__ = [
    "DATA",
    "SPLITS",
    "Item",
    "Reading",
    "Utterance",
    "dump_items",
    "load_data",
    "load_items",
    "load_split",
    "missing_labels",
    "oddity_note",
    "parse_items",
    "predictions",
    "problem_lines",
    "read_items",
    "sha256",
    "split_path",
]


DATA = ours("resource/data")
"""Default folder of the corpus."""

PROBLEMS_SHOWN = 20
"""More lines would push the first ones, which usually explain the rest, out of sight."""
MOST_PROBLEMS = 1_000
"""Reading stops after this many in one file: it is another kind of file."""


@dataclass
class Reading:
    """The contents of a file: its valid items, a line for each problem, and its oddities.

    The items may not be used while there are problems.
    """

    items: list[Item] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    oddities: list[Oddity] = field(default_factory=list)


def load_items(path: str | Path, *, labelled: bool | None = None) -> list[Item]:
    """All items of a file, in its order. With `labelled=True` each must have a label; otherwise it may lack one.

    UserError names all problems of the file at once (beyond `PROBLEMS_SHOWN`, their count). Oddities are not reported
    here but by `oddity_note`. Nothing is dropped except the second copy of a whole item.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: {'this is a folder, not a file' if path.is_dir() else 'no such file'}. {_listing(path.parent)}"
        )
    items, problems = parse_items(read_bytes(path), path.name)
    if labelled:
        problems += missing_labels(items, path.name)
    if problems:
        raise UserError(problem_lines(f"{path} cannot be used", problems))
    return items


def load_split(folder: str | Path, split: str, labelled: bool | None = None) -> list[Item]:
    """`load_items` of `data_<split>.json`. If it is missing, UserError says what is there and how to make it."""
    path = split_path(folder, split)
    if path.parent.is_file():
        raise UserError(f"{folder} is a file; the folder of data_{split}.json is needed here.")
    if not path.is_file():
        raise UserError(
            f"{path}: no such file. {_listing(path.parent)}\n"
            "Make it from the official download: "
            f"python -m run.prepare_data 대화맥락추론_데이터.zip --out {path.parent}{task.flag()}"
        )
    return load_items(path, labelled=labelled)


def load_data(data: Path, split: str, all_labelled: bool = False) -> tuple[list[Item], Path]:
    """The items and their file. `data` is a JSON file, or a folder that holds `data_<split>.json`.

    With `all_labelled`, UserError in one line when items have no label.
    """
    path = data if data.suffix == ".json" else split_path(data, split)
    items = load_items(path) if path == data else load_split(data, split)
    if all_labelled:
        refuse_unlabelled(items, path)
    return items, path


def refuse_unlabelled(items: Sequence[Item], path: Path) -> None:
    """UserError when an item of `path` has no label."""
    missing = [item.id for item in items if item.label is None]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(items)} items have no label, {missing[0]} is the first, "
            "so there is nothing to hold answers against. "
            "Allowed: a split with a label for every item, such as --split dev."
        )


def split_path(folder: str | Path, split: str) -> Path:
    """The path where `run.prepare_data` writes a split and every other command looks for it."""
    assert split in SPLITS, split
    return Path(folder) / f"data_{split}.json"


def predictions(items: Sequence[Item], answers: Sequence[int]) -> list[dict[str, Any]]:
    """The submission: copies of the official objects, in the order of `items`, `output` filled.

    `answers`: for each item the index of an option; 0 becomes "inference_1".
    """
    outputs = task.current().options
    assert len(items) == len(answers), (len(items), len(answers))
    assert all(0 <= answer < len(outputs) for answer in answers), answers
    return [
        copy.deepcopy(item.source) | {"output": outputs[answer]} for item, answer in zip(items, answers, strict=True)
    ]


def dump_items(raw: list[dict[str, Any]]) -> str:
    """The official JSON text: readable Korean, an indent of two, a final newline. UTF-8 can encode all of it."""
    text = json.dumps(raw, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    return HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def oddity_note(path: str | Path) -> str | None:
    """One line on the oddities of a data file, to show before a long command uses it.

    None where nothing is odd, and for a file that `load_items` refuses.
    """
    path = Path(path)
    read = read_items(read_bytes(path), path.name) if path.is_file() else Reading()
    found = counts(read.oddities)
    if read.problems or not found:
        return None
    told = ", ".join(f"{kind} {count}" for kind, count in found.items())
    return f"{path}: odd, and carried on: {told} (what is done with each: resource/data/README.md)"


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. UserError when it may not be read."""
    return reading.read_bytes(path)


def sha256(path: str | Path) -> str:
    """Hexadecimal digest of the file's bytes."""
    return hashlib.sha256(reading.read_bytes(path)).hexdigest()


def parse_items(content: bytes, name: str) -> tuple[list[Item], list[str]]:
    """The sound items of `read_items`, and a line for each problem."""
    read = read_items(content, name)
    return read.items, read.problems


def read_json_of_task(content: bytes, name: str) -> Json:
    """`read_json`, which knows a file in CP949 by the task's categories."""
    return read_json(content, name, task.current().categories)


def read_items(content: bytes, name: str) -> Reading:
    """The items of a file's bytes. Each line of a problem begins with `name`.

    Labels may be missing here; `missing_labels` asks for them.
    """
    current = task.current()
    found = _read_items(content, name, current.categories, current.options)
    return Reading(list(found.items), list(found.problems), list(found.oddities))


@functools.lru_cache(maxsize=len(SPLITS))  # a command reads its splits several times
def _read_items(content: bytes, name: str, categories: tuple[str, ...], options: tuple[str, ...]) -> Reading:
    read = read_json(content, name, categories)
    found = Reading([], read.problems, read.oddities)
    if read.value is None and found.problems:
        return found
    if fault := _no_list(read.value):
        found.problems.append(f"{name}: {fault}")
        return found

    repeated = {id(holder): keys for holder, keys in read.repeated}
    first_position: dict[str, int] = {}
    for position, entry in enumerate(read.value, start=1):
        if len(found.problems) >= MOST_PROBLEMS:
            found.problems.append(f"{name}: item {position} and those after it were not looked at any more")
            break
        item_id = id_of(entry)
        where = f"{name}: item {position}" + (f" ({item_id})" if item_id else "")
        first = first_position.setdefault(item_id, position) if item_id else position
        if first != position and entry == read.value[first - 1] and same(entry, read.value[first - 1]):
            found.oddities.append(Oddity("item-twice", where, f"as item {first}"))
            continue
        item, of_item = parse_item(entry, categories, options)
        if first != position:
            of_item.faults.insert(
                0,
                f"id: found again, item {first} has it already; "
                "every id may appear once, unless the whole item is repeated",
            )
        found.problems += [f"{where}, {fault}" for fault in of_item.faults]
        of_item.odd += [("key-twice", ", ".join(map(shown, keys))) for keys in _repeated_in(entry, repeated)]
        found.oddities += [Oddity(kind, where, value) for kind, value in of_item.odd]
        if item is not None and not of_item.faults:
            found.items.append(item)
    return found


def _no_list(value: Any) -> str:
    """Why a value is not a list of items; empty where it is one."""
    if isinstance(value, list):
        return "" if value else "the list is empty; allowed: at least one item"
    lists = [key for key, inner in value.items() if isinstance(inner, list)] if isinstance(value, dict) else []
    hint = f". Save the list under {', '.join(map(shown, lists))} alone" if lists else ""
    return f'found {shown(value)}; allowed: a list of items, [{{"id": …}}, …]{hint}'


def _repeated_in(value: Any, repeated: Mapping[int, list[str]]) -> list[list[str]]:
    """The keys that `repeated` has for objects of `value`, by their identity; those of inner objects first."""
    if not repeated:
        return []
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [keys for one in inner for keys in _repeated_in(one, repeated)]
    return [*found, repeated[id(value)]] if id(value) in repeated else found


def missing_labels(items: Sequence[Item], name: str) -> list[str]:
    """A line for each item without label, or a single one when no item has any: then it is another kind of file."""
    allowed = ", ".join(task.current().options)
    missing = [item.id for item in items if item.label is None]
    if missing and len(missing) == len(items):
        return [
            f"{name}: output: found no label in any of {len(items)} items; allowed: {allowed} in each. "
            "This looks like a test file in place of a train or dev file: were the two swapped?"
        ]
    return [f"{name}: item {item_id}, output: found no label; allowed: {allowed}" for item_id in missing]


def problem_lines(headline: str, problems: Sequence[str]) -> str:
    """The headline with the number of problems, then the first `PROBLEMS_SHOWN` of them, a line each."""
    count = f"{headline}: {len(problems)} problem{'s' if len(problems) > 1 else ''}"
    more = len(problems) - PROBLEMS_SHOWN
    return "\n  ".join([count, *problems[:PROBLEMS_SHOWN], *([f"… and {more} more"] if more > 0 else [])])


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return f"There is no folder {folder} either."
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"In {folder} there is: {shown}." if names else f"The folder {folder} is empty."
