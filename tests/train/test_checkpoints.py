"""Which checkpoint a stopped training goes on from, and what is said of the others."""

import os
import pickle
import shutil
from pathlib import Path

import pytest

from src.console.cli import UserError
from src.files.sealed import SEAL, seal
from src.files.writing import write_json, write_text
from src.train.checkpoints import LOG, STATES, Checkpoint, Place, find_checkpoint, remove_others, settle
from tests import toys
from tests.made_trainings import Folder, equal, train, weights


def whole(folder: Path, step: int, best: int) -> Path:
    """A checkpoint whose states nobody reads."""
    checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
    log = [{"step": number, "eval_accuracy": 0.5} for number in range(4, step + 1, 4)]
    write_json(checkpoint / LOG, {"global_step": step, "log_history": log})
    for name in STATES:
        write_text(checkpoint / name, "made")
    return settle(
        Place.at(folder, {"seed": 1}), {"step": step, "best": best, "optimizer": "fp32", "weights": "adapter"}
    )


def best(folder: Path, step: int) -> Path:
    write_text(folder / "adapter" / "weights", f"of step {step}")
    seal(folder / "adapter", {"step": step})
    return folder / "adapter"


def test_the_newest_whole_one_with_its_best_weights(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path).checkpoint is None
    best(tmp_path, 4)
    first, second = whole(tmp_path, 80, 4), whole(tmp_path, 100, 4)
    assert find_checkpoint(tmp_path).checkpoint == Checkpoint(second, 100, "fp32", 4, "adapter", False, {"seed": 1})
    (second / STATES[1]).unlink()
    found = find_checkpoint(tmp_path)
    assert found.checkpoint and found.checkpoint.folder == first
    assert found.lines() == [f"{second} cannot be used: scheduler.pt is gone; going on from {first}"]
    # A clock that jumped back says nothing about which one is newer.
    third = whole(tmp_path, 120, 4)
    os.utime(third, (0, 0))
    remove_others(third)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-120"]


def test_best_weights_that_are_lost(tmp_path: Path) -> None:
    older, newer = whole(tmp_path, 4, 4), whole(tmp_path, 8, 4)
    found = find_checkpoint(tmp_path)
    # The weights of step 4 are those of its own checkpoint, so they can be made again from there.
    assert found.checkpoint and (found.checkpoint.folder, found.checkpoint.rebuilt) == (older, True)
    assert f"{newer} cannot be used: the best weights so far, in {tmp_path / 'adapter'}, are lost: " in found.lines()[0]
    shutil.rmtree(older)
    write_text(best(tmp_path, 8) / "weights", "damaged")
    assert find_checkpoint(tmp_path).checkpoint is None
    best(tmp_path, 8)
    (line,) = find_checkpoint(tmp_path).lines()
    assert line.endswith("they are of step 8, not of 4; training begins from the start")


@pytest.mark.parametrize("name", [".DS_Store", "._optimizer.pt", "Thumbs.db", ".nfs0001"])
def test_files_of_a_browser_of_folders_break_no_checkpoint(tmp_path: Path, name: str) -> None:
    best(tmp_path, 4)
    checkpoint = whole(tmp_path, 8, 4)
    write_text(checkpoint / name, "made")
    assert find_checkpoint(tmp_path).lines() == []
    write_text(checkpoint / "model.safetensors", "made")
    assert "it holds model.safetensors, which is no file of it" in find_checkpoint(tmp_path).lines()[0]


@pytest.mark.parametrize("name", [*STATES, LOG, SEAL])
def test_a_checkpoint_that_lacks_a_file_is_not_gone_on_from(tmp_path: Path, name: str) -> None:
    best(tmp_path, 4)
    (whole(tmp_path, 8, 4) / name).unlink()
    (line,) = find_checkpoint(tmp_path).lines()
    assert name in line and line.endswith("training begins from the start")


def test_a_seal_around_nothing_of_use(tmp_path: Path) -> None:
    best(tmp_path, 4)
    checkpoint = whole(tmp_path, 8, 4)
    for made in ({}, {"step": "x"}, {"step": 4, "best": 4, "optimizer": "fp32", "weights": "../..", "begun": {}}):
        seal(checkpoint, made)
        assert "it is no checkpoint of a training" in find_checkpoint(tmp_path).lines()[0]


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (self.path, 0o700)


@pytest.mark.trains
@pytest.mark.parametrize(
    "name", [one if one == "optimizer.pt" else pytest.param(one, marks=pytest.mark.thorough) for one in STATES]
)
def test_states_are_never_unpickled(
    name: str, backbone_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=1)
    run, ran = tmp_path / "run", tmp_path / "ran"
    train(recipe, run)
    kept = weights(run / "adapter")
    (checkpoint,) = (run / "checkpoints").iterdir()
    made = find_checkpoint(run).checkpoint
    assert made is not None
    (checkpoint / name).write_bytes(pickle.dumps(Touch(ran)))
    seal(checkpoint, {key: getattr(made, key) for key in ("step", "best", "optimizer", "weights", "begun")})
    again = train(recipe, run)
    assert not ran.exists() and again.training["resumed_from"] is None
    assert f"cannot be used: {name} cannot be read as plain data" in capsys.readouterr().out
    assert equal(weights(run / "adapter"), kept)


@pytest.mark.trains
def test_a_full_disk_is_one_line_and_leaves_nothing_half_whole(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=2)
    saved, save = [], torch.save

    def full(value: object, path: str) -> None:
        saved.append(path)
        if "checkpoint-8" in str(path):
            Path(path).write_bytes(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
        save(value, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(UserError, match=r"checkpoint-8 cannot be written in .*checkpoints: .*Make room, and start"):
            train(recipe, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-4"]
    assert str(train(recipe, tmp_path).training["resumed_from"]).endswith("checkpoint-4")
    assert {path.name for path in (tmp_path / "checkpoints" / "checkpoint-8").iterdir()} >= {SEAL, *STATES}
    assert not any(Path(path).name == "training_args.bin" for path in saved)


@pytest.mark.trains
def test_a_folder_that_was_moved_away_is_not_finished(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from src.train import fine_tuning

    run = tmp_path / "run"
    check = fine_tuning.check_rows_against_single
    monkeypatch.setattr(
        fine_tuning,
        "check_rows_against_single",
        lambda trainer: run.rename(tmp_path / "elsewhere") and check(trainer),
    )
    with pytest.raises(UserError, match="run was moved or deleted while this command worked in it"):
        train(toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=1), run)
    assert not run.exists()
