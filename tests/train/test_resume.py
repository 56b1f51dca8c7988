"""A training that was stopped goes on where it was, bit for bit."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from src.files.paths import CHECKPOINTS
from src.train import fine_tuning
from src.train.objectives import TokenObjective
from src.train.order import by_dialogue
from tests import toys
from tests.made_trainings import (
    Folder,
    Killed,
    Recorder,
    encoder,
    equal,
    kill_after,
    train,
    weights,
)

pytestmark = pytest.mark.trains


@pytest.mark.parametrize(
    ("method", "share"),
    [
        pytest.param("lora", "off", marks=pytest.mark.thorough),
        pytest.param("full", "off", marks=pytest.mark.thorough),
        pytest.param("qlora", "off", marks=pytest.mark.thorough),
        ("lora", "on"),
        ("full", "on"),
    ],
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


@pytest.mark.parametrize("share", [pytest.param("off", marks=pytest.mark.thorough), "on"])
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
        patch.setattr(fine_tuning, "check_rows_against_single", lambda trainer: None)  # which draws its own
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
    monkeypatch.setattr(fine_tuning, "check_rows_against_single", lambda trainer: None)
    halved = train(recipe, tmp_path / "halved", items)
    assert str(halved.training["resumed_from"]).endswith("checkpoint-4"), "one step into the second epoch"
    assert len(recorder.losses) == 5 and drawn[-5:] == expected[4:]
    for folder in ("adapter", f"{CHECKPOINTS}/checkpoint-9"):
        assert equal(weights(tmp_path / "halved" / folder), weights(tmp_path / "straight" / folder))
    assert halved.training["evaluations"] == straight.training["evaluations"]


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
