import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch._dynamo.backends.debugging import aot_eager
from transformers import Qwen2ForCausalLM, TrainerCallback

from src.console.cli import UserError
from src.console.progress import PIPE
from src.data import Item
from src.model.load import add_adapter, load_base
from src.model.recipes import Recipe
from src.prompt.encode import Encoder, Example
from src.prompt.prompts import parse_prompt
from src.score.item_scores import ItemScores
from src.score.letters import LetterScorer, Scored
from src.train import guard as guard_room
from src.train import trainer
from src.train.objectives import TokenObjective, make_objective
from src.train.trainer import (
    CHECKPOINTS,
    Outcome,
    best_of,
    dev_metrics,
    fine_tune,
    last_checkpoint,
    sample_weights,
    share_moved,
)
from src.tree import compiler as compiling
from src.tree import layouts, rows
from src.tree import prefix as tree
from src.tree.layouts import by_dialogue
from src.tree.rows import Layout
from tests import toys

CPU = torch.device("cpu")
SHORT = parse_prompt(toys.SHORT, "short")
TRAIN, DEV = [*toys.items(5), *toys.items(3, 5, inference_2="짧다.", output="inference_2")], toys.items(6, 8)
Folder = Callable[[str], Path]


@pytest.fixture(autouse=True)
def stay_eager(request: pytest.FixtureRequest) -> Iterator[None]:
    """torchao compiles its optimizer, half a minute for nothing here; a GPU computes compiled rows alone."""
    with torch.compiler.set_stance("default" if request.node.get_closest_marker("gpu") else "force_eager"):
        yield


def encoder(short: str) -> Encoder:
    return toys.encoder(short, SHORT)


def train(recipe: Recipe, folder: Path, items: list[Item] = TRAIN, dev: list[Item] = DEV) -> Outcome:
    return fine_tune(recipe, encoder(recipe.backbone), items, dev, folder, CPU)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


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


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr(trainer, "LetterTrainer", Recorder)
    return Recorder


@pytest.fixture
def dev_results(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """What the evaluations find, to be filled by the test: right items and log-loss."""
    results: list[tuple[int, float]] = []

    def found(items: Any, rows: Any) -> dict[str, float]:
        correct, log_loss = results.pop(0)
        return {"accuracy": correct / len(items), "correct": correct, "log_loss": log_loss}

    monkeypatch.setattr(trainer, "dev_metrics", found)
    return results


# The loss


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


@pytest.mark.parametrize("share", ["off", "on"])
@pytest.mark.parametrize(
    ("objective", "loss_per", "batches"),
    [
        ("answer", "item", [(8, 1), (1, 8), (2, 4)]),
        ("answer", "token", [(8, 1), (1, 8), (2, 4)]),
        ("letter", "item", [(8, 1), (2, 4)]),
        ("letters", "token", [(1, 8), (4, 2)]),
    ],
)
def test_one_step_is_the_same_in_any_layout(
    objective: str,
    loss_per: str,
    batches: list[tuple[int, int]],
    share: str,
    backbone_folder: Folder,
    tmp_path: Path,
    recorder: type[Recorder],
) -> None:
    one = encoder("kogemma")
    examples = one.for_training(TRAIN)
    assert len({len(example.ids) - example.answer_start for example in examples}) >= 3
    network = toys.network("kogemma")
    expected = by_hand(network, one, examples, objective, loss_per)
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    for batch_size, accumulation in batches:
        recipe = toys.recipe(
            backbone_folder("kogemma"),
            "kogemma",
            method="full",
            objective=objective,
            loss_per=loss_per,
            batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            share_prefixes=share,
            max_grad_norm=0,
            epoch=1,
        )
        outcome = train(recipe, tmp_path / f"{batch_size}")
        assert outcome.training["rows"]["kind"] == ("tree" if share == "on" else "padded")
        assert recorder.losses == [pytest.approx(expected.item(), abs=1e-5)]
        assert_gradients(recorder, gradients)


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


@pytest.mark.parametrize("checkpointing", ["off", "on"])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("short", ["polar", "qwen2", "kogemma"])
def test_one_step_of_rows_that_share_prefixes(
    short: str,
    method: str,
    checkpointing: str,
    backbone_folder: Folder,
    tmp_path: Path,
    recorder: type[Recorder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer.models, "add_adapter", with_trained_adapters)
    monkeypatch.setattr(layouts, "CPU_TREE", 300)  # several rows a step
    recipe = toys.recipe(
        backbone_folder(short),
        short,
        method=method,
        share_prefixes="on",
        gradient_checkpointing=checkpointing,
        batch_size=8,
        lora_dropout=0,
        max_grad_norm=0,
        epoch=1,
    )
    one = encoder(short)
    network = toys.network(short)
    if method == "lora":
        network = with_trained_adapters(load_base(recipe, CPU), recipe)
        for module in network.modules():
            vars(module).pop("forward", None)  # peft's own
    expected = by_hand(network, one, one.for_training(TRAIN), "answer", "item")
    expected.backward()
    outcome = train(recipe, tmp_path)
    assert recorder.losses == [pytest.approx(expected.item(), abs=1e-5)]
    assert_gradients(recorder, {name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert len(recorder.rows) > 1 and all(row["input_ids"].shape[1] <= 300 for row in recorder.rows)
    assert outcome.training["gradient_checkpointing"] == (checkpointing == "on")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_six_steps_end_in_the_same_weights(method: str, backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(
        backbone_folder("qwen2"), "qwen2", method=method, epoch=3, batch_size=4, lora_dropout=0, lr=1e-4
    )
    outcomes = {share: train(recipe.replace(share_prefixes=share), tmp_path / share) for share in ("on", "off")}
    assert [one.training["steps"] for one in outcomes.values()] == [6, 6]
    assert [one.training["rows"]["kind"] for one in outcomes.values()] == ["tree", "padded"]
    ours, usual = (weights(tmp_path / share / CHECKPOINTS / "checkpoint-6") for share in ("on", "off"))
    assert ours.keys() == usual.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, usual[name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    moved = (
        [(value - toys.network("qwen2").state_dict()[name]).abs().max() for name, value in ours.items()]
        if method == "full"
        else [value.abs().max() for name, value in ours.items() if "lora_B" in name]
    )
    assert min(moved) > 1e-4, "the steps moved them by more"
    logged = [one.training["evaluations"] for one in outcomes.values()]
    for one, other in zip(*logged, strict=True):
        assert one["eval_log_loss"] == pytest.approx(other["eval_log_loss"], abs=1e-4)


def test_the_last_step_of_an_epoch_may_be_smaller(
    backbone_folder: Folder, tmp_path: Path, recorder: type[Recorder]
) -> None:
    # 8 items in steps of 3: the third is divided by 2, not by 3.
    recipe = toys.recipe(
        backbone_folder("qwen2"), "qwen2", method="full", lr=1e-30, batch_size=1, gradient_accumulation_steps=3, epoch=1
    )
    train(recipe, tmp_path)
    one = encoder("qwen2")
    each = by_hand(toys.network("qwen2"), one, one.for_training(TRAIN), "answer", "item")
    assert len(recorder.gradients) == len(recorder.losses) == 3
    total = sum(recorder.losses[:2]) * 3 + recorder.losses[2] * 2
    assert total / 8 == pytest.approx(each.item(), abs=1e-4)


def test_collate_by_hand(backbone_folder: Folder) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2")
    examples = [Example("a", "012", (5, 6, 7, 8), 2, 0), Example("b", "012", (5, 9), 1, 1)]
    (row,) = make_objective(recipe).collate(examples, Layout("padded", 100, 0))
    assert row["input_ids"].tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    # A token is predicted at the place in front of it.
    assert row["source"].tolist() == [[False, True, True, False], [True, False, False, False]]
    assert (row["target"].tolist(), row["weight"].tolist()) == ([7, 8, 9], [0.5, 0.5, 1])
    (row,) = make_objective(recipe.replace(loss_per="token")).collate(examples, Layout("tree", 100, 0))
    assert row["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert (row["source"].tolist(), row["target"].tolist(), row["weight"].tolist()) == ([1, 2, 0], [7, 8, 9], [1, 1, 1])


def test_what_each_objective_supervises(backbone_folder: Folder) -> None:
    one = encoder("bllossom")
    examples = one.for_training(TRAIN)
    recipe = toys.recipe(backbone_folder("bllossom"), "bllossom")
    assert make_objective(recipe).examples(one, TRAIN) == examples
    for objective in ("letter", "letters"):
        cut = make_objective(recipe.replace(objective=objective)).examples(one, TRAIN)
        assert [len(short.ids) - short.answer_start for short in cut] == [1] * len(cut)
        assert one.letter_ids is not None
        assert [short.ids[-1] for short in cut] == [one.letter_ids[item.label or 0] for item in TRAIN]


# Evaluations and what is kept


def test_dev_metrics_by_hand() -> None:
    items = toys.items(3)
    logits = ((2.0, 0.0, 0.0), (3.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    rows = [ItemScores(item.id, ("012",), (row,)) for item, row in zip(items, logits, strict=True)]
    found = dev_metrics(items, rows)
    right = [math.exp(2) / (math.exp(2) + 2), 1 / (math.exp(3) + 2), math.e / (math.e + 2)]
    assert (found["accuracy"], found["correct"]) == (2 / 3, 2)
    assert found["log_loss"] == pytest.approx(-sum(map(math.log, right)) / 3)
    by_category = {items[0].category: 1.0, items[1].category: 0.0, items[2].category: 1.0}
    assert {key: value for key, value in found.items() if key.startswith("accuracy_")} == {
        f"accuracy_{category}": value for category, value in by_category.items()
    }


@given(st.lists(st.tuples(st.integers(0, 605), st.floats(0, 1e6)), min_size=1, max_size=8))
def test_the_best_has_most_right_then_the_lowest_log_loss_then_is_first(pairs: list[tuple[int, float]]) -> None:
    best = best_of([{"eval_correct": correct, "eval_log_loss": log_loss} for correct, log_loss in pairs])
    most = max(correct for correct, _ in pairs)
    lowest = min(log_loss for correct, log_loss in pairs if correct == most)
    assert best == pairs.index((most, lowest))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_best_evaluation_is_kept_not_the_last(
    method: str,
    backbone_folder: Folder,
    tmp_path: Path,
    recorder: type[Recorder],
    dev_results: list[tuple[int, float]],
) -> None:
    dev_results += [(2, 0.5), (4, 1.0), (4, 0.9), (4, 0.9), (3, 0.1)]
    recipe = toys.recipe(backbone_folder("polar"), "polar", method=method, epoch=5, batch_size=4)
    outcome = train(recipe, tmp_path)
    assert outcome.training["best_step"] == 6 and outcome.training["steps"] == 10
    assert [entry["eval_correct"] for entry in outcome.training["evaluations"]] == [2, 4, 4, 4, 3]
    kept = weights(tmp_path / ("adapter" if method == "lora" else "model"))
    third = {name.replace(".default", ""): value for name, value in recorder.evaluated[2].items()}
    assert equal(kept, third) and not equal(kept, weights(tmp_path / CHECKPOINTS / "checkpoint-10"))
    # The best, and one checkpoint to go on from; nothing else.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [CHECKPOINTS, "adapter" if method == "lora" else "model"]
    )
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["checkpoint-10"]


def test_early_stopping_and_going_on_after_it(
    backbone_folder: Folder, tmp_path: Path, recorder: type[Recorder], dev_results: list[tuple[int, float]]
) -> None:
    dev_results += [(2, 1.0), (4, 1.0), (4, 1.1), (3, 0.1), (6, 0.0)]
    recipe = toys.recipe(
        backbone_folder("polar"), "polar", method="full", epoch=5, batch_size=4, early_stopping_patience=2
    )
    outcome = train(recipe, tmp_path)
    assert (outcome.training["steps"], outcome.training["best_step"]) == (8, 4)
    assert dev_results == [(6, 0.0)]
    # A run that was stopped before its record was written does not train on.
    again = train(recipe, tmp_path)
    assert dev_results == [(6, 0.0)] and recorder.gradients == []
    same = ("steps", "best_step", "evaluations", "loss", "weights_moved")
    assert {key: again.training[key] for key in same} == {key: outcome.training[key] for key in same}


def test_evaluations_by_steps(backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=1, batch_size=1, eval_steps=3)
    outcome = train(recipe, tmp_path)
    # The end is looked at too.
    assert [entry["step"] for entry in outcome.training["evaluations"]] == [3, 6, 8]
    few = train(recipe.replace(eval_steps=100), tmp_path / "few")
    assert [entry["step"] for entry in few.training["evaluations"]] == [8]


def test_the_kept_adapter_scores_as_it_did_in_training(backbone_folder: Folder, tmp_path: Path) -> None:
    from src.model.load import load_run

    recipe = toys.recipe(backbone_folder("kogemma"), "kogemma", epoch=3, objective="letters")
    outcome = train(recipe, tmp_path)
    one = encoder("kogemma")
    examples = one.for_scoring(DEV)
    found = LetterScorer(load_run(tmp_path, recipe, CPU), one.letter_ids or (), one.pad_id).score(examples)
    best = outcome.training["evaluations"][best_of(outcome.training["evaluations"])]
    assert dev_metrics(DEV, found.items)["log_loss"] == pytest.approx(best["eval_log_loss"], abs=1e-6)


def test_training_learns(backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=12, lr=1e-2, objective="letters", lora_dropout=0)
    items = toys.items(8)
    outcome = train(recipe, tmp_path, items, items)
    assert outcome.training["evaluations"][-1]["eval_accuracy"] == 1.0
    assert outcome.training["effective_batch"] == 2 and outcome.training["steps"] == 48


# Going on


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


@pytest.mark.parametrize(
    ("method", "share"), [("lora", "off"), ("full", "off"), ("qlora", "off"), ("lora", "on"), ("full", "on")]
)
def test_two_epochs_and_two_are_four_bit_for_bit(
    method: str,
    share: str,
    backbone_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorder: type[Recorder],
) -> None:
    recipe = toys.recipe(
        backbone_folder("qwen2it"),
        "qwen2it",
        method=method,
        share_prefixes=share,
        epoch=4,
        lr=1e-3,
        lora_dropout=0.3,
        warmup_steps=0.1,
    )
    straight = train(recipe, tmp_path / "straight")
    with monkeypatch.context() as patch:
        kill_after(patch, 10)  # 4 passes an epoch: in the third
        with pytest.raises(Killed):
            train(recipe, tmp_path / "halved")
    # Only the second epoch's checkpoint is left; a third one was begun.
    half = tmp_path / "halved" / CHECKPOINTS / "checkpoint-12"
    shutil.copytree(half.with_name("checkpoint-8"), half)
    (half / "trainer_state.json").unlink()
    halved = train(recipe, tmp_path / "halved")
    assert halved.training["resumed_from"] == str(half.with_name("checkpoint-8"))
    assert len(recorder.losses) == 8, "what was trained is not trained again"
    name = "model" if method == "full" else "adapter"
    assert equal(weights(tmp_path / "halved" / name), weights(tmp_path / "straight" / name))
    last = f"{CHECKPOINTS}/checkpoint-16"
    assert equal(weights(tmp_path / "halved" / last), weights(tmp_path / "straight" / last))
    for key in ("steps", "best_step", "evaluations"):
        assert halved.training[key] == straight.training[key], key
    assert halved.training.get("weights_moved") == straight.training.get("weights_moved")
    assert [path.name for path in (tmp_path / "halved" / CHECKPOINTS).iterdir()] == ["checkpoint-16"]
    # And a run that was stopped after its last step only looks at what it has.
    done = train(recipe, tmp_path / "halved")
    assert (done.training["evaluations"], done.training["steps"]) == (straight.training["evaluations"], 16)
    assert recorder.losses == []


@pytest.mark.parametrize("share", ["off", "on"])
def test_dialogue_by_dialogue_and_going_on_within_an_epoch(
    share: str, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: type[Recorder]
) -> None:
    # Three dialogues of three items.
    items = toys.items(9)
    examples = encoder("qwen2").for_training(items)
    drawn: list[list[str]] = []
    whole = TokenObjective.collate

    def noted(self: Any, step: Any, *rest: Any) -> Any:
        drawn.append([one.id for one in step])
        return whole(self, step, *rest)

    recipe = toys.recipe(
        backbone_folder("qwen2"),
        "qwen2",
        order="dialogue",
        share_prefixes=share,
        batch_size=3,
        epoch=3,
        eval_steps=2,
        lora_dropout=0.3,
        seed=3,
    )
    with monkeypatch.context() as patch:
        patch.setattr(TokenObjective, "collate", noted)
        patch.setattr(trainer, "guarded", lambda *trainer: None)  # which draws its own
        straight = train(recipe, tmp_path / "straight", items)
        expected = [
            [examples[number].id for number in by_dialogue(examples, f"3-{epoch}")[start : start + 3]]
            for epoch in range(3)
            for start in (0, 3, 6)
        ]
        assert drawn == expected
        dialogue = {one.id: one.dialogue for one in examples}
        assert all(len({dialogue[id] for id in step}) == 1 for step in drawn), "a step is a dialogue"
        assert len({str(drawn[start : start + 3]) for start in (0, 3, 6)}) == 3, "each epoch is drawn anew"
        kill_after(patch, 5)
        with pytest.raises(Killed):
            train(recipe, tmp_path / "halved", items)
    drawn.clear()
    monkeypatch.setattr(TokenObjective, "collate", noted)
    monkeypatch.setattr(trainer, "guarded", lambda *trainer: None)
    halved = train(recipe, tmp_path / "halved", items)
    assert str(halved.training["resumed_from"]).endswith("checkpoint-4"), "one step into the second epoch"
    assert len(recorder.losses) == 5 and drawn[-5:] == expected[4:]
    for folder in ("adapter", f"{CHECKPOINTS}/checkpoint-9"):
        assert equal(weights(tmp_path / "halved" / folder), weights(tmp_path / "straight" / folder))
    assert halved.training["evaluations"] == straight.training["evaluations"]


def test_what_counts_as_a_checkpoint(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step, state in (
        (900, "{}"),
        (1000, '{"global_step": 1000}'),
        (1100, '{"global_st'),
        (80, '{"global_step": 80}'),
    ):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state, encoding="utf-8")
    (tmp_path / "checkpoint-1200").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1000")


def test_stopped_between_two_renames(backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=1)
    train(recipe, tmp_path)
    before = weights(tmp_path / "adapter")
    (tmp_path / "adapter").rename(tmp_path / "adapter.old")
    train(recipe, tmp_path)
    assert equal(weights(tmp_path / "adapter"), before) and not (tmp_path / "adapter.old").exists()


def test_the_same_seed_gives_the_same_run(backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=1)
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        torch.rand(len(name))  # what happened before does not matter
        train(recipe.replace(seed=seed), tmp_path / name)
    one, again, other = (weights(tmp_path / name / "adapter") for name in ("one", "again", "other"))
    assert equal(one, again) and not equal(one, other)


def test_everything_random_has_the_seed_of_the_recipe(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    class Seeds(trainer.LetterTrainer):
        def __init__(self, network: Any, arguments: Any, **keys: Any) -> None:
            super().__init__(network, arguments, **keys)
            seeds.append((arguments.seed, arguments.data_seed, torch.initial_seed()))

    monkeypatch.setattr(trainer, "LetterTrainer", Seeds)
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=1, seed=7)
    train(recipe, tmp_path)
    assert seeds == [(7, 7, 7)]


# Rows against the usual way


def shares(folder: Path, **changes: Any) -> Recipe:
    values = {"share_prefixes": "on", "batch_size": 8, "epoch": 2, "max_grad_norm": 0, "lora_dropout": 0}
    return toys.recipe(folder, "qwen2", **{**values, **changes})


def test_the_record_says_how_rows_were_made(
    backbone_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = shares(backbone_folder("qwen2"), lora_dropout=0.05)
    outcome = train(recipe, tmp_path / "tree")
    found = outcome.training["rows"]
    guard = found.pop("guard")
    examples = encoder("qwen2").for_training(TRAIN)
    raw = sum(len(one.ids) for one in examples)
    computed = sum(rows.sizes([one.ids for one in examples], Layout("tree", layouts.CPU_TREE, 0)))
    assert raw > 1.1 * computed
    assert found == {
        "kind": "tree",
        "lengths": None,
        "tokens": layouts.CPU_TREE,
        "sharing": pytest.approx(raw / computed),
        "dropout": "one mask for each shared token",
    }
    keys = {"loss", "gradient_norm", "letter_logits_gap", "letter_logits_allowed", "agree"}
    assert guard.keys() == keys and guard["agree"]
    said = capsys.readouterr().out
    assert f"rows that hold shared prefixes once, {raw / computed:.2f} tokens for each that is computed" in said
    assert "WARNING" not in said
    padded = train(recipe.replace(share_prefixes="off"), tmp_path / "padded").training["rows"]
    assert (padded["kind"], padded["sharing"], padded["dropout"], padded["guard"]) == ("padded", 1.0, "usual", None)
    assert "items side by side" in capsys.readouterr().out
    none = train(shares(backbone_folder("qwen2"), epoch=1), tmp_path / "none").training["rows"]
    assert (none["kind"], none["dropout"]) == ("tree", "usual")


def test_full_fine_tuning_has_no_dropout(backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = shares(backbone_folder("qwen2"), method="full", lora_dropout=0.05, epoch=1)
    assert train(recipe, tmp_path).training["rows"]["dropout"] == "usual"


@pytest.mark.parametrize(("share", "kind"), [("off", "padded"), ("on", None)])
def test_without_shared_prefixes_dev_is_read_without_them(
    share: str, kind: str | None, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = []

    score = LetterScorer.score

    def noted(*args: Any, **keys: Any) -> Scored:
        kinds.append(keys["kind"])
        return score(*args, **keys)

    monkeypatch.setattr(LetterScorer, "score", noted)
    train(shares(backbone_folder("qwen2"), share_prefixes=share), tmp_path)
    assert kinds == [kind, kind]


@pytest.mark.parametrize(("objective", "loss_per"), [("answer", "item"), ("answer", "token"), ("letters", "item")])
def test_the_guard_compares_two_items_of_each_of_two_dialogues(
    objective: str, loss_per: str, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.models, "add_adapter", with_trained_adapters)
    recipe = shares(backbone_folder("qwen2"), objective=objective, loss_per=loss_per, epoch=1, lora_dropout=0.3)
    probed: list[Any] = []
    probe = guard_room.probe

    def noted(self: Any, examples: Any, layout: Layout, **keys: Any) -> Any:
        probed.append((examples, probe(self, examples, layout, **keys)))
        assert not any(one.grad is not None for one in self.model.parameters()), "nothing is left of it"
        assert all(module.training for module in self.model.modules() if isinstance(module, torch.nn.Dropout))
        assert not self.network.is_gradient_checkpointing
        return probed[-1][1]

    monkeypatch.setattr(guard_room, "probe", noted)
    guard = train(recipe, tmp_path).training["rows"]["guard"]
    (examples, ours), (_, theirs), (_, rounded) = probed
    assert rounded.loss == pytest.approx(theirs.loss, rel=1e-4) and rounded.letters != theirs.letters
    assert len(examples) == len({one.id for one in examples}) == 4
    assert sorted([one.dialogue for one in examples].count(name) for name in {one.dialogue for one in examples}) == [
        2,
        2,
    ]
    # As at the start, without dropout.
    one = encoder("qwen2")
    network = with_trained_adapters(load_base(recipe, CPU), recipe).eval()
    full = {example.id: example for example in one.for_training(TRAIN)}
    chosen = [full[example.id] for example in examples]
    expected = by_hand(network, one, chosen, objective, "item" if objective == "letters" else loss_per)
    expected.backward()
    norm = sum(p.grad.square().sum().item() for p in network.parameters() if p.grad is not None) ** 0.5
    for probe in (ours, theirs):
        assert probe.loss == pytest.approx(expected.item(), rel=1e-5)
        assert probe.norm == pytest.approx(norm, rel=1e-4)
    with torch.no_grad():
        letters = [
            network(input_ids=torch.tensor([example.ids])).logits[
                0, example.answer_start - 1, list(one.letter_ids or ())
            ]
            for example in chosen
        ]
    for probe in (ours, theirs):
        torch.testing.assert_close(torch.tensor(probe.letters), torch.cat(letters), atol=1e-4, rtol=0)
    assert guard["loss"] == [ours.loss, theirs.loss] and guard["gradient_norm"] == [ours.norm, theirs.norm]
    assert guard["letter_logits_gap"] < 1e-4 and guard["agree"]


def test_the_guard_leaves_no_trace(backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = shares(backbone_folder("qwen2"), lora_dropout=0.3)
    train(recipe, tmp_path / "guarded")
    monkeypatch.setattr(trainer, "guarded", lambda *trainer: None)
    train(recipe, tmp_path / "not")
    assert equal(weights(tmp_path / "guarded" / "adapter"), weights(tmp_path / "not" / "adapter"))


def one_key_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    visible = tree.visible

    def seen(depth: torch.Tensor, end: torch.Tensor, window: int | None = None) -> torch.Tensor:
        # Whatever stands in front, on another branch or not.
        return visible(depth, end, window) | torch.eye(len(end), dtype=torch.bool).roll(1, 0).tril()

    monkeypatch.setattr(tree, "visible", seen)


def in_trees(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    """Has `change` happen to the logits of rows of trees."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        whole = TokenObjective.outputs

        def changed(self: Any, model: Any, row: rows.Row) -> torch.Tensor:
            outputs = whole(self, model, row)
            return change(outputs) if "end" in row else outputs

        monkeypatch.setattr(TokenObjective, "outputs", changed)

    return plant


def scaled_gradient(logits: torch.Tensor) -> torch.Tensor:
    return logits.detach() + 1.01 * (logits - logits.detach())


def dearer(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TokenObjective.loss

    def weighed(self: Any, outputs: torch.Tensor, row: rows.Row, *rest: Any) -> torch.Tensor:
        loss = whole(self, outputs, row, *rest)
        return loss + 0.01 * loss.detach() if "end" in row else loss

    monkeypatch.setattr(TokenObjective, "loss", weighed)


@pytest.mark.parametrize(
    ("plant", "differs"),
    [
        (one_key_too_many, {"letter_logits_gap"}),
        (dearer, {"loss"}),
        (in_trees(scaled_gradient), {"gradient_norm"}),
        (in_trees(lambda logits: logits + 0.01), {"letter_logits_gap"}),
    ],
    ids=["visible", "loss", "gradient", "letters"],
)
def test_a_defect_of_the_rows_is_found_and_training_goes_on_without_them(
    plant: Callable[[pytest.MonkeyPatch], None],
    differs: set[str],
    backbone_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorder: type[Recorder],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = shares(backbone_folder("qwen2"), epoch=1, lora_dropout=0.05)
    plant(monkeypatch)
    outcome = train(recipe, tmp_path)
    said = capsys.readouterr().out
    assert "WARNING: rows of shared prefixes compute something else here: {'loss': " in said
    assert "training one by one" in said
    found = outcome.training["rows"]
    guard = found.pop("guard")
    assert guard["agree"] is False
    apart = {name for name in ("loss", "gradient_norm") if abs(guard[name][0] / guard[name][1] - 1) > 1e-3}
    apart |= {"letter_logits_gap"} if guard["letter_logits_gap"] > 1e-3 else set()
    assert apart == differs
    assert (found["kind"], found["sharing"], found["dropout"]) == ("padded", 1.0, "usual")
    assert all(row["input_ids"].shape[0] == 1 and "end" not in row for row in recorder.rows) and len(recorder.rows) == 8
    assert outcome.training["steps"] == 1 and len(outcome.training["evaluations"]) == 1
    # What is trained then is right.
    padded = train(recipe.replace(share_prefixes="off", lora_dropout=0), tmp_path / "usual")
    again = train(recipe.replace(lora_dropout=0), tmp_path / "again")
    for name, value in weights(tmp_path / "usual" / "adapter").items():
        torch.testing.assert_close(value, weights(tmp_path / "again" / "adapter")[name], atol=1e-5, rtol=0)
    log_losses = [run.training["evaluations"][0]["eval_log_loss"] for run in (padded, again)]
    assert log_losses[0] == pytest.approx(log_losses[1], abs=1e-5)


def every_branch_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tree, "visible", lambda depth, end, window=None: torch.ones(len(end), len(end), dtype=torch.bool).tril()
    )


def places_instead_of_depths(monkeypatch: pytest.MonkeyPatch) -> None:
    build = tree.build

    def built(sequences: Any) -> tree.Tree:
        row = build(sequences)
        return dataclasses.replace(row, depth=np.arange(len(row)))

    monkeypatch.setattr(tree, "build", built)


@pytest.mark.parametrize("plant", [every_branch_seen, places_instead_of_depths])
@pytest.mark.parametrize("short", ["qwen2", "kogemma"])
def test_what_a_gpu_is_allowed_to_round_hides_no_wrong_mask_or_position(
    plant: Callable[[pytest.MonkeyPatch], None],
    short: str,
    backbone_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard_room, "SHARE", {"cpu": guard_room.SHARE["cuda"]})
    for name in ("EPSILON", "LEAST"):
        monkeypatch.setattr(guard_room, name, {"cpu": getattr(guard_room, name)["cuda"]})
    recipe = toys.recipe(backbone_folder(short), short, share_prefixes="on", batch_size=8, epoch=1, lora_dropout=0)
    assert train(recipe, tmp_path / "sound").training["rows"]["guard"]["agree"]
    plant(monkeypatch)
    guard = train(recipe, tmp_path / "defect").training["rows"]["guard"]
    assert not guard["agree"], guard


@pytest.mark.parametrize("sound", [True, False])
def test_compiled_rows_and_the_way_back_from_them(
    sound: bool, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: type[Recorder]
) -> None:
    made: list[Any] = []
    whole = trainer.make_trainer
    monkeypatch.setattr(trainer, "make_trainer", lambda *args, **keys: made.append(whole(*args, **keys)) or made[0])
    monkeypatch.setattr(trainer.models, "add_adapter", with_trained_adapters)
    recipe = shares(backbone_folder("polar"), backbone="polar", gradient_checkpointing="on", epoch=1)
    one = encoder("polar")
    network = with_trained_adapters(load_base(recipe, CPU), recipe)
    expected = by_hand(network, one, one.for_training(TRAIN), "answer", "item")
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    checkpointed: list[Any] = []
    through = rows.checkpoint
    monkeypatch.setattr(
        rows, "checkpoint", lambda *args, **keys: checkpointed.append(args[0]) or through(*args, **keys)
    )
    with toys.compiled_on_a_cpu(monkeypatch):
        if not sound:
            in_trees(lambda logits: logits + 0.01)(monkeypatch)
        outcome = train(recipe, tmp_path)
        causal = made[0].network.get_base_model()
        found = outcome.training["rows"]
        assert found["guard"]["agree"] == sound
        if sound:
            assert (found["kind"], causal.config._attn_implementation) == ("tree", rows.ATTENTION)
            assert found["tokens"] == found["lengths"][-1] and len(recorder.rows) == 1
            assert not causal.is_gradient_checkpointing and len(checkpointed) % len(causal.model.layers) == 0
            assert len({id(layer) for layer in checkpointed}) == len(causal.model.layers), "each compiled layer"
            assert recorder.rows[0]["input_ids"].shape[1] in found["lengths"]
        else:
            assert (found["kind"], causal.config._attn_implementation) == ("padded", "sdpa")
            assert causal.is_gradient_checkpointing, "as the recipe has it"
            assert not any(layer._compiled_call_impl for layer in causal.model.layers)
    assert recorder.losses == [pytest.approx(expected.item(), abs=1e-4)]
    for name, gradient in recorder.gradients[0].items():
        torch.testing.assert_close(gradient, gradients[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was compiled in vain before."""
    monkeypatch.setattr(compiling, "_reasons", [])


def compiling_fails(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Has compiling a layer fail while the list it gives holds something."""
    failing: list[bool] = []

    def backend(graph: Any, inputs: Any) -> Any:
        if failing:
            raise OSError("Read-only file system")
        return aot_eager(graph, inputs)

    def compile_layer(layer: Any, **keys: Any) -> None:
        layer._compiled_call_impl = torch.compile(layer._call_impl, backend=backend, **keys)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_layer)
    return failing


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("objective", ["answer", "orpo"])
@pytest.mark.parametrize("when", ["guard", "forward", "backward", "evaluation"])
def test_compiling_that_fails_costs_no_step_and_is_in_the_record(
    when: str,
    objective: str,
    backbone_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorder: type[Recorder],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = shares(backbone_folder("qwen2"), objective=objective, batch_size=4, epoch=2)
    usual = train(recipe.replace(share_prefixes="off"), tmp_path / "usual")
    expected, losses = weights(tmp_path / "usual" / "adapter"), list(recorder.losses)
    with toys.compiled_on_a_cpu(monkeypatch):
        failing = compiling_fails(monkeypatch)
        if when == "guard":
            failing.append(True)

        def from_here_on(*args: Any, **keys: Any) -> None:
            torch._dynamo.reset()
            failing.append(True)

        def before(room: Any, name: str, at: int) -> None:
            whole, calls = getattr(room, name), []

            def call(*args: Any, **keys: Any) -> Any:
                calls.append(name)
                if len(calls) == at:
                    from_here_on()
                return whole(*args, **keys)

            monkeypatch.setattr(room, name, call)

        if when == "forward":
            before(Recorder, "training_step", 2)
        if when == "evaluation":
            before(LetterScorer, "score", 1)
        if when == "backward":
            left, accumulate = [2], trainer.LetterTrainer._accumulate

            def fails_late(self: Any, *args: Any) -> Any:
                loss = accumulate(self, *args)
                left[0] -= 1
                if left[0] == 0:  # gradients are there already
                    raise RuntimeError("no message") from torch._dynamo.exc.InternalTorchDynamoError("in triton")
                return loss

            monkeypatch.setattr(trainer.LetterTrainer, "_accumulate", fails_late)
        outcome = train(recipe.replace(share_prefixes="auto"), tmp_path / "fails")
    found = outcome.training["rows"]
    assert found["kind"] == "padded" and (found["guard"] is None) == (when == "guard")
    assert found["obstacle"].startswith("compiling failed (") and compiling.gave_up() == found["obstacle"]
    said = capsys.readouterr().out
    assert said.count(f"nothing is compiled and no prefixes are shared: {found['obstacle']}. It goes on") == 1
    assert outcome.training["steps"] == usual.training["steps"]
    assert recorder.losses == pytest.approx(losses, abs=1e-4)
    for name, value in weights(tmp_path / "fails" / "adapter").items():
        torch.testing.assert_close(value, expected[name], atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.usefixtures("fresh")
def test_a_machine_that_cannot_compile_is_known_before_weights_are_loaded(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = shares(backbone_folder("qwen2"), share_prefixes="auto", epoch=1)
    order: list[str] = []
    load = trainer.load_for_training

    def loading(*args: Any) -> Any:
        order.append(capsys.readouterr().out)
        return load(*args)

    monkeypatch.setattr(trainer, "load_for_training", loading)
    monkeypatch.setattr(layouts, "WORTHWHILE", 1.1)  # the toys share little
    monkeypatch.setattr(compiling, "obstacle", lambda device: "there is no C compiler (apt-get install gcc)")
    found = train(recipe, tmp_path / "auto").training["rows"]
    assert found["kind"] == "padded" and found["obstacle"] == "there is no C compiler (apt-get install gcc)"
    (said,) = [line for line in order[0].splitlines() if "nothing is compiled" in line]
    sequences = [one.ids for one in encoder("qwen2").for_training(TRAIN)]
    times = compiling.QUICKER * sum(map(len, sequences)) / len(tree.build(sequences))
    assert "no C compiler (apt-get install gcc). It goes on" in said and f"about {times:.1f} times slower" in said
    with pytest.raises(UserError, match=r"share_prefixes is on, but there is no C compiler .* Leave it at auto"):
        train(recipe.replace(share_prefixes="on"), tmp_path / "on")
    assert len(order) == 1


@pytest.mark.usefixtures("fresh")
def test_an_optimizer_that_cannot_be_compiled_takes_its_steps_all_the_same(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiling, "try_out", lambda device: "compiling failed (InvalidCxxCompiler: no g++)")
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", method="full", optimizer="bf16-stochastic", epoch=1)
    with torch.compiler.set_stance("default"):
        found = train(recipe, tmp_path).training
    assert found["optimizer"] == "bf16-stochastic" and found["weights_moved"] > 0 and "obstacle" not in found["rows"]
    assert "the optimizer is not compiled: compiling failed (InvalidCxxCompiler: no g++)" in capsys.readouterr().out


def test_the_bar_has_the_steps_loss_and_learning_rate(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    monkeypatch.setenv(PIPE, str(writing))
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", batch_size=2, epoch=3, warmup_steps=0)
    train(recipe, tmp_path)
    os.close(writing)
    with os.fdopen(reading) as lines:
        events = [json.loads(line) for line in lines]
    assert {(event["stage"], event["total"]) for event in events} == {("train", 12)} and events[-1]["done"] == 12
    assert re.fullmatch(r"loss \d\.\d{4}, lr \d\.\d\de[+-]\d\d", events[-1]["note"])


def test_what_larger_steps_would_share_is_said(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", batch_size=1, epoch=1)
    with toys.compiled_on_a_cpu(monkeypatch):
        assert train(recipe, tmp_path / "little").training["rows"]["kind"] == "single"
        assert "share too little" not in capsys.readouterr().out, "these would share little in larger steps, too"
        monkeypatch.setattr(trainer, "WORTHWHILE", 1.1)
        assert train(recipe, tmp_path / "enough").training["rows"]["kind"] == "single"
    sequences = [one.ids for one in encoder("qwen2").for_training(TRAIN)]
    fewer = sum(map(len, sequences)) / len(tree.build(sequences))
    said = f"steps of one item share too little. --batch_size 16 --order dialogue would compute {fewer:.1f} times fewer"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("failures", "tokens"), [(1, 768), (2, 512), (4, 256)])
def test_rows_that_do_not_fit_into_memory_become_shorter(
    failures: int,
    tokens: int,
    backbone_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorder: type[Recorder],
    capsys: pytest.CaptureFixture[str],
) -> None:
    left = [failures]
    whole = guard_room.probe

    def crowded(self: Any, *args: Any, **keys: Any) -> Any:
        if left[0]:
            left[0] -= 1
            trained = next(parameter for parameter in self.network.parameters() if parameter.requires_grad)
            trained.grad = torch.ones_like(trained)  # half of a backward pass
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert all(parameter.grad is None for parameter in self.network.parameters())
        return whole(self, *args, **keys)

    monkeypatch.setattr(guard_room, "probe", crowded)
    found = train(shares(backbone_folder("qwen2"), epoch=1), tmp_path).training["rows"]
    assert (found["kind"], found["tokens"], found["lengths"]) == ("tree", tokens, (tokens,)) and found["guard"]["agree"]
    assert {row["input_ids"].shape[1] for row in recorder.rows} == {tokens}
    assert "rows of 1,024 tokens do not fit into memory; trying 768" in capsys.readouterr().out


def test_when_not_even_the_shortest_rows_fit(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crowded(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(guard_room, "probe", crowded)
    # The longest item has 134 tokens.
    with pytest.raises(
        UserError, match=r"not even rows of 256 tokens fit into the GPU's memory. .*gradient_checkpointing"
    ):
        train(shares(backbone_folder("qwen2")), tmp_path)


def test_a_model_that_cannot_branch_is_trained_side_by_side(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=1)
    usual = train(recipe.replace(share_prefixes="off"), tmp_path / "usual")
    monkeypatch.setattr(Qwen2ForCausalLM, "_is_stateful", True)
    found = train(recipe, tmp_path / "stateful").training
    assert found["rows"]["kind"] == "padded" and "qwen2 carries a state" in found["rows"]["obstacle"]
    assert "no prefixes are shared: qwen2 carries a state" in capsys.readouterr().out
    assert found["evaluations"][0]["eval_log_loss"] == usual.training["evaluations"][0]["eval_log_loss"]
    with pytest.raises(UserError, match=r"qwen2: share_prefixes is on, but qwen2 carries a state.* Leave it at auto"):
        train(recipe.replace(share_prefixes="on"), tmp_path / "asked")


def test_a_run_goes_on_with_the_optimizer_of_its_checkpoint(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", method="full", lr=1e-3, epoch=3)
    with monkeypatch.context() as patch:
        kill_after(patch, 6)
        with pytest.raises(Killed):
            train(recipe.replace(optimizer="bf16-stochastic"), tmp_path)
    # As where memory allowed no other at first, and now does.
    again = train(recipe.replace(optimizer="auto"), tmp_path)
    assert again.training["resumed_from"] and again.training["optimizer"] == "bf16-stochastic"


# What goes wrong


def test_a_loss_that_is_no_number(backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", lr=1e20, batch_size=1, epoch=3, eval_steps=20)
    with pytest.raises(UserError, match=r"training diverged before step 10: \{'loss': nan.*A lower lr"):
        train(recipe, tmp_path)
    # Found in an evaluation, where that comes first.
    with pytest.raises(UserError, match="diverged in training"):
        train(recipe.replace(eval_steps=4), tmp_path / "evaluated")
    assert not (tmp_path / "adapter").exists() and not (tmp_path / "evaluated" / "adapter").exists()


# Weights that move


def test_the_share_of_weights_that_moved(backbone_folder: Folder, tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.Linear(10, 3))
    network[0].bias.requires_grad_(False)
    before = sample_weights(network, per_tensor=7)
    assert {name: value.numel() for name, value in before.items()} == {"0.weight": 8, "1.weight": 8, "1.bias": 3}
    assert share_moved(before, sample_weights(network, per_tensor=7)) == 0
    with torch.no_grad():
        network[1].bias += 1
    assert share_moved(before, sample_weights(network, per_tensor=7)) == 3 / 19


@pytest.mark.parametrize("optimizer", ["fp32", "bf16-stochastic", "auto"])
def test_full_fine_tuning_says_what_share_moved(optimizer: str, backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", method="full", optimizer=optimizer, lr=2e-5)
    outcome = train(recipe, tmp_path)
    assert outcome.training["optimizer"] == ("fp32" if optimizer == "auto" else optimizer)
    # Words that no item holds have no gradient.
    assert (0.05 if optimizer == "bf16-stochastic" else 0.3) < outcome.training["weights_moved"] <= 1
    assert outcome.trainable_parameters == outcome.parameters
    moved = weights(tmp_path / "model")
    assert {value.dtype for value in moved.values()} == {torch.float32}, "as scoring on a CPU loads them"
    if optimizer == "bf16-stochastic":
        assert all(torch.equal(value, value.bfloat16().float()) for value in moved.values())


def test_why_plain_bf16_is_not_offered() -> None:
    torch.manual_seed(0)
    start = (torch.randn(200, 300) * 0.02).bfloat16()
    steps, lr = 20, 2e-5
    changes = {}
    for name in ("plain", "bf16-stochastic"):
        weight = torch.nn.Parameter(start.clone())
        if name == "plain":
            optimizer: Any = torch.optim.AdamW([weight], lr=lr, weight_decay=0)
        else:
            from torchao.optim import AdamW8bit

            assert trainer.OPTIMIZERS[name] == ("adamw_torch_8bit", "bf16_stochastic_round=True")
            optimizer = AdamW8bit([weight], lr=lr, weight_decay=0, bf16_stochastic_round=True)
        for _ in range(steps):
            weight.grad = torch.full_like(weight, -1e-3)
            optimizer.step()
        changes[name] = weight.detach().float() - start.float()
    # The same gradient at each step: Adam's way is steps · lr.
    assert changes["bf16-stochastic"].mean().item() == pytest.approx(steps * lr, rel=0.1)
    assert (changes["bf16-stochastic"] != 0).float().mean() > 0.8
    assert (changes["plain"] != 0).float().mean() < 0.4
    assert changes["plain"][start.abs() > 0.0157].abs().max() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    ("method", "optimizer"),
    [("qlora", "auto"), ("lora", "auto"), ("full", "fp32"), ("full", "fp32-8bit"), ("full", "bf16-stochastic")],
)
def test_training_on_a_gpu(method: str, optimizer: str, backbone_folder: Folder, tmp_path: Path) -> None:
    for short in ("polar", "kogemma"):
        recipe = toys.recipe(
            backbone_folder(short), short, method=method, optimizer=optimizer, batch_size=1, gradient_checkpointing="on"
        )
        device = torch.device("cuda", 0)
        outcome = fine_tune(recipe, encoder(short), TRAIN, DEV, tmp_path / short, device)
        ((_, loss),) = outcome.training["loss"]
        assert math.isfinite(loss)
        kept = weights(tmp_path / short / ("model" if method == "full" else "adapter"))
        assert all(value.isfinite().all() for value in kept.values())
        assert {value.dtype for value in kept.values()} == {torch.bfloat16 if method == "full" else torch.float32}
        if method == "full":
            assert outcome.training["weights_moved"] > 0.3
        else:
            assert all(value.abs().sum() > 0 for name, value in kept.items() if "lora_B" in name)


@pytest.fixture
def compiler() -> Iterator[None]:
    """Layers are compiled, nothing was before, and nothing stays set."""
    torch._dynamo.reset()
    with toys.limits(), torch.compiler.set_stance("default"):
        yield
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("short", "method", "checkpointing"),
    [
        ("polar", "lora", "off"),
        ("qwen2", "lora", "on"),
        ("kogemma", "lora", "off"),
        ("kogemma", "lora", "on"),
        ("polar", "qlora", "off"),
        ("polar", "full", "off"),
    ],
)
def test_rows_on_a_gpu_are_found_sound(
    short: str, method: str, checkpointing: str, backbone_folder: Folder, tmp_path: Path
) -> None:
    recipe = toys.recipe(
        backbone_folder(short),
        short,
        method=method,
        share_prefixes="on",
        gradient_checkpointing=checkpointing,
        optimizer="fp32",
        batch_size=8,
        lora_dropout=0.05,
    )
    outcome = fine_tune(recipe, encoder(short), TRAIN, DEV, tmp_path, torch.device("cuda", 0))
    found = outcome.training["rows"]
    assert found["guard"]["agree"], found["guard"]
    assert found["kind"] == "tree" and found["tokens"] == found["lengths"][-1]
    assert all(length % tree.BLOCK == 0 for length in found["lengths"])
    assert all(math.isfinite(entry["eval_log_loss"]) for entry in outcome.training["evaluations"])
    assert all(
        value.isfinite().all() for value in weights(tmp_path / ("model" if method == "full" else "adapter")).values()
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.usefixtures("compiler")
def test_nf4_and_what_it_unpacks_to_learn_the_same(backbone_folder: Folder) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", method="qlora", lora_dropout=0)
    one, device = encoder("qwen2"), torch.device("cuda", 0)
    examples = one.for_training(TRAIN)
    found = []
    for dequantised in (False, True):
        network = with_trained_adapters(load_base(recipe, device, dequantised=dequantised), recipe).train()
        assert rows.make_ready(network)
        (row,) = make_objective(recipe).collate(examples, Layout("tree", 4096, one.pad_id, (1024,)))
        row = rows.to_device(row, device)
        losses = torch.nn.functional.cross_entropy(
            rows.logits_at(network, row).float(), row["target"], reduction="none"
        )
        loss = (losses * row["weight"]).sum() / len(examples)
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm()
        found.append((loss.item(), norm.item()))
    assert found[0] == (pytest.approx(found[1][0], rel=0.02), pytest.approx(found[1][1], rel=0.05))
