"""The folder of a search: its settings and its steps."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from src import task
from src.console.cli import UserError
from src.files.kinds import fits
from src.files.paths import LOCK
from src.files.reading import read_json, read_text
from src.files.writing import write_json, write_text
from src.prompt.prompts import Prompt, parse_prompt
from src.search.addresses import masked
from src.worth.metrics import wilson

ASKED = "search.json"
Right = dict[str, list[int] | None]
"""For "learn" and "held": 1 for each item that a prompt gets right, else 0; None where it was not scored."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a search, as it lies on disk.

    kept     whether its prompt is the one in use from here on; `reason` says why, or why not
    prompt   YAML; empty where the critic's answer held none
    """

    number: int
    kept: bool
    reason: str
    prompt: str
    gradient: str
    right: Right
    calls: int
    seconds: float

    @property
    def accuracy(self) -> tuple[float, float, float] | None:
        """(share, low, high) of the held-out items, with the 95 % Wilson interval."""
        right = self.right["held"]
        return (sum(right) / len(right), *wilson(sum(right), len(right))) if right else None


def parse(text: str) -> Prompt:
    return parse_prompt(text, "a step's prompt")


def check_folder(folder: Path, asked: dict[str, Any], free: Collection[str]) -> None:
    """UserError when `folder` holds something else than the search that is asked for. free: keys that may differ."""
    file = folder / ASKED
    if not file.is_file():
        if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
            raise UserError(f"--out {folder} holds something else than a search; name a new folder.")
        return
    try:
        there = read_json(file)
        if not isinstance(there, dict) or not isinstance(there["engine"], str):
            raise TypeError("it is not what a search writes")
        there["engine"] = masked(there["engine"])  # older versions stored it as it was given
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged ({error!r}). Delete {folder}, or name another --out.") from error
    there.setdefault("task", task.load_task(task.FILE).sha256)  # older versions knew no other one
    differing = [key for key, value in asked.items() if there.get(key) != value and key not in free]
    if differing:
        told = ", ".join(f"{key} was {there.get(key)!r}, now {asked[key]!r}" for key in differing)
        raise UserError(f"{folder} holds another search: {told}. Delete it, or name another --out.")


def write_step(folder: Path, step: Step) -> None:
    """Writes step.json last, so that a step that has it is whole."""
    path = _step_folder(folder, step.number)
    write_text(path / "prompt.yaml", step.prompt)
    write_text(path / "gradient.txt", step.gradient)
    accuracy = dict(zip(("accuracy", "low", "high"), step.accuracy or (None,) * 3, strict=True))
    told = {key: value for key, value in dataclasses.asdict(step).items() if key not in ("prompt", "gradient")}
    write_json(path / "step.json", {**told, "held_out": accuracy})


def read_steps(folder: Path) -> list[Step]:
    """The steps of earlier sessions, up to the first that is not whole."""
    steps: list[Step] = []
    while (file := _step_folder(folder, len(steps)) / "step.json").is_file():
        try:
            steps.append(_read_step(file, len(steps)))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{file} is damaged: {error}. Delete {file.parent} and the steps after it; "
                "the same command makes them again."
            ) from error
    return steps


def _read_step(file: Path, number: int) -> Step:
    """ValueError or TypeError when it is not what `write_step` writes."""
    told = read_json(file)
    if not isinstance(told, dict):
        raise TypeError("not an object")
    told.pop("held_out", None)
    texts: dict[str, Any] = {
        name: read_text(file.parent / f"{name}.{kind}") for name, kind in (("prompt", "yaml"), ("gradient", "txt"))
    }
    step = Step(**told, **texts)
    for field in dataclasses.fields(Step):
        if not fits(getattr(step, field.name), field.type):
            raise TypeError(f"{field.name} is of another kind")
    held, learned = (step.right.get(name) for name in ("held", "learn"))
    if not all(one in (0, 1) for one in (*(held or ()), *(learned or ()))):
        raise ValueError("right holds something else than 0 and 1")
    if step.number != number or (number == 0 and not (step.kept and held)):
        raise ValueError("it is not the step of this folder")
    return step


def last_kept(steps: Sequence[Step]) -> Step:
    """The step whose prompt is in use."""
    return next(step for step in reversed(steps) if step.kept)


def draw_accuracy(steps: Sequence[Step], path: Path) -> None:
    """Accuracy on the held-out items over the steps, with 95 % intervals; refused prompts are hollow."""
    from src.figures import plots

    points, in_use = [], list[float]()
    for step in steps:
        if found := step.accuracy:
            points.append(plots.Point(step.number, *found, filled=step.kept))
        in_use.append(found[0] if found and step.kept else in_use[-1])
    plots.save_png(plots.accuracy_by_step(points, in_use), path)


def _step_folder(folder: Path, number: int) -> Path:
    return folder / "steps" / f"{number:03d}"
