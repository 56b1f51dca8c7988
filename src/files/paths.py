"""Paths of runs and of their files, and the run that a name stands for."""

import re
from collections.abc import Sequence
from pathlib import Path

from src.console.cli import UserError, nearest
from src.console.start import ours
from src.console.words import counted

RESULTS = ours("resource/results")
MODEL, ADAPTER = "model", "adapter"
"""The folder of a run's best weights: all of them, or the adapter's."""
CHECKPOINTS = "checkpoints"
STATUS = "status.json"
"""What a process in a run folder does; there while it works, and after it failed (src/files/signs.py)."""
LOCK = ".lock"
"""The file in a folder that is locked while a process has it. A kill leaves it behind, but not the lock on it."""
FOLDS = "folds.json"
"""In a folder of folds: what was divided, and which items each fold has. Beside it each fold has a folder of data."""
FOLD_RUN = re.compile(r".+-f\d+of\d+")
"""Name of a fold run: the recipe's and seed's, the number of its fold, and that of all folds."""
RECIPE, INPUTS, RECORD = "recipe.yaml", "inputs.json", "record.json"
TRAINING_CSV, TRAINING_PNG = "training.csv", "training.png"
"""How a training went: numbers of each step, and a picture."""
REPORTS = "reports"
"""The folder in a run for what `--report_to` writes."""


def record_path(run: str | Path) -> Path:
    """The record is written last: where it is, the run is finished."""
    return Path(run) / RECORD


def scores_path(run: str | Path, split: str, orders: int = 1) -> Path:
    """Scores by one order of the options; scores by more orders are in files beside it."""
    return Path(run) / f"scores_{split}{_suffix(orders)}.jsonl"


def predictions_path(run: str | Path, split: str, orders: int = 1) -> Path:
    return Path(run) / f"predictions_{split}{_suffix(orders)}.json"


def reasoning_path(run: str | Path, split: str, orders: int = 1) -> Path:
    return Path(run) / f"reasoning_{split}{_suffix(orders)}.jsonl"


def _suffix(orders: int) -> str:
    return "" if orders == 1 else f".{orders}orders"


def weights_folder(run: Path) -> Path | None:
    """Where a run keeps what it trained; None for an untrained one."""
    return next((run / name for name in (MODEL, ADAPTER) if (run / name).is_dir()), None)


def run_names(results: Path) -> list[str]:
    """Names of the runs in `results`, finished or not, sorted. Other folders there (a vote's, say) have no recipe."""
    return sorted(recipe.parent.name for recipe in results.glob(f"*/{RECIPE}"))


def find_run(name: str | None, results: Path | None = None) -> Path | None:
    """The folder of the run called `name`, or at that path; None for a model of the hub or a folder of weights."""
    for folder in _places(name, results or RESULTS) if name else ():
        if any((folder / file).is_file() for file in (RECORD, RECIPE, LOCK)):
            return folder
    return None


def run_folder(word: str, results: Path) -> Path:
    """The folder of a run, given by name, path, or a file in it. It need not exist. UserError for a file that does not
    exist.
    """
    path = Path(word)
    if path.is_file():
        return path.parent
    if path.suffix in (".json", ".jsonl"):
        raise UserError(f"{path}: no such file. Allowed: a run's name or folder, or a file of predictions or scores.")
    named, path = _places(word, results)
    return next((folder for folder in (named, path) if folder.is_dir()), named if path.name == word else path)


def is_file(path: str | Path) -> bool:
    """Whether there is an ordinary file. A name that no file system takes is none."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder. A name that no file system takes is none."""
    try:
        return Path(path).is_dir()
    except OSError:
        return False


def _places(name: str, results: Path) -> tuple[Path, Path]:
    """A run's name may also be that of some folder here ("orpo"): then the run is meant."""
    return results / name, Path(name)


def refuse_links(folder: Path) -> None:
    """UserError when a folder that is about to be written to holds symbolic links: what they lead to would be
    overwritten or deleted. Nothing of ours is written below its `REPORTS`, where wandb keeps links of its own.
    """
    there = sorted(path for path in folder.rglob("*") if path.is_symlink()) if folder.is_dir() else []
    links = [path for path in there if folder / REPORTS not in path.parents]
    if links:
        raise UserError(
            f"{links[0]} is a link to {links[0].readlink()}, which would be written to or deleted there. "
            "Put what it leads to in its place, make the whole folder such a link, or give another folder."
        )


def refuse_missing(run: Path) -> None:
    """UserError when there is no such folder, with the names of those beside it."""
    if run.is_dir():
        return
    names = sorted(entry.name for entry in run.parent.iterdir() if entry.is_dir()) if run.parent.is_dir() else []
    there = f"runs there: {listed_runs(names)}" if names else "there are no runs there"
    raise UserError(f"{run}: no such run; {there}.{nearest(run.name, names)}")


def listed_runs(names: Sequence[str]) -> str:
    """The names, for a message: runs of folds, of which there may be hundreds, are counted."""
    own = [name for name in names if not FOLD_RUN.fullmatch(name)]
    folds = len(names) - len(own)
    return ", ".join([*own, *([counted(folds, "fold run")] if folds else [])])
