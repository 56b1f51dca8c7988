"""Parameters sharded over two GPUs learn what whole ones on one GPU do, in compiled layers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from src.train.curves import read_steps
from tests import launched, toys
from tests.made_trainings import weights
from tests.train.sharded_gpu_job import CASES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two GPUs"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` and `two`: the trainings by so many ranks."""
    folder = tmp_path_factory.mktemp("sharded")
    toys.save("polar", folder / "backbone")
    for name in ("one", "two"):
        (folder / name).mkdir()
    job = launched.ROOT / "tests/train/sharded_gpu_job.py"
    environment = launched.environment(CUDA_VISIBLE_DEVICES=0)
    # At the same time: both compile for most of it.
    with subprocess.Popen([sys.executable, str(job), str(folder / "one")], cwd=launched.ROOT, env=environment) as alone:
        launched.run([job, folder / "two"], folder / "two", patience=900)
    assert alone.returncode == 0
    return folder


def found(place: Path, which: str, name: str) -> dict[str, Any]:
    training: dict[str, Any] = json.loads((place / which / "found.json").read_text())[name]
    return training


@pytest.mark.parametrize("name", CASES)
def test_two_gpus_learn_what_one_does(name: str, place: Path) -> None:
    one, two = (found(place, which, name) for which in ("one", "two"))
    assert two["ranks"]["world"] == 2 and two["ranks"]["sharded"] == "FSDP2" and two["steps"] == one["steps"]
    assert two["rows"]["kind"] == one["rows"]["kind"] and two["rows"]["guard"]["agree"]
    assert two["captured"]["obstacle"].startswith("parameters are sharded")
    ours, theirs = (read_steps(place / which / name / "training.csv") for which in ("two", "one"))
    # The stream between layers is bf16 where one GPU has fp32, and Adam's first steps follow signs of small gradients.
    assert [step.loss for step in ours] == pytest.approx([step.loss for step in theirs], rel=0.1, abs=0.05)
    kept = weights(place / "two" / name / "model")
    assert {value.dtype for value in kept.values()} == {torch.bfloat16}
    assert (
        all(value.isfinite().all() for value in kept.values())
        and kept.keys() == weights(place / "one" / name / "model").keys()
    )
