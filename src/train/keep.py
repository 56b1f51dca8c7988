"""Results of evaluations, and what a training keeps on disk: the best weights and one checkpoint to resume from."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from src.data import Item
from src.files.paths import ADAPTER, MODEL
from src.model import load
from src.model.recipes import Recipe
from src.score.item_scores import ItemScores
from src.train.arguments import OPTIMIZERS
from src.train.objectives import make_objective
from src.worth.metrics import evaluate


def dev_metrics(items: Sequence[Item], scores: Sequence[ItemScores]) -> dict[str, float]:
    """Item accuracy, also per category, and the log-loss of the right option in nats."""
    result = evaluate(items, [one.prediction for one in scores])
    labels = [item.label for item in items if item.label is not None]
    log_loss = -math.fsum(one.logprobs[label] for one, label in zip(scores, labels, strict=True)) / len(scores)
    metrics = {f"accuracy_{name}": part.accuracy for name, part in result.per_category.items()}
    return {"accuracy": result.accuracy, "correct": result.correct, "log_loss": log_loss, **metrics}


def evaluations(state: TrainerState) -> list[dict[str, Any]]:
    """The logged results of all evaluations so far: `dev_metrics` under names that begin with `eval_`, and the
    objective's own measures.
    """
    return [entry for entry in state.log_history if "eval_accuracy" in entry]


def best_of(history: Sequence[dict[str, Any]]) -> int:
    """Index of the evaluation with most right items; of equals the one with the lowest log-loss, then the first."""
    ranks = [(entry["eval_correct"], -entry["eval_log_loss"]) for entry in history]
    return ranks.index(max(ranks))


class KeepBest(TrainerCallback):
    """Saves the weights of the best evaluation, and stops when none was better for a while. It keeps no state beside
    the trainer's log, so a stopped run can resume.
    """

    def __init__(self, folder: Path, recipe: Recipe, network: Any, tokenizer: Any, items: int) -> None:
        """items: how many dev has."""
        self.recipe, self.network, self.tokenizer, self.items = recipe, network, tokenizer, items
        self.objective = make_objective(recipe)
        self.target = folder / (MODEL if recipe.method == "full" else ADAPTER)
        self.fresh, self.old = (self.target.with_name(f"{self.target.name}.{end}") for end in ("part", "old"))
        if self.old.is_dir() and not self.target.exists():  # stopped between the two renames of `_save`
            self.old.rename(self.target)

    def patience_is_over(self, state: TrainerState) -> bool:
        """Whether enough evaluations have followed the best one that training should stop."""
        history = evaluations(state)
        patience = self.recipe.early_stopping_patience
        return bool(history and patience) and len(history) - 1 - best_of(history) >= (patience or 0)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):  # type: ignore[no-untyped-def]
        history = evaluations(state)
        last = history[-1]
        is_best = best_of(history) == len(history) - 1
        print(
            f"epoch {last['epoch']:.2f}, step {last['step']}: "
            f"dev accuracy {last['eval_accuracy']:.4f} ({last['eval_correct']}/{self.items}), "
            f"log-loss {last['eval_log_loss']:.4f}{', best so far' if is_best else ''}",
            *([self.objective.measured_words(last)] if self.objective.measures else []),
            sep="\n    ",
            flush=True,
        )
        if is_best and state.is_world_process_zero:
            self._save()
        if self.patience_is_over(state):
            print(f"no better evaluation for {self.recipe.early_stopping_patience}; stopping early")
            control.should_training_stop = True

    def _save(self) -> None:
        for path in (self.fresh, self.old):
            shutil.rmtree(path, ignore_errors=True)
        if self.recipe.method == "full":
            # Scoring loads the compute dtype anyway; fp32 masters would only double the size. The copy is made in main
            # memory, since the GPU's is full.
            dtype = load.compute_dtype(self.network.device)
            state = {
                key: value.to("cpu", dtype if value.is_floating_point() else None)
                for key, value in self.network.state_dict().items()
            }
            self.network.save_pretrained(self.fresh, state_dict=state)
        else:
            # By default peft asks the hub whether the vocabulary has grown.
            self.network.save_pretrained(self.fresh, save_embedding_layers=False)
        self.tokenizer.save_pretrained(self.fresh)
        if self.target.exists():
            self.target.rename(self.old)
        self.fresh.rename(self.target)
        shutil.rmtree(self.old, ignore_errors=True)


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint. `Trainer` writes `trainer_state.json` last, so one without it was cut off, and is
    removed.
    """
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
            whole.append((state["global_step"], str(path)))
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path)
    return max(whole)[1] if whole else None


def optimizer_of(checkpoint: str) -> str:
    """The optimizer whose moments a checkpoint keeps, as in a recipe."""
    arguments = torch.load(f"{checkpoint}/{TRAINING_ARGS_NAME}", weights_only=False)
    return next(name for name, (optim, _) in OPTIMIZERS.items() if optim == arguments.optim)


def sample_weights(network: Any, per_tensor: int = 65536) -> dict[str, torch.Tensor]:
    """Up to `per_tensor` evenly spaced values of every trainable tensor, on the CPU."""
    sample = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            flat = parameter.detach().reshape(-1)
            sample[name] = flat[:: max(1, flat.numel() // per_tensor)].clone().cpu()
    return sample


def share_moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """Share of the sampled weights whose value differs."""
    moved = sum(int((before[name] != after[name]).sum()) for name in before)
    return moved / sum(values.numel() for values in before.values())
