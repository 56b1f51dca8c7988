"""Trainings that one process and two ranks do alike; dropout is off, since masks differ by rank.

Some go wrong on one of the two ranks, which has to be a verdict for both.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from src.model import ranks
from src.train import guard, trainer
from src.train.adamw8bit import clip_gradient
from src.train.checkpoints import Place
from src.train.fine_tuning import fine_tune
from src.tree.rows import Row
from tests import toys
from tests.made_trainings import CPU, DEV, TRAIN, encoder

TREES = {"objective": "letters", "order": "dialogue", "batch_size": 4, "share_prefixes": "on"}
CASES: dict[str, dict[str, Any]] = {
    # Dialogues of three items: two on one rank and one on the other, of whole steps and of a last one.
    "letters by dialogue": {"objective": "letters", "order": "dialogue", "batch_size": 4},
    # The last step has one item, so one rank has none.
    "answers in random order": {"objective": "answer", "order": "shuffled", "batch_size": 7, "loss_per": "token"},
    "orpo in a tree": {"objective": "orpo", "order": "dialogue", "batch_size": 2, "gradient_accumulation_steps": 2}
    | {"share_prefixes": "on"},
    "all parameters": {"method": "full", "objective": "letter", "batch_size": 2, "optimizer": "fp32", "lr": 2e-4},
    "steps in graphs": TREES,
    "no more graphs on one": TREES,
    "compiling fails on one": TREES,
    "the guard finds one at fault": TREES,
}


class Eager:
    """In place of `StepGraphs`: the same calls, computed at once. On rank 1 it may end after two steps."""

    ends = False

    def __init__(self, made: trainer.LetterTrainer, model: Any) -> None:
        self.trainer, self.model = made, model
        self.failed, self.full, self.steps = "", False, 0
        self.known: set[Any] = set()
        self.checked: dict[str, Any] = {}

    def step(self, rows: Sequence[Row], totals: torch.Tensor) -> torch.Tensor | None:
        self.steps += 1
        losses = []
        for row in rows:
            loss, _ = self.trainer.row_loss(self.model, row, totals)
            loss.backward()
            losses.append(loss.detach())
        if self.ends and ranks.rank() == 1 and self.steps > 2:
            self.failed = "there is no room"
            return None
        return torch.stack(losses).sum()

    def update(self) -> torch.Tensor:
        made = self.trainer
        norm = clip_gradient(made.optimizer, made.trained_parameters, made.args.max_grad_norm)
        made.optimizer.optimizer.step()
        made.optimizer.done = True
        return norm


class Ending(Eager):
    ends = True


@contextlib.contextmanager
def fault(name: str) -> Iterator[None]:
    """Within, what the case is about happens on ranks. One process computes as ever."""
    with contextlib.ExitStack() as stack:
        if not ranks.several():
            pass
        elif "graphs" in name:
            graphs = Eager if name == "steps in graphs" else Ending
            stack.enter_context(mock.patch.object(trainer, "StepGraphs", graphs))
            stack.enter_context(mock.patch.object(trainer, "obstacle", lambda *given: ""))
        elif name == "compiling fails on one":
            stack.enter_context(mock.patch.object(trainer.LetterTrainer, "row_loss", failing_in_step_2))
            known = lambda error: str(error) if "a kernel" in str(error) else ""  # noqa: E731
            stack.enter_context(mock.patch.object(trainer.compiler, "failure", known))
            stack.enter_context(mock.patch.object(trainer.compiler, "_reasons", []))  # and forgets it
        elif name == "the guard finds one at fault" and ranks.rank() == 1:
            stack.enter_context(mock.patch.object(guard, "allowed", lambda *given: -1.0))
        yield


whole = trainer.LetterTrainer.row_loss


def failing_in_step_2(self: Any, *given: Any) -> Any:
    if ranks.rank() == 1 and self.state.global_step == 2 and self.layout.kind == "tree":
        raise RuntimeError("a kernel cannot be compiled")
    return whole(self, *given)


def recipe(name: str, place: Path) -> Any:
    settings = {"lora_dropout": 0, "epoch": 2, "eval_steps": 2, "name": "made"}
    return toys.recipe(place / "backbone", "qwen2", **{**settings, **CASES[name]})


def trained(name: str, place: Path, folder: str = "") -> dict[str, Any]:
    """What the record has of a training in `place`."""
    one = recipe(name, place)
    with fault(name):
        return fine_tune(one, encoder("qwen2"), TRAIN, DEV, Place.at(place / (folder or name)), CPU).training


def interrupted(folder: Path) -> None:
    """A training of the first case that ends after its third step, with a checkpoint of its second."""
    before = trainer.LetterTrainer.training_step

    def step(self: Any, *given: Any, **keys: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return before(self, *given, **keys)

    with mock.patch.object(trainer.LetterTrainer, "training_step", step), contextlib.suppress(KeyboardInterrupt):
        trained("letters by dialogue", folder.parent, folder.name)
        raise AssertionError("it was to be interrupted")


def words(place: Path, run: str) -> list[str]:
    """Of the command that trains in the folder `run`."""
    where = ("--data", place / "data", "--prompt", place / "short.yaml", "--save_dir", place / run)
    model = ("--model_id", place / "backbone", "--backbone", "qwen2", "--method", "lora", "--lora_dropout", "0")
    return list(map(str, [*model, *where, "--device", "cpu", "--lr", "3e-3"]))
