"""The work left for a set of recipes: a command for each, and whether this machine can do it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from src.console.cli import UserError
from src.console.jobs import Job
from src.data import sha256, split_path
from src.files.paths import CHECKPOINTS, record_path
from src.model import trust
from src.model.recipes import ORPO, Recipe, differing_settings
from src.plan import ready
from src.plan.estimates import Estimate, Gpu
from src.plan.shared import launcher, refused
from src.runs.noted import differing_results, refuse_other_weights
from src.runs.record import Record


@dataclass(frozen=True)
class Place:
    """Where the runs and their data are, and the flags that every command gets.

    results  folder of the runs
    data     folder of the splits
    test     whether there is a test split, to be scored
    task     the flag that hands the task on to a command, or nothing
    reports  the flag of a training that reports to other tools, or nothing
    """

    results: Path
    data: Path
    test: bool
    task: Sequence[str] = ()
    reports: Sequence[str] = ()


@dataclass(frozen=True)
class Wanted:
    """A run that there is to be in the end.

    file    of its recipe
    recipe  what that becomes with `flags`
    place   of its folder and its data
    flags   of the training, on top of the file
    lean    whether its checkpoints are removed once it is finished
    """

    file: Path
    recipe: Recipe
    place: Place
    flags: Sequence[str] = ()
    lean: bool = False

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def folder(self) -> Path:
        return self.place.results / self.name


def all_done(wanted: Sequence[Wanted]) -> bool:
    """Whether nothing is left of any run."""
    try:
        return not any(map(command_left, wanted))
    except UserError:
        return False


def jobs_left(
    wanted: Sequence[Wanted], estimates: Sequence[Estimate], gpus: Sequence[Gpu] | None, at_once: int = 1
) -> tuple[list[Job], dict[str, str]]:
    """(jobs that can be done, name → why a run cannot be done). estimates: one for each run. gpus: of this machine;
    None when the jobs go to other machines, of which nothing is known here. at_once: jobs at the same time.

    UserError, before anything is downloaded or trained, when nothing can be done or the disk has no room for all.
    """
    failures: dict[str, str] = {}
    jobs: list[Job] = []
    for one, estimate in zip(wanted, estimates, strict=True):
        needed = 1 if record_path(one.folder).is_file() else estimate.gpus  # one scores
        try:
            command = command_left(one, needed)
        except UserError as error:
            failures[one.name] = str(error)
            continue
        if command:
            passing = (one.folder / CHECKPOINTS,) if one.lean else ()
            log, weight = one.folder / "log.txt", estimate.seconds or 1.0
            jobs.append(Job(one.name, tuple(command), log, weight, passing, needed))
    names = {job.name for job in jobs}
    left = [(one, estimate) for one, estimate in zip(wanted, estimates, strict=True) if one.name in names]
    obstacles = _obstacles(left, gpus, len(wanted), at_once)
    return [job for job in jobs if job.name not in obstacles], failures | obstacles


def command_left(wanted: Wanted, gpus: int = 1) -> list[str]:
    """The command for what is left of a run; [] when it is done. UserError when its folder holds something else.

    gpus: how many share its training.
    """
    recipe, place, folder = wanted.recipe, wanted.place, wanted.folder
    where, code = ["--data", str(place.data)], trust.flags(recipe)
    if not record_path(folder).is_file():
        score = ["--score", "test"] if place.test else []
        module = "orpo.orpo_train" if recipe.objective == ORPO else "run.train"
        flags = [*wanted.flags, *where, *score, *place.reports, *place.task, *code]
        return [sys.executable, *launcher(gpus), "-m", module, "--recipe", str(wanted.file), *flags]
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
    left: Sequence[tuple[Wanted, Estimate]], gpus: Sequence[Gpu] | None, runs: int, at_once: int
) -> dict[str, str]:
    """Name → why a run that is left to do cannot be done here. runs: their number, the finished ones included."""
    recipes, estimates = [one.recipe for one, _ in left], [estimate for _, estimate in left]
    found = refused(recipes, gpus) if gpus is None else ready.obstacles(recipes, estimates, gpus)
    if found and len(found) == runs:
        raise UserError(
            f"nothing can be run here. {ready.refusal(found)} Nothing was fetched. "
            "The plan for other machines: --dry_run; a try-out in some minutes: "
            "--recipes resource/miniature/recipes --data resource/miniature/data"
        )
    able = [(one, estimate) for one, estimate in left if one.name not in found]
    training = [(one, estimate) for one, estimate in able if not record_path(one.folder).is_file()]
    if training:
        from huggingface_hub import constants

        results = training[0][0].place.results
        ready.check_room(_at_their_peak(training, at_once), results, Path(constants.HF_HUB_CACHE))
    return found


def _at_their_peak(training: Sequence[tuple[Wanted, Estimate]], at_once: int) -> list[Estimate]:
    """The estimates, with the disk that each run takes when all together take most: of lean runs, only the `at_once`
    largest have checkpoints.
    """
    lean = [estimate for one, estimate in training if one.lean]
    lean.sort(key=lambda estimate: (estimate.kept or 0) - (estimate.disk or 0))
    whole = [estimate for one, estimate in training if not one.lean]
    return [*whole, *lean[:at_once], *(replace(estimate, disk=estimate.kept) for estimate in lean[at_once:])]
