"""The work left for a set of recipes: a command for each, and whether this machine can do it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.console.cli import UserError
from src.console.jobs import Job
from src.data import sha256, split_path
from src.files.paths import record_path
from src.model import trust
from src.model.recipes import ORPO, Recipe, differing_settings
from src.plan import ready
from src.plan.estimates import Estimate, Gpu
from src.runs.noted import differing_results, refuse_other_weights
from src.runs.record import Record


@dataclass(frozen=True)
class Place:
    """Where the runs and their data are, and the flags that every command gets.

    results  folder of the runs
    data     folder of the splits
    test     whether there is a test split, to be scored
    task     the flag that hands the task on to a command, or nothing
    """

    results: Path
    data: Path
    test: bool
    task: Sequence[str] = ()


def all_done(recipes: Mapping[Path, Recipe], place: Place) -> bool:
    """Whether nothing is left of any recipe."""
    try:
        return not any(command_left(file, recipe, place) for file, recipe in recipes.items())
    except UserError:
        return False


def jobs_left(
    recipes: Mapping[Path, Recipe], estimates: Sequence[Estimate], gpus: Sequence[Gpu], place: Place
) -> tuple[list[Job], dict[str, str]]:
    """(jobs that this machine can do, name → why a recipe cannot be done). estimates: one for each recipe.

    UserError, before anything is downloaded or written, when nothing can be done or the disk has no room for all.
    """
    failures: dict[str, str] = {}
    jobs: list[Job] = []
    for (file, recipe), estimate in zip(recipes.items(), estimates, strict=True):
        try:
            command = command_left(file, recipe, place)
        except UserError as error:
            failures[recipe.name] = str(error)
            continue
        if command:
            log = place.results / recipe.name / "log.txt"
            jobs.append(Job(recipe.name, tuple(command), log, estimate.seconds or 1.0))
    names = {job.name for job in jobs}
    left = [
        (recipe, estimate) for recipe, estimate in zip(recipes.values(), estimates, strict=True) if recipe.name in names
    ]
    obstacles = _obstacles(left, gpus, place.results, len(recipes))
    return [job for job in jobs if job.name not in obstacles], failures | obstacles


def command_left(file: Path, recipe: Recipe, place: Place) -> list[str]:
    """The command for what is left of a recipe; [] when it is done. UserError when its folder holds something else."""
    folder = place.results / recipe.name
    where, code = ["--data", str(place.data)], trust.flags(recipe)
    if not record_path(folder).is_file():
        score = ["--score", "test"] if place.test else []
        module = "orpo.orpo_train" if recipe.objective == ORPO else "run.train"
        return [sys.executable, "-m", module, "--recipe", str(file), *where, *score, *place.task, *code]
    record = Record.load(folder)
    differing = differing_settings(record.settings or {}, recipe)
    for split in ("train", "dev"):
        used = record.data.get(split)
        if used is None or used.sha256 != sha256(split_path(place.data, split)):
            differing.append(f"{split} data")
    if differing:
        raise UserError(
            f"{folder} is a finished run with other settings ({', '.join(differing)}). "
            "Delete it to train again, or give the recipe another name to keep both."
        )
    refuse_other_weights(folder, record)
    left = [split for split in ("dev", *(["test"] if place.test else [])) if _is_to_score(folder, record, split, place)]
    if not left:
        return []
    score = [sys.executable, "-m", "run.test", "--model_id", str(folder), "--split", *left]
    return [*score, *where, *place.task, *code]


def _is_to_score(folder: Path, record: Record, split: str, place: Place) -> bool:
    """Whether a finished run has no scores of this very file, or others than its record speaks of."""
    scored = record.splits.get(split)
    if split == "test" and (scored is None or scored.data_sha256 != sha256(split_path(place.data, split))):
        return True
    return scored is not None and bool(differing_results(folder, scored))


def _obstacles(
    left: Sequence[tuple[Recipe, Estimate]], gpus: Sequence[Gpu], results: Path, recipes: int
) -> dict[str, str]:
    """Name → why a run that is left to do cannot be done here. recipes: their number, the finished ones included."""
    found = ready.obstacles([recipe for recipe, _ in left], [estimate for _, estimate in left], gpus)
    if found and len(found) == recipes:
        raise UserError(
            f"nothing can be run here. {ready.refusal(found)} Nothing was fetched. "
            "The plan for other machines: --dry_run; a try-out in some minutes: "
            "--recipes resource/miniature/recipes --data resource/miniature/data"
        )
    able = [estimate for recipe, estimate in left if recipe.name not in found]
    training = [estimate for estimate in able if not record_path(results / estimate.run).is_file()]
    if training:
        from huggingface_hub import constants

        ready.check_room(training, results, Path(constants.HF_HUB_CACHE))
    return found
