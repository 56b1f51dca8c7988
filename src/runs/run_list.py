"""All runs of a folder, finished or not: how their settings differ, and what came out."""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from src.files.paths import record_path
from src.runs.record import parse_record, results_key
from src.worth.metrics import wilson

SHOWN_SPLITS = ("dev", "test")
SIX = ", 6 orders"
"""Behind the name of a split that was scored under six orders beside one."""
DERIVED = ("name", "model_id", "licence", "revision", "tokenizer")
"""Settings that follow from the run's name or backbone."""
LEFTOVERS = ("checkpoints", "adapter", "model", "log.txt")
HASH_DIGITS = 8


@dataclass(frozen=True)
class Entry:
    """A folder under the runs'. `state`: finished, or why not and what is there. `recipe`: empty for a vote, and where
    none can be read. `splits`: split → what the record says.
    """

    name: str
    state: str
    recipe: dict[str, Any]
    splits: dict[str, dict[str, Any]]


def list_runs(results: Path) -> list[Entry]:
    """By name: runs and votes, the unfinished and damaged ones as well. Other folders there are left out."""
    folders = sorted(path for path in results.iterdir() if path.is_dir()) if results.is_dir() else []
    return [entry for folder in folders if (entry := _entry(folder)) is not None]


def _entry(folder: Path) -> Entry | None:
    if record_path(folder).is_file():
        try:
            record = parse_record(record_path(folder))
        except ValueError as error:
            return Entry(folder.name, f"damaged record.json ({error})", _recipe(folder), {})
        six = {f"{split}{SIX}": one for split, one in record.get(results_key(6), {}).items()}
        return Entry(folder.name, "finished", record.get("recipe", {}), {**record.get(results_key(), {}), **six})
    there = [name for name in LEFTOVERS if (folder / name).exists()]
    if not (folder / "recipe.yaml").is_file() and there != ["log.txt"]:
        return None
    saved = sorted((folder / "checkpoints").glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    if saved:
        there[there.index("checkpoints")] = f"{saved[-1].name}"
    return Entry(folder.name, f"unfinished ({', '.join(there) or 'nothing but its recipe'})", _recipe(folder), {})


def _recipe(folder: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def differing(entries: Sequence[Entry]) -> list[str]:
    """Settings that are not the same in all recipes, in the recipes' order."""
    recipes = [entry.recipe for entry in entries if entry.recipe]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe if key not in DERIVED)
    return [key for key in keys if len({repr(recipe.get(key)) for recipe in recipes}) > 1]


def cells(entry: Entry, settings: Sequence[str]) -> dict[str, str]:
    """Column → text: the run, its state, the settings, and per split accuracy, items, orders and the data's digest."""
    found = {"run": entry.name, "state": entry.state}
    found |= {key: setting_text(entry.recipe.get(key)) if entry.recipe else "" for key in settings}
    for split in SHOWN_SPLITS:
        result = entry.splits.get(split)
        orders = str(result.get("orders", "")) if result else ""
        found[f"{split} accuracy"] = accuracy_text(result) if entry.state == "finished" else ""
        found[f"{split} items"] = str(result.get("items", "")) if result else ""
        found[f"{split} orders"] = orders
        found[f"{split} data"] = str(result.get("data_sha256") or "")[:HASH_DIGITS] if result else ""
        six = entry.splits.get(f"{split}{SIX}")
        found[f"{split}{SIX}"] = accuracy_text(six) if six else ""
    return found


def setting_text(value: Any) -> str:
    """A value on a line; a long one (a template) as its digest."""
    if value is None:
        return "–"
    text = str(value)
    return text if len(text) <= 40 and "\n" not in text else f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:8]}"


def accuracy_text(result: dict[str, Any] | None) -> str:
    """With the 95 % Wilson interval, as shares."""
    if result is None:
        return "not scored"
    if result.get("accuracy") is None:
        return "no labels"
    if not (isinstance(result.get("correct"), int) and result.get("items")):
        return f"{result['accuracy']:.3f}"
    low, high = wilson(result["correct"], result["items"])
    return f"{result['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def as_csv(rows: Sequence[dict[str, str]]) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_markdown(rows: Sequence[dict[str, str]]) -> str:
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    told = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in told)
