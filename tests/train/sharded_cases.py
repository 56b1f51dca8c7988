"""Trainings that whole parameters on one process and sharded ones on two ranks do alike."""

from pathlib import Path
from typing import Any

from src.train import trainer
from src.train.checkpoints import Place
from src.train.fine_tuning import fine_tune
from tests import toys
from tests.made_trainings import CPU, DEV, TRAIN, encoder

ODD = {"qwen2": {"vocab_size": 1411, "tie_word_embeddings": True}, "kogemma": {"vocab_size": 1601}}
"""Of each backbone here: embeddings tied to the head, which two ranks cannot split evenly."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # The last step has one item, so one rank has none.
    "clipped": ("qwen2", {"objective": "answer", "batch_size": 7, "max_grad_norm": 0.05, "loss_per": "token"}),
    # Dialogues of three items: rows of trees, more of them on one rank than on the other, and both recompute.
    "in trees": ("kogemma", {"objective": "ranking", "order": "dialogue", "batch_size": 4, "share_prefixes": "on"}
        | {"gradient_checkpointing": "on", "weight_decay": 0.1}),
}  # fmt: skip
FIRST = "clipped"


def recipe(name: str, place: Path, **changes: Any) -> Any:
    short, settings = CASES[name]
    given = {"method": "full", "optimizer": "fp32", "fsdp": "on", "lr": 1e-4, "epoch": 2, "eval_steps": 2}
    return toys.recipe(place / short, short, **{**given, "name": "made", **settings, **changes})


def trained(name: str, place: Path, folder: str = "", **changes: Any) -> dict[str, Any]:
    """What the record has of a training in `place`."""
    one = recipe(name, place, **changes)
    return fine_tune(one, encoder(one.backbone), TRAIN, DEV, Place.at(place / (folder or name)), CPU).training


def interrupted(place: Path, folder: str) -> None:
    """A training of the first case that ends in its fourth step, with a checkpoint of its second."""
    before = trainer.LetterTrainer.training_step

    def step(self: Any, *given: Any, **keys: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return before(self, *given, **keys)

    trainer.LetterTrainer.training_step = step  # type: ignore[method-assign]
    try:
        trained(FIRST, place, folder)
        raise AssertionError("it was to be interrupted")
    except KeyboardInterrupt:
        return
    finally:
        trainer.LetterTrainer.training_step = before  # type: ignore[method-assign]
