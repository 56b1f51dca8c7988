"""The record of a run."""

import json
import math
import re
from pathlib import Path
from typing import Any

from src.console.cli import UserError
from src.files.paths import CHECKPOINTS, INPUTS, RECIPE, record_path, refuse_missing

RESULT = {"items": int, "orders": int, "correct": int, "accuracy": int | float, "data": str, "data_sha256": str}
"""What a record says of a scored split, each of a kind or null, beside what only people read."""


def results_key(orders: int = 1) -> str:
    """Under which key a record has what came out on each split."""
    return "splits" if orders == 1 else f"splits_{orders}orders"


def began_with(folder: Path) -> dict[str, Any]:
    """What an unfinished run in `folder` began with, by its inputs.json; nothing for a run that begins now. UserError
    when the file is damaged or gone.
    """
    if not (folder / CHECKPOINTS).is_dir() or not (folder / RECIPE).is_file():
        return {}
    path = folder / INPUTS
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
    refuse_missing(run)
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
