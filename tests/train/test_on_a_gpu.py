"""Trainings on a GPU, where there is one."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from src.model.load import load_base
from src.train.checkpoints import Place
from src.train.fine_tuning import fine_tune
from src.train.keep import KeepBest
from src.train.objectives import make_objective
from src.tree import prefix, rows
from src.tree.compiled import make_ready
from src.tree.rows import Layout
from tests import toys
from tests.made_trainings import (
    DEV,
    TRAIN,
    Folder,
    Killed,
    encoder,
    weights,
    with_trained_adapters,
)


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
        outcome = fine_tune(recipe, encoder(short), TRAIN, DEV, Place.at(tmp_path / short), device)
        ((_, loss),) = outcome.training["loss"]
        assert math.isfinite(loss)
        kept = weights(tmp_path / short / ("model" if method == "full" else "adapter"))
        assert all(value.isfinite().all() for value in kept.values())
        assert {value.dtype for value in kept.values()} == {torch.bfloat16 if method == "full" else torch.float32}
        if method == "full":
            assert outcome.training["weights_moved"] > 0.3
        else:
            assert all(value.abs().sum() > 0 for name, value in kept.items() if "lora_B" in name)


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
    outcome = fine_tune(recipe, encoder(short), TRAIN, DEV, Place.at(tmp_path), torch.device("cuda", 0))
    found = outcome.training["rows"]
    assert found["guard"]["agree"], found["guard"]
    assert found["kind"] == "tree" and found["tokens"] == found["lengths"][-1]
    assert all(length % prefix.BLOCK == 0 for length in found["lengths"])
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
        assert make_ready(network)
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    ("method", "optimizer"),
    [("qlora", "auto"), ("lora", "auto"), ("full", "fp32"), ("full", "fp32-8bit"), ("full", "bf16-stochastic")],
)
def test_a_stopped_training_goes_on_from_a_sealed_checkpoint(
    method: str, optimizer: str, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever kind of states an optimizer keeps, they are read as plain data."""
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", method=method, optimizer=optimizer, epoch=3, batch_size=4)
    device = torch.device("cuda", 0)
    evaluated: list[int] = []
    told = KeepBest.on_evaluate

    def second(best: KeepBest, *given: Any, **keys: Any) -> None:
        evaluated.append(1)
        if len(evaluated) == 2:
            raise Killed
        told(best, *given, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(KeepBest, "on_evaluate", second)
        with pytest.raises(Killed):
            fine_tune(recipe, encoder("qwen2"), TRAIN, DEV, Place.at(tmp_path), device)
    outcome = fine_tune(recipe, encoder("qwen2"), TRAIN, DEV, Place.at(tmp_path), device)
    assert str(outcome.training["resumed_from"]).endswith("checkpoint-2") and outcome.training["steps"] == 6
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-6"]
