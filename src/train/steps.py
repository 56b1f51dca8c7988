"""The steps of a training as `training.csv` has them. Reading them needs no torch."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.console.cli import UserError
from src.files.reading import read_text

COLUMNS = ("step", "epoch", "loss", "lr", "items_per_second")


@dataclass(frozen=True)
class Step:
    """An optimizer step. loss: of its items, as it is minimised. lr: that it was made with.

    items_per_second: mean over the steps whose losses were read together (ten); None where it is not known.
    """

    step: int
    epoch: float
    loss: float
    lr: float | None
    items_per_second: float | None = None

    def as_row(self) -> dict[str, Any]:
        rounded = None if self.items_per_second is None else f"{self.items_per_second:.4g}"
        values = (self.step, f"{self.epoch:.4f}", f"{self.loss:.6g}", self.lr, rounded)
        return {key: "" if value is None else value for key, value in zip(COLUMNS, values, strict=True)}


def read_steps(path: Path) -> list[Step]:
    """The rows of `training.csv`; none where it is missing or damaged. Columns of later versions are left out."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path))))
        return [
            Step(
                int(row["step"]),
                float(row["epoch"]),
                float(row["loss"]),
                _number(row["lr"]),
                _number(row["items_per_second"]),
            )
            for row in rows
        ]
    except (OSError, UserError, ValueError, KeyError, TypeError, csv.Error):
        return []


def _number(text: str) -> float | None:
    return float(text) if text else None
