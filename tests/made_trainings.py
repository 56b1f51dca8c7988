"""Trainings of toys, for the tests of training: what they start from, what they record, how they end early."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from src.data import Item
from src.model.load import add_adapter
from src.model.recipes import Recipe
from src.prompt.encode import Encoder, Example
from src.prompt.prompts import parse_prompt
from src.train import trainer
from src.train.checkpoints import Place
from src.train.fine_tuning import Outcome, fine_tune
from src.train.objectives import TokenObjective
from src.tree import rows
from src.tree.rows import Layout
from tests import toys

CPU = torch.device("cpu")
SHORT = parse_prompt(toys.SHORT, "short")
TRAIN, DEV = [*toys.items(5), *toys.items(3, 5, inference_2="짧다.", output="inference_2")], toys.items(6, 8)
SOME = TRAIN[2:7]
"""Of three dialogues, and of both kinds: enough where all layouts compute the same."""
Folder = Callable[[str], Path]
LAYOUTS = {
    "tree": Layout("tree", 10**6, 0),
    "tree rows": Layout("tree", 260, 0),
    "single": Layout("single", 10**6, 0),
    "padded": Layout("padded", 10**6, 0),
    "item by item": Layout("padded", 10**6, 0, sequences=1),
}


def encoder(short: str) -> Encoder:
    return toys.encoder(short, SHORT)


def train(recipe: Recipe, folder: Path, items: list[Item] = TRAIN, dev: list[Item] = DEV) -> Outcome:
    return fine_tune(recipe, encoder(recipe.backbone), items, dev, Place.at(folder), CPU)


def shares(folder: Path, **changes: Any) -> Recipe:
    values = {"share_prefixes": "on", "batch_size": 8, "epoch": 2, "max_grad_norm": 0, "lora_dropout": 0}
    return toys.recipe(folder, "qwen2", **{**values, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def gradients(network: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


class Recorder(trainer.LetterTrainer):
    """Remembers the gradients of each optimizer step, its loss, its rows, and the weights at each evaluation."""

    gradients: list[dict[str, torch.Tensor]]
    losses: list[float]
    rows: list[rows.Row]
    evaluated: list[dict[str, torch.Tensor]]

    def __init__(self, *args: Any, **keys: Any) -> None:
        super().__init__(*args, **keys)
        type(self).gradients, type(self).losses, type(self).rows, type(self).evaluated = [], [], [], []
        recorder = self

        class Look(TrainerCallback):
            def on_pre_optimizer_step(self, *args: Any, **keys: Any) -> None:
                named = recorder.model.named_parameters()
                recorder.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

        self.add_callback(Look())

    def training_step(self, *args: Any, **keys: Any) -> torch.Tensor:
        loss = super().training_step(*args, **keys)
        self.losses.append(loss.item())
        self.rows.extend(args[1]["rows"])
        return loss

    def evaluate(self, *args: Any, **keys: Any) -> dict[str, float]:
        named = self.model.named_parameters()
        self.evaluated.append({name: p.detach().clone() for name, p in named if p.requires_grad})
        return super().evaluate(*args, **keys)


def by_hand(network: Any, one: Encoder, examples: list[Example], objective: str, loss_per: str) -> torch.Tensor:
    """The loss of one optimizer step over `examples`, item by item, without padding."""
    losses, count = [], 0
    for example in examples:
        stop = len(example.ids) if objective == "answer" else example.answer_start + 1
        ids = torch.tensor(example.ids[:stop])
        logprobs = network(input_ids=ids[None]).logits[0].float()
        places = range(example.answer_start, stop)
        if objective == "letters":
            logprobs = logprobs[:, list(one.letter_ids or ())].log_softmax(-1)
            found = [logprobs[place - 1, example.letter] for place in places]
        else:
            logprobs = logprobs.log_softmax(-1)
            found = [logprobs[place - 1, ids[place]] for place in places]
        total = -torch.stack(found).sum()
        losses.append(total / len(places) if loss_per == "item" else total)
        count += 1 if loss_per == "item" else len(places)
    return torch.stack(losses).sum() / count


def assert_gradients(recorder: type[Recorder], expected: dict[str, torch.Tensor]) -> None:
    (found,) = recorder.gradients
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def with_trained_adapters(network: Any, recipe: Recipe) -> Any:
    """`add_adapter` as if training had gone on for a while: a zero B would hide A's gradient. The same each time."""
    adapted = add_adapter(network, recipe)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.1, generator=generator))
    return adapted


class Killed(BaseException):
    """What nobody catches."""


def kill_after(monkeypatch: pytest.MonkeyPatch, passes: int) -> None:
    """Ends the process, as it were, in the forward pass after so many."""
    count = 0
    compute = trainer.LetterTrainer.compute_loss

    def step(self: Any, *args: Any, **keys: Any) -> Any:
        nonlocal count
        count += 1
        if count > passes:
            raise Killed
        return compute(self, *args, **keys)

    monkeypatch.setattr(trainer.LetterTrainer, "compute_loss", step)


def in_trees(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    """Has `change` happen to the logits of rows of trees."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        whole = TokenObjective.outputs

        def changed(self: Any, model: Any, row: rows.Row) -> torch.Tensor:
            outputs = whole(self, model, row)
            return change(outputs) if "end" in row else outputs

        monkeypatch.setattr(TokenObjective, "outputs", changed)

    return plant
