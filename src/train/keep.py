"""Results of evaluations, and the weights of the best one, which a training keeps on disk."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState

from src.data import Item
from src.files import full_disk
from src.files.paths import ADAPTER, MODEL
from src.files.sealed import seal
from src.files.writing import sync_folder
from src.model import load, ranks
from src.model.adapters import save_adapter
from src.model.causal import is_sharded
from src.model.recipes import Recipe
from src.model.shards import full_state, local_part
from src.prompt.encode import Example
from src.score.item_scores import ItemScores
from src.score.letters import Scored
from src.train.checkpoints import Checkpoint, Place, remove, remove_others
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


def best_of(history: Sequence[dict[str, Any]], keep: str = "best") -> int:
    """Index of the evaluation with most right items; of equals the one with the lowest log-loss, then the first. With
    the recipe's `keep` at last, the last one.
    """
    if keep == "last":
        return len(history) - 1
    ranks = [(entry["eval_correct"], -entry["eval_log_loss"]) for entry in history]
    return ranks.index(max(ranks))


@dataclass(frozen=True)
class Evaluated:
    """The scores of dev's prompts, or of those of one category, in an evaluation. weights: `weights_digest` of the
    weights that were evaluated.
    """

    scored: Scored
    prompts: Sequence[Example]
    weights: str

    def by(self, network: Any, prompts: Sequence[Example]) -> Scored | None:
        """The scores, if they are those that `network` would give these prompts."""
        same = list(prompts) == list(self.prompts) and weights_digest(network) == self.weights
        return self.scored if same else None


def weights_digest(network: Any) -> str:
    """Of the names and values of all parameters, of a model with adapters of theirs alone."""
    named = dict(network.named_parameters())
    chosen = {name: one for name, one in named.items() if "lora_" in name} or named
    found = hashlib.sha256()
    for name, one in sorted(chosen.items()):
        found.update(f"{name} {one.dtype} {tuple(one.shape)}".encode())
        found.update(one.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


class KeepBest(TrainerCallback):
    """Tells what each evaluation found, keeps the weights of the best one (with `keep: last` those of the last), and
    stops when none was better for a while. It keeps no state beside the trainer's log, so a stopped run can resume.

    The weights are written after the checkpoint of the same step. If that is interrupted, they are those of the
    checkpoint, and are written when training goes on.
    """

    def __init__(self, place: Place, recipe: Recipe, network: Any, tokenizer: Any, items: int) -> None:
        """items: how many dev has."""
        self.recipe, self.network, self.tokenizer, self.items = recipe, network, tokenizer, items
        self.objective = make_objective(recipe)
        self.place, self.target = place, place.folder / weights_name(recipe)
        self.fresh, self.old = (self.target.with_name(f"{self.target.name}.{end}") for end in ("part", "old"))

    def prepare(self, checkpoint: Checkpoint | None) -> None:
        """Removes what an interrupted training left, except what is needed to go on from `checkpoint`."""
        if not ranks.is_first():
            return
        for path in (self.fresh, self.old):
            remove(path)
        if checkpoint is not None:
            remove_others(checkpoint.folder)
        else:
            for name in (MODEL, ADAPTER):
                remove(self.place.folder / name)

    def patience_is_over(self, state: TrainerState) -> bool:
        """Whether enough evaluations have followed the best one that training should stop."""
        history = evaluations(state)
        patience = self.recipe.early_stopping_patience
        return bool(history and patience) and len(history) - 1 - best_of(history) >= (patience or 0)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):  # type: ignore[no-untyped-def]
        history = evaluations(state)
        last = history[-1]
        is_best = self.recipe.keep == "best" and best_of(history) == len(history) - 1
        print(
            f"epoch {last['epoch']:.2f}, step {last['step']}: "
            f"dev accuracy {last['eval_accuracy']:.4f} ({last['eval_correct']}/{self.items}), "
            f"log-loss {last['eval_log_loss']:.4f}{', best so far' if is_best else ''}",
            *([self.objective.measured_words(last)] if self.objective.measures else []),
            sep="\n    ",
            flush=True,
        )
        if self.patience_is_over(state):
            print(f"no better evaluation for {self.recipe.early_stopping_patience}; stopping early")
            control.should_training_stop = True

    def save(self, step: int) -> None:
        """Replaces the kept weights by those of the network, of the evaluation after `step`."""
        if not ranks.is_first():
            if is_sharded(self.network):
                self._state()
            return
        with full_disk.told(f"the weights {self.target.name}", self.place.folder):
            remove(self.fresh)
            self._write(self.fresh)
            seal(self.fresh, {"step": step})
            remove(self.old)
            if self.target.exists():
                self.target.rename(self.old)
            self.fresh.rename(self.target)
            sync_folder(self.place.folder)
            remove(self.old)

    def _write(self, folder: Path) -> None:
        if self.recipe.method == "full":
            self.network.save_pretrained(folder, state_dict=self._state())
        else:
            save_adapter(self.network, folder)
        self.tokenizer.save_pretrained(folder)

    def _state(self) -> dict[str, torch.Tensor]:
        """The weights in main memory, since the GPU's is full. Scoring loads the compute dtype anyway; fp32 masters
        would only double the size. Of a sharded model all ranks have to call this; rank 0 gets it.
        """
        dtype = load.compute_dtype(self.network.device)
        if is_sharded(self.network):
            return full_state(self.network, dtype)
        return {
            key: value.to("cpu", dtype if value.is_floating_point() else None)
            for key, value in self.network.state_dict().items()
        }


def weights_name(recipe: Recipe) -> str:
    """The folder of a run's best weights."""
    return MODEL if recipe.method == "full" else ADAPTER


def sample_weights(network: Any, per_tensor: int = 65536) -> dict[str, torch.Tensor]:
    """Up to `per_tensor` evenly spaced values of every trainable tensor, on the CPU; of sharded ones, of this rank's
    part.
    """
    sample = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            flat = local_part(parameter.detach()).reshape(-1)
            sample[name] = flat[:: max(1, flat.numel() // per_tensor)].clone().cpu()
    return sample


def share_moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """Share of the sampled weights whose value differs."""
    moved = sum(int((before[name] != after[name]).sum()) for name in before)
    return moved / sum(values.numel() for values in before.values())
