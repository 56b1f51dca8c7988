import dataclasses
import json
from pathlib import Path

import pytest

from src import task
from src.console.cli import UserError
from src.search.folder import Step, check_folder, draw_accuracy, last_kept, read_steps, write_step

STEPS = [
    Step(0, True, "the start", "name: a", "", {"learn": [1, 0], "held": [1, 0, 0, 1]}, 0, 1.5),
    Step(1, False, "no YAML", "", "feedback", {"learn": None, "held": None}, 2, 0.5),
    Step(2, True, "+1 −0", "name: b", "feedback", {"learn": [1, 1], "held": [1, 0, 1, 1]}, 2, 0.5),
    Step(3, False, "+0 −1", "name: c", "feedback", {"learn": [1, 1], "held": [1, 0, 0, 1]}, 2, 0.5),
]


def test_steps_are_read_up_to_the_first_that_is_not_whole(tmp_path: Path) -> None:
    for step in STEPS:
        write_step(tmp_path, step)
    assert read_steps(tmp_path) == STEPS and last_kept(STEPS) == STEPS[2]
    (tmp_path / "steps/002/step.json").unlink()
    assert read_steps(tmp_path) == STEPS[:2]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw_accuracy(STEPS, tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG") and not list(tmp_path.glob(".*"))


def test_another_task_is_another_search(tmp_path: Path) -> None:
    asked = {"engine": "m", "start": "s", "task": task.current().sha256}
    (tmp_path / "search.json").write_text(json.dumps({"engine": "m", "start": "s"}), encoding="utf-8")
    check_folder(tmp_path, asked, free=())  # a search of an older version
    other = dataclasses.replace(task.current(), letters=("1", "2", "3"))
    with pytest.raises(UserError, match="holds another search: task was"):
        check_folder(tmp_path, asked | {"task": other.sha256}, free=())
