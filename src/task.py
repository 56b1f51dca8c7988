"""The task: its categories, its options and their letters, from `resource/task.yaml` or another file like it.

A process works on one task. `current` is the one place that knows which; a command's `--task FILE` changes it.
"""

import argparse
import functools
import hashlib
import itertools
import json
import math
import random
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from src.console.cli import Parser, UserError, nearest
from src.console.start import find, ours
from src.files.reading import composed
from src.files.yaml_files import read_yaml

FILE = ours("resource/task.yaml")
MOST_OPTIONS = 9
"""An order is written with a digit for each option."""
SPLITS = ("train", "dev", "test")
ITEM_INPUT = ("conversation", "reference_id", "category")
"""Keys of an item's `input` beside its options."""


@dataclass(frozen=True)
class Official:
    """Known facts about a task's official corpus.

    items         how many each split has
    turns, words  mean and standard deviation per item of the train split, as published; None where nothing was
    """

    items: Mapping[str, int] = field(default_factory=dict)
    turns: tuple[float, float] | None = None
    words: tuple[float, float] | None = None


@dataclass(frozen=True)
class Task:
    """The definition of a task, which all its items share.

    categories  what an item may ask for
    options     the keys of an item's options in the files, which are also the values of its `output`
    letters     what each option is called in the prompt, in the order of `options`
    """

    name: str
    categories: tuple[str, ...]
    options: tuple[str, ...]
    letters: tuple[str, ...]
    official: Official = Official()

    @property
    def file_order(self) -> str:
        """The order that shows the options as the file has them: "012" for three."""
        return "".join(map(str, range(len(self.options))))

    @functools.cached_property
    def all_orders(self) -> tuple[str, ...]:
        """Every order of the options, ascending, so that the first one is `file_order`."""
        return tuple(map("".join, itertools.permutations(self.file_order)))

    def orders(self, count: int) -> tuple[str, ...]:
        """`count` orders to average over, the file's own first.

        One, all, or a multiple of the number of options: then each option stands equally often under each letter.
        A multiple consists of all rotations of some orders, drawn with a fixed seed. UserError for any other count.
        """
        number, most = len(self.options), math.factorial(len(self.options))
        if count not in (1, most) and (count % number or not 0 < count < most):
            counts = [1, *range(number, most + 1, number)]
            some = counts if len(counts) <= 7 else [*counts[:6], "…", most]
            told = ", ".join(map(str, some))
            raise UserError(f"--orders: found {count}, allowed for {number} options: {told}.")
        if count == 1:
            return (self.file_order,)
        if count == most:
            return self.all_orders
        # Each rotation class is a Latin square: the orders that begin with option 0 stand for them.
        begin = self.file_order[0]
        first, *others = (order for order in self.all_orders if order[0] == begin)
        chosen = [first, *random.Random(0).sample(others, count // number - 1)]
        return tuple(order[turn:] + order[:turn] for order in chosen for turn in range(number))

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of everything that decides an answer; facts about the official corpus are left out."""
        told = {key: value for key, value in asdict(self).items() if key != "official"}
        return hashlib.sha256(json.dumps(told, ensure_ascii=False).encode()).hexdigest()


def load_task(path: Path) -> Task:
    """The task in a YAML file. UserError names all that is wrong with it at once."""
    try:
        raw = read_yaml(path)
    except UserError as error:
        raise UserError(f"{error} It cannot be read as a task. The one to begin with: {FILE}") from error
    known = ("name", "categories", "options", "letters", "official")
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a task is a mapping with {', '.join(known[:-1])}; found {type(raw).__name__}.")
    problems = [f"unknown key {key!r}.{nearest(str(key), known)}" for key in raw if key not in known]
    problems += [f"{key!r} is missing" for key in known[:-1] if key not in raw]
    if "name" in raw and not _is_text(raw["name"]):
        problems.append(f"name: found {raw['name']!r}, allowed: text")
    for key in ("categories", "options", "letters"):
        values = raw.get(key, [])
        if (
            not isinstance(values, list)
            or not all(map(_is_text, values))
            or len(set(map(_regular, values))) < len(values)
        ):
            problems.append(f"{key}: found {values!r}, allowed: a list of different texts")
    if not problems:
        problems += _misfits(raw)
    problems += _official_problems(raw.get("official", {}))
    if problems:
        raise UserError(f"{path}: " + "; ".join(problems) + f". See {FILE}.")
    official = raw.get("official", {})
    spans = {key: (float(official[key][0]), float(official[key][1])) for key in ("turns", "words") if key in official}
    known_of_it = Official(dict(official.get("items", {})), spans.get("turns"), spans.get("words"))
    categories, options, letters = (tuple(map(_regular, raw[key])) for key in ("categories", "options", "letters"))
    return Task(raw["name"], categories, options, letters, known_of_it)


def _regular(text: str) -> str:
    """As the texts of items are read: a file written on a Mac may hold decomposed syllables."""
    return composed(text).strip()


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _misfits(raw: Mapping[str, Any]) -> list[str]:
    """Problems between lists that are valid by themselves."""
    problems = []
    if not raw["categories"]:
        problems.append("categories: found none, allowed: one or more")
    if not 2 <= len(raw["options"]) <= MOST_OPTIONS:
        problems.append(f"options: found {len(raw['options'])}, allowed: 2 to {MOST_OPTIONS}")
    if taken := [key for key in raw["options"] if _regular(key) in ITEM_INPUT]:
        problems.append(f"options: found {', '.join(taken)}, which every item has for something else")
    if len(raw["letters"]) != len(raw["options"]):
        problems.append(f"letters: found {len(raw['letters'])}, allowed: one for each of {len(raw['options'])} options")
    if any(len(letter) != 1 for letter in raw["letters"]):
        problems.append(f"letters: found {raw['letters']!r}, allowed: single characters")
    return problems


def _official_problems(official: Any) -> list[str]:
    if not isinstance(official, dict):
        return [f"official: found {official!r}, allowed: a mapping with items, turns and words"]
    problems = [f"official: unknown key {key!r}" for key in official if key not in ("items", "turns", "words")]
    items = official.get("items", {})
    if not isinstance(items, dict) or not all(
        split in SPLITS and type(count) is int and count > 0 for split, count in items.items()
    ):
        problems.append(f"official.items: found {items!r}, allowed: a count for some of {', '.join(SPLITS)}")
    for key in ("turns", "words"):
        span = official.get(key, [0, 0])
        if not isinstance(span, list) or len(span) != 2 or not all(map(_is_length, span)):
            problems.append(f"official.{key}: found {span!r}, allowed: a mean and a standard deviation")
    return problems


def _is_length(value: Any) -> bool:
    """Whether it is a number that a mean of turns or words can have."""
    return type(value) in (int, float) and abs(value) < 1e9


_chosen: Task | None = None
_file: Path | None = None
"""The file of `--task`, as the user gave it."""


@functools.cache
def official() -> Task:
    """The task of `resource/task.yaml`."""
    return load_task(Path(find(str(FILE))))


def current() -> Task:
    """The task that this process works on: the one of `--task`, else the official one."""
    return _chosen or official()


def use(task: Task | None) -> None:
    """From here on `task` is the current one; None stands for the official one."""
    global _chosen
    _chosen = task


def add_flag(parser: Parser) -> None:
    """`--task FILE`, which takes effect as soon as it is read."""
    parser.add_argument(
        "--task", type=_from_flag, metavar="FILE", help=f"categories, options and letters (default: {FILE})"
    )


def _from_flag(text: str) -> Path:
    global _file
    path = Path(find(text))
    try:
        use(load_task(path))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    _file = path
    return path


def flag() -> str:
    """What a command that is suggested to the user needs behind it, so that it works on the current task."""
    return "" if _file is None or current().sha256 == official().sha256 else f" --task {shlex.quote(str(_file))}"
