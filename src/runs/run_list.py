"""All runs of a folder, finished or not: the settings that differ, and the results."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src import task
from src.console.cli import UserError
from src.console.words import counted
from src.files.paths import RECIPE, record_path
from src.files.yaml_files import read_yaml
from src.runs.facts import Result
from src.runs.record import Record
from src.worth.metrics import wilson

SHOWN_SPLITS = ("dev", "test")
DERIVED = ("name", "model_id", "licence", "revision", "tokenizer")
"""Settings that follow from the run's name or backbone."""
LEFTOVERS = ("checkpoints", "adapter", "model", "log.txt")
HASH_DIGITS = 8


@dataclass(frozen=True)
class Entry:
    """A folder under the runs'.

    state      finished, or why not and what is there
    recipe     empty for a vote, and where none can be read; with `dialogue`, where the record says it was changed
    by_orders  number of orders of the options → split → what came out
    """

    name: str
    state: str
    recipe: Mapping[str, Any]
    by_orders: Mapping[int, Mapping[str, Result]]


def list_runs(results: Path) -> list[Entry]:
    """By name: runs and votes, the unfinished and damaged ones as well. Other folders there are left out."""
    folders = sorted(path for path in results.iterdir() if path.is_dir()) if results.is_dir() else []
    return [entry for folder in folders if (entry := _entry(folder)) is not None]


def _entry(folder: Path) -> Entry | None:
    if record_path(folder).is_file():
        try:
            record = Record.read(record_path(folder))
        except ValueError as error:
            return Entry(folder.name, f"damaged record.json ({error})", _recipe(folder), {})
        changed = {"dialogue": record.dialogue} if record.dialogue else {}
        return Entry(folder.name, "finished", {**(record.settings or {}), **changed}, record.by_orders)
    there = [name for name in LEFTOVERS if (folder / name).exists()]
    if not (folder / RECIPE).is_file() and there != ["log.txt"]:
        return None
    saved = sorted((folder / "checkpoints").glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    if saved:
        there[there.index("checkpoints")] = f"{saved[-1].name}"
    return Entry(folder.name, f"unfinished ({', '.join(there) or 'nothing but its recipe'})", _recipe(folder), {})


def _recipe(folder: Path) -> dict[str, Any]:
    try:
        found = read_yaml(folder / RECIPE)
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def differing(entries: Sequence[Entry]) -> list[str]:
    """Settings that are not the same in all recipes, in the recipes' order."""
    recipes = [entry.recipe for entry in entries if entry.recipe]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe if key not in DERIVED)
    return [key for key in keys if len({repr(recipe.get(key)) for recipe in recipes}) > 1]


def table_rows(entries: Sequence[Entry]) -> list[dict[str, str]]:
    """A row for each entry, all with the same columns: settings that differ, and results by every number of orders."""
    settings = differing(entries)
    several = {count for entry in entries for count in entry.by_orders if count > 1}
    orders = sorted({len(task.current().all_orders), *several})
    return [cells(entry, settings, orders) for entry in entries]


def cells(entry: Entry, settings: Sequence[str], several: Sequence[int]) -> dict[str, str]:
    """Column → text: the run, its state, the settings, and per split accuracy, items, orders and the data's digest.
    several: numbers of orders, beside one, whose accuracies have columns of their own.
    """
    found = {"run": entry.name, "state": entry.state}
    found |= {key: setting_text(entry.recipe.get(key)) if entry.recipe else "" for key in settings}
    for split in SHOWN_SPLITS:
        result = entry.by_orders.get(1, {}).get(split)
        found[f"{split} accuracy"] = accuracy_text(result) if entry.state == "finished" else ""
        found[f"{split} items"] = str(result.items or "") if result else ""
        found[f"{split} orders"] = str(result.orders or "") if result else ""
        found[f"{split} data"] = (result.data_sha256 or "")[:HASH_DIGITS] if result else ""
        for count in several:
            other = entry.by_orders.get(count, {}).get(split)
            found[f"{split}, {counted(count, 'order')}"] = accuracy_text(other) if other else ""
    return found


def setting_text(value: Any) -> str:
    """A value on a line; a long one (a template) as its digest."""
    if value is None:
        return "–"
    text = str(value)
    return text if len(text) <= 40 and "\n" not in text else f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:8]}"


def accuracy_text(result: Result | None) -> str:
    """With the 95 % Wilson interval, as shares."""
    if result is None:
        return "not scored"
    if result.accuracy is None:
        return "no labels"
    if result.correct is None or not result.items:
        return f"{result.accuracy:.3f}"
    low, high = wilson(result.correct, result.items)
    return f"{result.accuracy:.3f} [{low:.3f}, {high:.3f}]"
