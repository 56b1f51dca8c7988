"""How a training went, step by step: `training.csv` while it goes on, and `training.png` once it is over.

Losses stay on the GPU until the trainer reads its own, every few steps, so noting them costs no waiting. A training
that goes on from a checkpoint takes the rows up to it from the file. Neither file is needed for anything else: what
cannot be written or drawn is said, and the training goes on.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState

from src.console.cli import UserError
from src.files.paths import TRAINING_CSV, TRAINING_PNG
from src.files.tables import as_csv
from src.files.writing import write_text
from src.model import ranks
from src.train.steps import Step, read_steps


def logged_steps(state: TrainerState) -> list[Step]:
    """The losses that the trainer has logged, each the mean of ten steps."""
    return [
        Step(int(entry["step"]), entry["epoch"], entry["loss"], entry.get("learning_rate"))
        for entry in state.log_history
        if "loss" in entry
    ]


@dataclass
class _Open:
    """Steps whose losses have not been read yet, and the time they took."""

    steps: list[tuple[int, float, float | None]] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)
    items: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float | None:
        return self.items / self.seconds if self.items and self.seconds > 0 else None


class Curve(TrainerCallback):
    """Notes every step. The file is written with each checkpoint and at the end.

    last  gives (loss of the last step, items in it)
    """

    def __init__(self, folder: Path, last: Callable[[], tuple[torch.Tensor, int]]) -> None:
        self.path, self.last = folder / TRAINING_CSV, last
        self.steps: list[Step] = []
        self.rate: float | None = None
        """Items a second, lately."""
        self._open, self._lr, self._since, self._told = _Open(), None, 0.0, False

    def go_on(self, state: TrainerState) -> None:
        """Takes up the rows that a training left which goes on from `state`. One that begins anew leaves none."""
        known = [one for one in read_steps(self.path) if one.step <= state.global_step]
        self.steps = known or [one for one in logged_steps(state) if one.step <= state.global_step]

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._since = time.monotonic()

    def on_step_begin(self, args, state, control, lr_scheduler=None, **kwargs):  # type: ignore[no-untyped-def]
        self._lr = float(lr_scheduler.get_last_lr()[0])

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        loss, items = self.last()
        self._open.steps.append((state.global_step, state.epoch, self._lr))
        self._open.losses.append(loss.detach().clone())  # a captured step writes into the same place again
        self._open.items += items
        self._pass()
        self.rate = self.rate or self._open.rate

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        if "loss" in (logs or {}):
            self._pass()  # the trainer has just waited for the GPU
            self._read()

    def on_evaluate(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._read()
        self._since = time.monotonic()

    def on_save(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._read()
        self.write()
        self._since = time.monotonic()

    def on_train_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._read()
        self.write()

    def _pass(self) -> None:
        """Counts the time since the last call, in which steps were computed."""
        now = time.monotonic()
        self._open.seconds += now - self._since
        self._since = now

    def _read(self) -> None:
        if not self._open.steps:
            return
        losses, rate = torch.stack(self._open.losses).float().tolist(), self._open.rate
        self.steps += [
            Step(number, epoch, loss, lr, rate)
            for (number, epoch, lr), loss in zip(self._open.steps, losses, strict=True)
        ]
        self.rate, self._open = rate, _Open()

    def write(self) -> None:
        if not self.steps or not ranks.is_first():
            return
        try:
            write_text(self.path, as_csv([one.as_row() for one in self.steps]))
        except UserError as error:
            if not self._told:
                print(f"{error} The training goes on without it.", flush=True)
            self._told = True


def draw(folder: Path, training: Mapping[str, Any], words: str) -> None:
    """Draws `training.png` of a finished training. What stands in the way is printed. words: of the picture's heading.

    training  of the record: `evaluations`, `best_step`, and `loss` for a folder without `training.csv`
    """
    try:
        from src.figures.plots import save_png  # matplotlib takes a second to load, so nothing before needs it
        from src.figures.training import Evaluation, training_curves

        steps = read_steps(folder / TRAINING_CSV) or [Step(one[0], 0.0, one[1], None) for one in training["loss"]]
        points = [(one.step, one.loss, one.lr) for one in steps if math.isfinite(one.loss)]
        found = [Evaluation(one["step"], one["eval_accuracy"], one["eval_log_loss"]) for one in training["evaluations"]]
        save_png(training_curves(points, found, training["best_step"], words), folder / TRAINING_PNG)
    except Exception as error:  # whatever it is, the training is done and its record written
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        print(f"{folder / TRAINING_PNG} could not be drawn ({reason}); the run is complete without it", flush=True)
