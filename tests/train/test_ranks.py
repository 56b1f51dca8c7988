"""Two ranks do what one process does. They are started once for most tests."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src.model import ranks
from src.train.curves import read_steps
from src.train.ranks import GradientSum, seed_step
from tests import launched, toys
from tests.made_runs import make_place, stored
from tests.made_trainings import weights
from tests.train import ranks_cases as cases

pytestmark = pytest.mark.trains

CASES = list(cases.CASES)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a prompt and a backbone, for trainings and commands."""
    folder = tmp_path_factory.mktemp("ranks")
    make_place(folder)
    toys.save("qwen2", folder / "backbone")
    return folder


@pytest.fixture(scope="module")
def by_two(place: Path) -> dict[str, Any]:
    """What the records have of all cases, by two ranks; their folders are beside it. Begins with one process's half of
    a training, which the ranks go on with.
    """
    cases.interrupted(place / "from 1 to 2")
    launched.run([launched.ROOT / "tests/train/ranks_job.py", place], place)
    found: dict[str, Any] = json.loads((place / "found.json").read_text())
    return found


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        apart = float((value - theirs[name]).abs().max())
        assert apart < 1e-5, f"{name}: {apart}"


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_learn_what_one_process_does(name: str, place: Path, by_two: dict[str, Any]) -> None:
    alone = cases.trained(name, place, f"{name}, alone")
    kept = "model" if name == "all parameters" else "adapter"
    assert_same_weights(place / name / kept, place / f"{name}, alone" / kept)
    ours = by_two[name]
    assert ours["steps"] == alone["steps"] and ours["effective_batch"] == alone["effective_batch"]
    assert ours["best_step"] == alone["best_step"] and len(ours["evaluations"]) == len(alone["evaluations"])
    for one, other in zip(ours["evaluations"], alone["evaluations"], strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            assert one[key] == pytest.approx(value, abs=1e-4), key
    assert [loss for _, loss in ours["loss"]] == pytest.approx([loss for _, loss in alone["loss"]], rel=1e-4)
    rows, theirs = (read_steps(place / folder / "training.csv") for folder in (name, f"{name}, alone"))
    assert [(one.step, one.lr) for one in rows] == [(one.step, one.lr) for one in theirs]
    assert [one.loss for one in rows] == pytest.approx([one.loss for one in theirs], rel=1e-4)
    assert ours["ranks"]["world"] == 2 and ours["ranks"]["devices"] == ["cpu", "cpu"] and "ranks" not in alone
    trained = sum(value.numel() for value in weights(place / name / kept).values())
    assert ours["ranks"]["bytes_per_step"] == 4 * (trained + 1) or kept == "model"


@pytest.mark.parametrize("which", ["from 1 to 2", "from 2 to 1"])
def test_a_training_goes_on_with_another_number_of_ranks(which: str, place: Path, by_two: dict[str, Any]) -> None:
    alone = cases.trained(CASES[0], place, f"whole, not {which}")
    found = by_two[which] if which == "from 1 to 2" else cases.trained(CASES[0], place, which)
    assert found["resumed_from"].endswith("checkpoint-2") and found["steps"] == alone["steps"]
    assert_same_weights(place / which / "adapter", place / f"whole, not {which}" / "adapter")


def words(place: Path, run: str, *more: str | Path) -> list[str | Path]:
    where = ("--data", place / "data", "--prompt", place / "short.yaml", "--save_dir", place / run)
    model = ("--model_id", place / "backbone", "--backbone", "qwen2", "--method", "lora", "--lora_dropout", "0")
    return ["-m", "run.train", *model, *where, "--device", "cpu", "--lr", "3e-3", *more]


def test_a_step_of_too_few_items_is_refused_before_anything_else(place: Path) -> None:
    out, err = launched.run(words(place, "small", "--batch_size", "1"), place, code=2)
    assert out == "" and err.count("error:") == err.count("\n") == 1
    assert "has 1 item" in err and "at least 2 items" in err and "--batch_size 2" in err
    assert not (place / "small").exists()


def test_torchrun_and_scores(place: Path) -> None:
    """Training and scoring as commands: rank 0 alone speaks, scores are those of one process."""
    more = ("--epoch", "1", "--batch_size", "4", "--score", "test")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, words(place, "run", *more))],
        cwd=launched.ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The run lies in") == done.stdout.count("step 2: dev accuracy") == 1 and not done.stderr
    record = stored(place / "run")
    assert record["training"]["ranks"]["world"] == 2 and record["splits"].keys() == {"dev", "test"}
    before = {split: (place / "run" / f"scores_{split}.jsonl").read_text().splitlines() for split in ("dev", "test")}
    from run.test import main as score

    score(["--model_id", str(place / "run"), "--split", "dev", "test", "--device", "cpu"])
    for split, lines in before.items():
        alone = (place / "run" / f"scores_{split}.jsonl").read_text().splitlines()
        for one, other in zip(map(json.loads, lines), map(json.loads, alone), strict=True):
            assert one["id"] == other["id"] and one["prediction"] == other["prediction"]
            assert one["logits"][0] == pytest.approx(other["logits"][0], abs=1e-4)
    asked = ("--split", "test", "--orders", "6", "--device", "cpu")
    launched.run(["-m", "run.test", "--model_id", place / "run", *asked], place)
    assert len((place / "run" / "scores_test.6orders.jsonl").read_text().splitlines()) == len(before["test"])


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_the_other(killed: int, place: Path) -> None:
    run = f"killed {killed}"
    both = launched.start(words(place, run, "--epoch", "500", "--batch_size", "2"), place)
    try:
        wait_for(lambda: "step 4:" in launched.said(place, 0)[0] or both[0].poll() is not None)
        both[killed].kill()
        died = time.monotonic()
        codes = launched.end(both)
    finally:
        for one in both:
            one.kill()
    told = launched.said(place, 1 - killed)[1]
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == 1, told
    assert time.monotonic() - died < 10
    assert f"rank {killed} of 2 ended without a word" in told
    assert [path.name for path in (place / run / "checkpoints").iterdir()] and "Traceback" not in told


def wait_for(done: Callable[[], bool]) -> None:
    until = time.monotonic() + launched.PATIENCE
    while not done() and time.monotonic() < until:
        time.sleep(0.05)


def test_gradients_lie_in_one_buffer() -> None:
    one, other = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    summed = GradientSum([one, other])
    summed.begin()
    ((one * 2).sum() + (other * 3).sum().float()).backward()
    ((one * 2).sum()).backward()
    assert (
        summed.buffers[torch.float32].tolist() == [0, *[4] * 6] and summed.buffers[torch.bfloat16].tolist() == [3] * 4
    )
    assert one.grad is summed.gradients[0] and summed.bytes == 4 * 7 + 2 * 4
    summed.begin()
    assert not summed.buffers[torch.float32].any() and not summed.buffers[torch.bfloat16].any()


def test_masks_differ_by_rank_and_rounding_does_not() -> None:
    drawn = []
    for step, rank in ((3, 0), (3, 1), (4, 0), (3, ranks.ALL), (3, 0)):
        seed_step(42, step, rank)
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[4] and len({tuple(one) for one in drawn}) == 4


def test_alone_nothing_is_asked_of_others() -> None:
    assert ranks.gathered(3) == [3] and ranks.any_text("x") == "x" and ranks.any_text("") == ""
    assert ranks.decided(lambda: 5) == 5 and ranks.least(3, "y") == "y"
    assert ranks.is_first() and not ranks.several()
    with ranks.first_goes_first():
        pass
