"""Where a run's data lies: its record knows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src import records
from src.data import SPLITS, split_path

DATA = Path("resource/data")


def own_data(record: dict[str, Any], split: str) -> Path | None:
    """The file of `split` that a run was scored on or trained with, or that lies beside one of those; None where the
    record names no file that is there.
    """
    places = [record.get("splits", {}).get(split, {}).get("data"), _path(record, split)]
    beside = [path for other in SPLITS if (path := _path(record, other))]
    beside += [path for other in SPLITS if (path := record.get("splits", {}).get(other, {}).get("data"))]
    found = [Path(place) for place in places if place] + [split_path(Path(path).parent, split) for path in beside]
    return next((path for path in found if path.is_file()), None)


def _path(record: dict[str, Any], split: str) -> str | None:
    one = record.get("data", {}).get(split)
    return one.get("path") if isinstance(one, dict) else None


def find_folder(name: str, results: Path) -> Path:
    """The folder of the run called `name` under `results`, or at that path; a run's name wins over a folder here."""
    named = results / name
    return next(
        (folder for folder in (named, Path(name)) if folder.is_dir()), named if Path(name).name == name else Path(name)
    )


def data_of(inputs: Sequence[str], split: str, results: Path) -> Path:
    """The data file of the first of `inputs` (runs, folders, files) that is a finished run and knows its own; else
    resource/data.
    """
    for name in inputs:
        folder = find_folder(name, results)
        if folder.is_dir() and records.record_path(folder).is_file():
            path = own_data(records.read_record(folder), split)
            if path is not None:
                return path
    return DATA
