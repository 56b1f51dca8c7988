"""Rows are checked against single items at the start of a run: what is compared, found, and done then."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from src.console.cli import UserError
from src.model.load import load_base
from src.train import fine_tuning
from src.train import guard as guard_room
from src.train.arguments import CHECKPOINTING
from src.train.objectives import TokenObjective, make_objective
from src.tree import branches, compare, layouts, prefix, rows
from src.tree.rows import Layout
from tests import toys
from tests.made_trainings import (
    CPU,
    TRAIN,
    Folder,
    Recorder,
    by_hand,
    encoder,
    equal,
    in_trees,
    shares,
    train,
    weights,
    with_trained_adapters,
)

pytestmark = pytest.mark.trains


@pytest.mark.parametrize(
    ("objective", "loss_per"),
    [pytest.param("answer", "item", marks=pytest.mark.thorough), ("answer", "token"), ("letters", "item")],
)
def test_the_guard_compares_two_items_of_each_of_two_dialogues(
    objective: str, loss_per: str, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tuning.load, "add_adapter", with_trained_adapters)
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
    monkeypatch.setattr(fine_tuning, "check_rows_against_single", lambda trainer: None)
    train(recipe, tmp_path / "not")
    assert equal(weights(tmp_path / "guarded" / "adapter"), weights(tmp_path / "not" / "adapter"))


def one_key_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    visible = prefix.visible

    def seen(depth: torch.Tensor, end: torch.Tensor, window: int | None = None) -> torch.Tensor:
        # Whatever stands in front, on another branch or not.
        return visible(depth, end, window) | torch.eye(len(end), dtype=torch.bool).roll(1, 0).tril()

    monkeypatch.setattr(branches, "prepare", lambda model: False)  # blocks leave out more than a mask hides
    monkeypatch.setattr(prefix, "visible", seen)


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
        pytest.param(dearer, {"loss"}, marks=pytest.mark.thorough),
        pytest.param(in_trees(scaled_gradient), {"gradient_norm"}, marks=pytest.mark.thorough),
        pytest.param(in_trees(lambda logits: logits + 0.01), {"letter_logits_gap"}, marks=pytest.mark.thorough),
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
    monkeypatch.setattr(branches, "prepare", lambda model: False)
    monkeypatch.setattr(
        prefix, "visible", lambda depth, end, window=None: torch.ones(len(end), len(end), dtype=torch.bool).tril()
    )


def places_instead_of_depths(monkeypatch: pytest.MonkeyPatch) -> None:
    build = prefix.build

    def built(sequences: Any) -> prefix.Tree:
        row = build(sequences)
        return dataclasses.replace(row, depth=np.arange(len(row)))

    monkeypatch.setattr(prefix, "build", built)


@pytest.mark.parametrize(
    ("short", "plant"),
    [
        ("qwen2", every_branch_seen),
        ("kogemma", places_instead_of_depths),
        pytest.param("qwen2", places_instead_of_depths, marks=pytest.mark.thorough),
        pytest.param("kogemma", every_branch_seen, marks=pytest.mark.thorough),
    ],
)
def test_what_a_gpu_is_allowed_to_round_hides_no_wrong_mask_or_position(
    plant: Callable[[pytest.MonkeyPatch], None],
    short: str,
    backbone_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard_room, "SHARE", {"cpu": compare.SHARE["cuda"]})
    for name in ("EPSILON", "LEAST"):
        monkeypatch.setattr(compare, name, {"cpu": getattr(compare, name)["cuda"]})
    recipe = toys.recipe(backbone_folder(short), short, share_prefixes="on", batch_size=8, epoch=1, lora_dropout=0)
    assert train(recipe, tmp_path / "sound").training["rows"]["guard"]["agree"]
    plant(monkeypatch)
    guard = train(recipe, tmp_path / "defect").training["rows"]["guard"]
    assert not guard["agree"], guard


@pytest.mark.parametrize(("failures", "tokens"), [(1, 384), (2, 256), (4, 256)])
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
    monkeypatch.setattr(layouts, "CPU_TREES", (512,))
    found = train(shares(backbone_folder("qwen2"), epoch=1), tmp_path).training["rows"]
    assert (found["kind"], found["tokens"], found["lengths"]) == ("tree", tokens, (tokens,)) and found["guard"]["agree"]
    assert {row["input_ids"].shape[1] for row in recorder.rows} == {tokens}
    assert "rows of 512 tokens do not fit into memory; trying 384" in capsys.readouterr().out


def test_when_not_even_the_shortest_rows_fit(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crowded(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(guard_room, "probe", crowded)
    monkeypatch.setattr(layouts, "CPU_TREES", (512,))
    # The longest item has 134 tokens.
    with pytest.raises(
        UserError, match=r"not even rows of 256 tokens fit into the GPU's memory. .*gradient_checkpointing"
    ):
        train(shares(backbone_folder("qwen2")), tmp_path)


def test_one_by_one_is_with_checkpointing_and_undone_whatever_happens(backbone_folder: Folder) -> None:
    objective, one = make_objective(shares(backbone_folder("qwen2"))), encoder("qwen2")
    network, examples = toys.network("qwen2").train(), objective.examples(one, TRAIN[:2])
    errors: list[Exception] = [torch.OutOfMemoryError("CUDA out of memory")]

    def row_loss(model: Any, row: rows.Row, totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert model.is_gradient_checkpointing
        if errors:
            raise errors.pop()
        outputs = objective.outputs(model, row)
        return objective.loss(outputs, row, totals, one.letter_ids or ()), outputs

    ours: Any = SimpleNamespace(network=network, objective=objective, encoder=one, row_loss=row_loss)
    alone = Layout("padded", 10**4, 0, sequences=1)
    with pytest.raises(torch.OutOfMemoryError):
        guard_room.probe(ours, examples, alone)
    assert not network.is_gradient_checkpointing
    assert guard_room.probe(ours, examples, alone).norm > 0 and not network.is_gradient_checkpointing
    network.gradient_checkpointing_enable(CHECKPOINTING)
    guard_room.probe(ours, examples, alone)
    assert network.is_gradient_checkpointing, "as it was"
