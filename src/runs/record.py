"""Everything about a run folder `resource/results/<run>/`: its paths, its scores, its record.

Files are written whole or not at all, and a file that is not whole is never read.
"""

import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from src.console.cli import UserError, nearest
from src.files.paths import CHECKPOINTS, RESULTS

# What can change a score; the rest of an environment cannot.
PACKAGES = ("torch", "transformers", "tokenizers", "peft", "trl", "accelerate", "bitsandbytes", "numpy", "scipy")

RESULT = {"items": int, "orders": int, "correct": int, "accuracy": int | float, "data": str, "data_sha256": str}
"""What a record says of a scored split, each of a kind or null, beside what only people read."""


def scores_path(run: str | Path, split: str, orders: int = 1) -> Path:
    """Scores by one order of the options; those of more lie beside them."""
    return Path(run) / f"scores_{split}{_beside(orders)}.jsonl"


def predictions_path(run: str | Path, split: str, orders: int = 1) -> Path:
    return Path(run) / f"predictions_{split}{_beside(orders)}.json"


def reasoning_path(run: str | Path, split: str, orders: int = 1) -> Path:
    return Path(run) / f"reasoning_{split}{_beside(orders)}.jsonl"


def results_key(orders: int = 1) -> str:
    """Under which key a record has what came out on each split."""
    return "splits" if orders == 1 else f"splits_{orders}orders"


def counted(count: int, noun: str) -> str:
    """`1 step`, `2 steps`: for nouns whose plural is an s."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def orders_words(orders: int) -> str:
    return counted(orders, "order")


def _beside(orders: int) -> str:
    return "" if orders == 1 else f".{orders}orders"


def record_path(run: str | Path) -> Path:
    return Path(run) / "record.json"


def find_run(name: str | None) -> Path | None:
    """The folder of the run called `name`, or at that path; None for a model of the hub or a folder of weights."""
    for path in (Path(name or ""), RESULTS / (name or "")):
        if name and any((path / file).is_file() for file in ("record.json", "recipe.yaml")):
            return path
    return None


def began_with(folder: Path) -> dict[str, Any]:
    """What an unfinished run in `folder` began with, by its inputs.json; nothing for a run that begins now. UserError
    when the file is damaged or gone.
    """
    if not (folder / CHECKPOINTS).is_dir() or not (folder / "recipe.yaml").is_file():
        return {}
    path = folder / "inputs.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for split in ("train", "dev"):
            digest, items = found[split]
            if not isinstance(digest, str) or not isinstance(items, int):
                raise ValueError(f"{split} is {found[split]!r}")
        if not isinstance(found["prompt"], str) or not isinstance(found.get("template", {}), dict):
            raise ValueError("prompt or template is of another kind")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{folder} holds an unfinished run, and its {path.name}, without which it cannot go on, is damaged or gone "
            f"({error}). Delete the folder to train again, or give another --name."
        ) from error
    assert isinstance(found, dict)
    return found


def read_record(run: str | Path) -> dict[str, Any]:
    """The record of a finished run. UserError when there is none (the run is not finished) or it is damaged."""
    run = Path(run)
    path = record_path(run)
    if not run.is_dir():
        runs = sorted(entry.name for entry in run.parent.iterdir() if entry.is_dir()) if run.parent.is_dir() else []
        there = f"runs there: {', '.join(runs)}" if runs else "there are no runs there"
        raise UserError(f"{run}: no such run; {there}.{nearest(run.name, runs)}")
    if not path.is_file():
        raise UserError(
            f"{run} is not finished: it has no {path.name}. The command that started it goes on where it stopped."
        )
    try:
        return parse_record(path)
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {error}. Delete it and start the command that made the run again."
        ) from error


def parse_record(path: Path) -> dict[str, Any]:
    """A record whose parts are of the kinds that are written. ValueError says which is not, or why it is no JSON."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError("not an object")
    keys = [key for key in record if key == results_key() or re.fullmatch(r"splits_\d+orders", key)]
    for key in ("recipe", "prompt", "template", "data", *keys):
        if not isinstance(record.get(key, {}), dict):
            raise ValueError(f"{key} is no object")
    for key, split, result in [(where, *one) for where in keys for one in record[where].items()]:
        if not isinstance(result, dict):
            raise ValueError(f"{key}: {split} is no object")
        wrong = [name for name, kind in RESULT.items() if not isinstance(result.get(name), kind | None)]
        if wrong:
            raise ValueError(f"{key}: {split}: {wrong[0]} is {result[wrong[0]]!r}")
        if not 0 <= (result.get("correct") or 0) <= (result.get("items") or math.inf):
            raise ValueError(f"{key}: {split}: {result['correct']} of {result['items']} items are right")
    return record


def versions() -> dict[str, str]:
    """Versions of what computes a score (packages that are not installed are left out), without importing any of it."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of this code, with "-dirty" when tracked files differ from it; None without git or a repository."""
    root = Path(__file__).resolve().parents[2]
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            # Code unpacked from an archive inside another repository has no commit; git would give that repository's.
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(root.parent)},
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
