"""What came out of fold runs, as a table to print."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from src.files.paths import record_path
from src.runs.facts import VoteResult
from src.runs.record import Record
from src.runs.run_list import accuracy_text

if TYPE_CHECKING:
    from rich.console import RenderableType

SPLITS = ("dev", "test")
"""Of what is joined: all labelled items out of fold, and test."""


def fold_table(joined: Sequence[tuple[str, Path]], vote: Path) -> "RenderableType":
    """A row for the joined fold runs of each recipe and seed; where a recipe has several seeds, one for their mean and
    standard deviation (n - 1 in the denominator); the vote last. Intervals are 95 % Wilson intervals.

    joined  (name of the recipe, folder with the joined scores), the seeds of a recipe after each other
    """
    from rich.table import Table

    from src.console.tables import Fitted

    shown = Table("answers", "items", "out-of-fold accuracy", "lowest and highest fold", "test accuracy", "seconds")
    for recipe, seeds in groupby(joined, key=lambda pair: pair[0]):
        records = {folder: Record.load(folder) for _, folder in seeds}
        for folder, record in records.items():
            parts, seconds = _of_parts(folder, record)
            dev, test = _accuracies(record)
            shown.add_row(folder.name, _items(record), dev, parts, test, seconds)
        if len(records) > 1:
            dev, test = (_mean_text(list(records.values()), split) for split in SPLITS)
            shown.add_row(f"{recipe}, mean of {len(records)} seeds", "", dev, "", test, "")
    if record_path(vote).is_file():
        record = Record.load(vote)
        dev, test = _accuracies(record)
        shown.add_section()
        shown.add_row(f"{vote.name}, hard vote", _items(record), dev, "", test, "")
    return Fitted(shown)


def _items(record: Record) -> str:
    return "/".join(str(record.splits[split].items) for split in SPLITS if split in record.splits)


def _accuracies(record: Record) -> tuple[str, str]:
    dev, test = (accuracy_text(record.splits.get(split)) for split in SPLITS)
    return dev, test


def _of_parts(folder: Path, record: Record) -> tuple[str, str]:
    """(lowest and highest accuracy of a fold, seconds of all fold runs)."""
    result = record.splits["dev"]
    assert isinstance(result, VoteResult), folder
    shares = [voter["dev_accuracy"] for voter in result.voters]
    seconds = sum(Record.load(folder.with_name(voter["run"])).seconds or 0 for voter in result.voters)
    return f"{min(shares):.3f} – {max(shares):.3f}", f"{seconds:.0f}"


def _mean_text(records: Sequence[Record], split: str) -> str:
    found = [record.splits[split].accuracy for record in records if split in record.splits]
    shares = [share for share in found if share is not None]
    return f"{mean(shares):.3f} ± {stdev(shares):.3f}" if len(shares) > 1 else ""
