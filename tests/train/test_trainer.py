"""A training as a whole: its gradients in any layout, its weights, its seeds, and what the record says of it."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.console.cli import UserError
from src.files.paths import CHECKPOINTS
from src.model.load import load_base
from src.score.letters import LetterScorer, Scored
from src.train import fine_tuning, trainer
from src.tree import layouts, rows
from src.tree.rows import Layout
from tests import toys
from tests.made_trainings import (
    CPU,
    TRAIN,
    Folder,
    Recorder,
    assert_gradients,
    by_hand,
    encoder,
    equal,
    shares,
    train,
    weights,
    with_trained_adapters,
)

pytestmark = pytest.mark.trains


@pytest.mark.parametrize("share", ["off", "on"])
@pytest.mark.parametrize(
    ("objective", "loss_per", "batches"),
    [
        pytest.param("answer", "item", [(8, 1), (1, 8), (2, 4)], marks=pytest.mark.thorough),
        ("answer", "token", [(8, 1), (1, 8), (2, 4)]),
        pytest.param("letter", "item", [(8, 1), (2, 4)], marks=pytest.mark.thorough),
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


DEFAULT = {("polar", "lora", "off"), ("qwen2", "full", "on"), ("kogemma", "lora", "on"), ("kogemma", "full", "off")}
"""Each backbone, method and way of keeping activations at least once; the other pairings are thorough."""


@pytest.mark.parametrize(
    ("short", "method", "checkpointing"),
    [
        pytest.param(*one, marks=[] if one in DEFAULT else [pytest.mark.thorough])
        for one in product(("polar", "qwen2", "kogemma"), ("lora", "full"), ("off", "on"))
    ],
)
def test_one_step_of_rows_that_share_prefixes(
    short: str,
    method: str,
    checkpointing: str,
    backbone_folder: Folder,
    tmp_path: Path,
    recorder: type[Recorder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fine_tuning.load, "add_adapter", with_trained_adapters)
    monkeypatch.setattr(layouts, "CPU_TREES", (300,))  # several rows a step
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


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.thorough)])
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


def test_training_learns(backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=12, lr=1e-2, objective="letters", lora_dropout=0)
    items = toys.items(8)
    outcome = train(recipe, tmp_path, items, items)
    assert outcome.training["evaluations"][-1]["eval_accuracy"] == 1.0
    assert outcome.training["effective_batch"] == 2 and outcome.training["steps"] == 48


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


def test_the_record_says_how_rows_were_made(
    backbone_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = shares(backbone_folder("qwen2"), lora_dropout=0.05)
    outcome = train(recipe, tmp_path / "tree")
    found = outcome.training["rows"]
    guard = found.pop("guard")
    examples = encoder("qwen2").for_training(TRAIN)
    raw = sum(len(one.ids) for one in examples)
    computed = sum(rows.sizes([one.ids for one in examples], Layout("tree", found["tokens"], 0)))
    assert raw > 1.1 * computed
    assert found == {
        "kind": "tree",
        "lengths": None,
        "tokens": layouts.CPU_TREES[2],
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


@pytest.mark.parametrize(("share", "kind"), [pytest.param("off", "padded", marks=pytest.mark.thorough), ("on", None)])
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


def test_a_loss_that_is_no_number(backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", lr=1e20, batch_size=1, epoch=3, eval_steps=20)
    with pytest.raises(UserError, match=r"training diverged before step 10: \{'loss': nan.*A lower lr"):
        train(recipe, tmp_path)
    # Found in an evaluation, where that comes first.
    with pytest.raises(UserError, match="diverged in training"):
        train(recipe.replace(eval_steps=4), tmp_path / "evaluated")
    assert not (tmp_path / "adapter").exists() and not (tmp_path / "evaluated" / "adapter").exists()


def test_the_first_step_is_in_training_mode_throughout(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loaded model is in evaluation mode, in which its layers do not checkpoint; peft's wrapper around it is not."""
    modes: list[bool] = []
    compute = trainer.LetterTrainer.row_loss

    def noted(one: trainer.LetterTrainer, *given: Any) -> Any:
        modes.append(all(module.training for module in one.network.modules()))
        return compute(one, *given)

    monkeypatch.setattr(trainer.LetterTrainer, "row_loss", noted)
    train(toys.recipe(backbone_folder("qwen2"), "qwen2", share_prefixes="off", epoch=1), tmp_path)
    assert modes and all(modes)


def test_the_norm_of_a_captured_step_is_logged_where_nothing_is_clipped() -> None:
    one = object.__new__(trainer.LetterTrainer)
    one._norm, one.accelerator = torch.tensor(3.0), SimpleNamespace(distributed_type="NO")
    weight = torch.nn.Linear(1, 1)  # without gradients: the optimizer has used them
    assert one._get_grad_norm(weight) == 3
    assert one._get_grad_norm(weight, torch.tensor(2.0)) == 2
