"""What a training says while it goes on: the bar and the hint."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from src.console.progress import PIPE
from src.train import log
from src.tree import prefix
from tests import toys
from tests.made_trainings import (
    DEV,
    TRAIN,
    Folder,
    encoder,
    train,
)

pytestmark = pytest.mark.trains


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
    assert re.fullmatch(r"loss \d\.\d{4}, lr \d\.\d\de[+-]\d\d, [\d.e+]+ items/s", events[-1]["note"])


def test_what_larger_steps_would_share_is_said(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", batch_size=1, epoch=1)
    items, dev = TRAIN[:4], DEV[:1]
    with toys.compiled_on_a_cpu(monkeypatch), torch.compiler.set_stance("force_eager"):  # only what is said matters
        assert train(recipe, tmp_path / "little", items, dev).training["rows"]["kind"] == "single"
        assert "share too little" not in capsys.readouterr().out, "these would share little in larger steps, too"
        monkeypatch.setattr(log, "WORTHWHILE", 1.1)
        assert train(recipe, tmp_path / "enough", items, dev).training["rows"]["kind"] == "single"
    sequences = [one.ids for one in encoder("qwen2").for_training(items)]
    fewer = sum(map(len, sequences)) / len(prefix.build(sequences))
    said = f"steps of one item share too little. --batch_size 16 --order dialogue would compute {fewer:.1f} times fewer"
    assert said in capsys.readouterr().out
