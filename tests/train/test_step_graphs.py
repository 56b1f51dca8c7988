"""Captured steps: on a GPU they learn what uncaptured ones do; what decides about them is tested anywhere."""

from pathlib import Path
from typing import Any

import pytest
import torch

from src.train import trainer
from src.train.checkpoints import Place
from src.train.fine_tuning import Outcome, fine_tune
from src.train.keep import KeepBest
from tests import toys
from tests.made_trainings import DEV, TRAIN, Folder, Killed, encoder, weights

GPU = torch.device("cuda", 0)
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "lora_dropout": 0.05},
    "lora-checkpointing": {"method": "lora", "lora_dropout": 0.5, "gradient_checkpointing": "on"},
    "qlora": {"method": "qlora", "lora_dropout": 0.05},
    "full-bf16": {"method": "full", "optimizer": "bf16-stochastic"},
    "full-8bit": {"method": "full", "optimizer": "fp32-8bit"},
    "full-fp32": {"method": "full", "optimizer": "fp32"},
    "orpo": {"method": "lora", "objective": "orpo", "lora_dropout": 0.05},
    "two-rows": {"method": "lora", "lora_dropout": 0.05, "batch_size": 2, "share_prefixes": "off"},
}


def learn(folder: Path, place: Path, **changes: Any) -> Outcome:
    values = {"batch_size": 1, "epoch": 3, "lr": 1e-3, "gradient_checkpointing": "off", **changes}
    recipe = toys.recipe(folder, "qwen2", **values)
    return fine_tune(recipe, encoder("qwen2"), TRAIN, DEV, Place.at(place), GPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", KINDS)
def test_captured_steps_learn_what_uncaptured_ones_do(
    kind: str, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, changes = backbone_folder("qwen2"), KINDS[kind]
    captured = learn(folder, tmp_path / "captured", **changes)
    assert captured.training["captured"]["kinds"] >= 1, captured.training["captured"]
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "obstacle", lambda *given: "not wanted")
        usual = learn(folder, tmp_path / "usual", **changes)
    assert usual.training["captured"] == {"obstacle": "not wanted"}
    kept = "model" if changes["method"] == "full" else "adapter"
    ours, theirs = (weights(tmp_path / name / kept) for name in ("captured", "usual"))
    apart = max((ours[name].double() - theirs[name].double()).abs().max().item() for name in ours)
    print(kind, captured.training["captured"], captured.training["loss"], usual.training["loss"], "apart", apart)
    one, other = (torch.tensor([loss for _, loss in found.training["loss"]]) for found in (captured, usual))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", ["lora", "full-bf16"])
def test_a_stopped_training_goes_on_to_the_same_bits(
    kind: str, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, changes = backbone_folder("qwen2"), KINDS[kind]
    learn(folder, tmp_path / "whole", **changes)
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
            learn(folder, tmp_path / "stopped", **changes)
    outcome = learn(folder, tmp_path / "stopped", **changes)
    assert outcome.training["resumed_from"] and outcome.training["captured"]["kinds"] >= 1
    (last,) = (tmp_path / "whole" / "checkpoints").iterdir()
    ours, theirs = (weights(tmp_path / name / "checkpoints" / last.name) for name in ("stopped", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
