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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kept": "yes"}, "kept is of another kind"),
        ({"right": {"held": [2]}}, "something else than 0 and 1"),
        ({"right": []}, "right is of another kind"),
        ({"number": 3}, "not the step of this folder"),
        ({"kept": False}, "not the step of this folder"),
        ({"later": 1}, "later"),
    ],
)
def test_a_step_of_other_types_is_damaged(tmp_path: Path, change: dict[str, object], words: str) -> None:
    write_step(tmp_path, STEPS[0])
    file = tmp_path / "steps/000/step.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(UserError, match=f"step.json is damaged: .*{words}.*Delete .*000 and the steps after it"):
        read_steps(tmp_path)


@pytest.mark.parametrize("text", ["[]", '{"engine": 5}', "{}", "[" * 2000, "\xff"])
def test_settings_of_other_types_are_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "search.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"search.json is damaged"):
        check_folder(tmp_path, {"engine": "m"}, free=())
