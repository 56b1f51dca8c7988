"""The curves of a training: their numbers, their picture, and other tools that are told of it."""

import ast
import csv
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainerState, is_tensorboard_available
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from src.console.cli import UserError
from src.figures.training import Evaluation, running_mean, training_curves
from src.train import curves, reports
from src.train.checkpoints import Place
from src.train.curves import Curve, Step, draw, read_steps
from src.train.fine_tuning import fine_tune
from src.train.steps import COLUMNS
from tests import toys
from tests.made_trainings import CPU, DEV, TRAIN, Folder, Killed, Recorder, encoder, kill_after, train

pytestmark = pytest.mark.trains


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "training.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_step_has_its_own_loss_and_learning_rate(
    backbone_folder: Folder, tmp_path: Path, recorder: type[Recorder]
) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=3, warmup_steps=0.25, lr=1e-3)
    outcome = train(recipe, tmp_path)
    rows = rows_of(tmp_path)
    assert list(rows[0]) == list(COLUMNS) == ["step", "epoch", "loss", "lr", "items_per_second"]
    assert [int(row["step"]) for row in rows] == list(range(1, outcome.training["steps"] + 1))
    assert [float(row["loss"]) for row in rows] == pytest.approx(recorder.losses, rel=1e-5)
    # Three of twelve steps warm up from 0; then the rate falls in a straight line, which reaches 0 after the last step.
    assert recipe.lr_scheduler == "linear"
    expected = [step / 3 if step < 3 else 1 - (step - 3) / 9 for step in range(12)]
    assert [float(row["lr"]) for row in rows] == pytest.approx([1e-3 * share for share in expected], abs=1e-9)
    assert [float(row["epoch"]) for row in rows] == pytest.approx([step / 4 for step in range(1, 13)])
    assert all(float(row["items_per_second"]) > 0 for row in rows)


def test_a_stopped_training_has_one_curve(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=3, lr=1e-3)
    train(recipe, tmp_path / "straight")
    with monkeypatch.context() as patch:
        kill_after(patch, 10)  # 4 passes an epoch: in the third
        with pytest.raises(Killed):
            train(recipe, tmp_path / "halved")
    assert len(rows_of(tmp_path / "halved")) == 8, "with each checkpoint"
    train(recipe, tmp_path / "halved")
    halved, straight = (
        [{key: value for key, value in row.items() if key != "items_per_second"} for row in rows_of(tmp_path / name)]
        for name in ("halved", "straight")
    )
    assert halved == straight
    # Beginning anew leaves nothing of it.
    train(recipe.replace(epoch=1), tmp_path / "straight2")
    assert len(rows_of(tmp_path / "straight2")) == 4


def test_what_a_curve_goes_on_from(tmp_path: Path) -> None:
    curve = Curve(tmp_path, lambda: (torch.zeros(()), 1))
    logged = [{"step": 10, "epoch": 0.5, "loss": 2.0, "learning_rate": 1e-5}, {"step": 10, "eval_accuracy": 0.5}]
    state = TrainerState(global_step=12, log_history=[*logged, {"step": 20, "epoch": 1.0, "loss": 1.0}])
    for text in (None, "step,epoch\n1,2\n", "nothing\n", "step,epoch,loss,lr,items_per_second\n1,x,1,,\n"):
        if text:
            (tmp_path / "training.csv").write_text(text, encoding="utf-8")
        curve.go_on(state)
        assert curve.steps == [Step(10, 0.5, 2.0, 1e-5)], "the trainer's own log, up to the checkpoint"
    steps = [Step(number, number / 8, 1 / number, 1e-4, None if number == 1 else 3.5) for number in range(1, 20)]
    curve.steps = steps
    curve.write()
    read = read_steps(tmp_path / "training.csv")
    assert [(one.step, one.lr, one.items_per_second) for one in read] == [
        (one.step, one.lr, one.items_per_second) for one in steps
    ]
    curve.go_on(state)
    assert [one.step for one in curve.steps] == list(range(1, 13))


def test_items_a_second_leave_out_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(curves.time, "monotonic", lambda: clock[0])
    curve = Curve(tmp_path, lambda: (torch.tensor(1.5), 4))
    scheduler = types.SimpleNamespace(get_last_lr=lambda: [1e-5])
    state = TrainerState(global_step=0, epoch=0.0)
    curve.on_train_begin(None, state, None)
    for seconds, event in ((2, "step"), (2, "step"), (1, "log"), (50, "evaluate"), (4, "step"), (30, "save")):
        if event == "step":
            state.global_step += 1
            curve.on_step_begin(None, state, None, lr_scheduler=scheduler)
        clock[0] += seconds
        name = "on_step_end" if event == "step" else f"on_{event}"
        getattr(curve, name)(None, state, None, **({"logs": {"loss": 1.5}} if event == "log" else {}))
    assert [one.items_per_second for one in curve.steps] == [8 / 5, 8 / 5, 4 / 4]


def test_a_disk_without_room_loses_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, text: str) -> None:
        raise UserError(f"{path} cannot be written: No space left on device.")

    monkeypatch.setattr(curves, "write_text", full)
    curve = Curve(tmp_path, lambda: (torch.zeros(()), 1))
    curve.steps = [Step(1, 0.1, 1.0, 1e-5)]
    curve.write()
    curve.write()
    assert capsys.readouterr().out.count("No space left on device. The training goes on without it.") == 1


def test_the_smoothed_loss_is_a_running_mean() -> None:
    values = np.random.default_rng(3).normal(size=50)
    expected = [values[max(0, place - 3) : place + 4].mean() for place in range(50)]
    assert running_mean(values.tolist(), 7) == pytest.approx(np.array(expected))
    assert running_mean([], 3).size == 0 and running_mean([1.0, 3.0], 1).tolist() == [1.0, 3.0]


def test_the_picture_shows_what_there_is(tmp_path: Path) -> None:
    steps = [(number, 2.0 / number, 1e-5) for number in range(1, 101)]
    found = [Evaluation(50, 0.7, 0.9), Evaluation(100, 0.8, 0.7)]
    figure = training_curves(steps, found, 100, "한국어: lora")
    loss, accuracy, rate, log_loss = figure.axes
    assert loss.get_ylabel() == "training loss" and rate.get_ylabel() == "learning rate"
    light, smooth = loss.get_lines()
    assert len(light.get_xdata()) == 100 and smooth.get_label() == "loss, mean of 10 steps"
    assert [list(line.get_ydata()) for line in (accuracy.get_lines()[0], log_loss.get_lines()[0])] == [
        [0.7, 0.8],
        [0.9, 0.7],
    ]
    assert accuracy.get_lines()[1].get_label() == "kept: step 100" and accuracy.get_lines()[1].get_xdata()[0] == 100
    # One step, none, and no learning rate are drawn as well.
    for few in (steps[:1], [], [(1, 1.0, None)]):
        training_curves(few, found[:1], 50, "x").savefig(tmp_path / "x.png")


def test_a_picture_that_cannot_be_drawn_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"loss": [[10, 1.0]], "evaluations": [{"step": 10, "eval_accuracy": 0.5, "eval_log_loss": 1.0}]}
    draw(tmp_path, {**record, "best_step": 10}, "older, without training.csv")
    assert Image.open(tmp_path / "training.png").size == (1200, 900) and capsys.readouterr().out == ""
    draw(tmp_path, record, "no best_step")
    assert "training.png could not be drawn (KeyError: 'best_step'); the run is complete" in capsys.readouterr().out


def test_a_training_starts_without_matplotlib() -> None:
    code = "import sys, src.runs.command; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    for room in ("train", "runs"):  # importing torch as well would take the test half a minute
        for file in (Path(reports.__file__).parents[1] / room).glob("*.py"):
            found = [one for one in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(one, ast.ImportFrom)]
            assert not [one.module for one in found if (one.module or "").startswith("src.figures")], file


def test_the_tools_are_those_of_transformers() -> None:
    assert set(reports.PACKAGES) == set(INTEGRATION_TO_CALLBACK)


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "find_spec", lambda name: None)
    reports.check([])
    with pytest.raises(UserError, match="--report_to wandb: its package is not installed: pip install wandb"):
        reports.check(["wandb"])


class Writer:
    """What TensorBoard's writer is told."""

    made: list["Writer"] = []  # noqa: RUF012  # of the class, so that the test finds it

    def __init__(self, log_dir: str) -> None:
        self.log_dir, self.scalars, self.closed = log_dir, [], False  # type: ignore[var-annotated]
        type(self).made.append(self)

    def add_text(self, *given: Any) -> None:
        pass

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def test_tensorboard_gets_losses_and_evaluations_in_the_runs_folder(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    for name in (*reports.local_folders(tmp_path), "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    Writer.made = []
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=3)
    run = tmp_path / "run"
    outcome = fine_tune(recipe, encoder("qwen2"), TRAIN, DEV, Place.at(run, report_to=["tensorboard"]), CPU)
    (writer,) = Writer.made
    assert writer.log_dir == str(run / "reports" / "tensorboard") and writer.closed
    losses = [(step, value) for name, value, step in writer.scalars if name == "train/loss"]
    assert losses == [tuple(one) for one in outcome.training["loss"]] and losses
    found = {(name, step): value for name, value, step in writer.scalars}
    for one in outcome.training["evaluations"]:
        assert found["eval/accuracy", one["step"]] == one["eval_accuracy"]
        assert found["eval/log_loss", one["step"]] == one["eval_log_loss"]
    assert ("train/learning_rate", 10) in found and not (tmp_path / "elsewhere").exists()
    # Unasked, nothing is told, whatever is installed and whatever the environment says; the weights are the same.
    silent = fine_tune(recipe, encoder("qwen2"), TRAIN, DEV, Place.at(tmp_path / "silent"), CPU)
    assert len(Writer.made) == 1 and not (tmp_path / "silent" / "reports").exists()
    assert silent.training["loss"] == outcome.training["loss"]


@pytest.mark.skipif(not is_tensorboard_available(), reason="tensorboard is not installed")
def test_tensorboards_files_are_read_back(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name in reports.local_folders(tmp_path):
        monkeypatch.setenv(name, "")
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=3)
    outcome = fine_tune(recipe, encoder("qwen2"), TRAIN, DEV, Place.at(tmp_path, report_to=["tensorboard"]), CPU)
    events = EventAccumulator(str(tmp_path / "reports" / "tensorboard"))
    events.Reload()
    told = [(one.step, one.value) for one in events.Scalars("train/loss")]
    assert told == [(step, pytest.approx(loss)) for step, loss in outcome.training["loss"]]
