"""Trainings that one process and two ranks do alike; dropout is off, since masks differ by rank."""

from pathlib import Path
from typing import Any

from src.train import trainer
from src.train.checkpoints import Place
from src.train.fine_tuning import fine_tune
from tests import toys
from tests.made_trainings import CPU, DEV, TRAIN, encoder

CASES: dict[str, dict[str, Any]] = {
    # Dialogues of three items: two on one rank and one on the other, of whole steps and of a last one.
    "letters by dialogue": {"objective": "letters", "order": "dialogue", "batch_size": 4},
    # The last step has one item, so one rank has none.
    "answers in random order": {"objective": "answer", "order": "shuffled", "batch_size": 7, "loss_per": "token"},
    "orpo in a tree": {"objective": "orpo", "order": "dialogue", "batch_size": 2, "gradient_accumulation_steps": 2}
    | {"share_prefixes": "on"},
    "all parameters": {"method": "full", "objective": "letter", "batch_size": 2, "optimizer": "fp32", "lr": 1e-3},
}


def recipe(name: str, place: Path) -> Any:
    settings = {"lora_dropout": 0, "epoch": 2, "eval_steps": 2, "name": "made"}
    return toys.recipe(place / "backbone", "qwen2", **{**settings, **CASES[name]})


def trained(name: str, place: Path, folder: str = "") -> dict[str, Any]:
    """What the record has of a training in `place`."""
    one = recipe(name, place)
    return fine_tune(one, encoder("qwen2"), TRAIN, DEV, Place.at(place / (folder or name)), CPU).training


def interrupted(folder: Path) -> None:
    """A training of the first case that ends after its third step, with a checkpoint of its second."""
    before = trainer.LetterTrainer.training_step

    def step(self: Any, *given: Any, **keys: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return before(self, *given, **keys)

    trainer.LetterTrainer.training_step = step  # type: ignore[method-assign]
    try:
        trained("letters by dialogue", folder.parent, folder.name)
        raise AssertionError("it was to be interrupted")
    except KeyboardInterrupt:
        return
    finally:
        trainer.LetterTrainer.training_step = before  # type: ignore[method-assign]
