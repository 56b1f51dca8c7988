"""The whole competition: every recipe of a folder trained and scored, then the vote. Picks up where it stopped.

    python -m run.reproduce --dry_run
    python -m run.reproduce
    python -m run.reproduce --only polar eeve
    python -m run.reproduce --recipes resource/miniature/recipes --data resource/miniature/data --jobs 2
    python -m run.reproduce --recipes resource/recipes/published resource/recipes/orpo --objective orpo --name orpo

Each recipe is trained by run.train, or by orpo.orpo_train when its objective is orpo. Finished runs are kept,
unfinished ones go on, a backbone that fails is reported and the rest goes on. Recipes of the same base model follow
each other, so that no download is made twice. Each run's output is in resource/results/NAME/log.txt.
"""

import dataclasses
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src.console.cli import Parser, UserError, announced, run_main
from src.console.jobs import run_job
from src.data import DATA, load_split, sha256, split_path
from src.files.paths import RESULTS, record_path
from src.model.recipes import CHOICES, ORPO, RECIPES, Recipe, differing_settings, load_recipes
from src.plan import estimates as plan
from src.plan import lengths, ready
from src.prompt.prompts import load_prompt
from src.runs.record import read_record
from src.worth.metrics import wilson

OFFICIAL_SIZES = {"train": 758, "dev": 151, "test": 605}
"""Items of NIKL's splits, for a plan made before they are there."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is left to do for one recipe: a command, and its share of the whole in estimated seconds."""

    name: str
    command: tuple[str, ...]
    weight: float


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.reproduce")
    parser.add_argument(
        "--recipes",
        type=Path,
        nargs="+",
        default=[RECIPES / "published"],
        metavar="DIR",
        help=f"their folder, or folders (default: {RECIPES / 'published'})",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these recipes")
    parser.add_argument("--objective", choices=CHOICES["objective"], help="only recipes with this objective")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the splits (default: %(default)s)")
    parser.add_argument(
        "--name", help="the vote lies in resource/results/vote-NAME (default: the first recipe folder's name)"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at the same time (default: the number of GPUs, else 1)"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    return parser


def main(argv: list[str] | None = None) -> int:
    from src.console.tables import make_console

    arguments = make_parser().parse_args(argv)
    if arguments.name is not None and Path(arguments.name).name != arguments.name:
        raise UserError(f"--name: found {arguments.name!r}, allowed: the name of one folder, without slashes.")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError(f"--jobs: found {arguments.jobs}, allowed: 1 or more.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # how a cluster ends a job: the runs end with it
    started = time.monotonic()
    console = make_console(markup=True)

    # The plan
    recipes = load_recipes(arguments.recipes, arguments.only, arguments.objective)
    splits = {
        split: load_split(arguments.data, split, labelled=split != "test")
        for split in ("train", "dev", "test")
        if split_path(arguments.data, split).is_file() or (split != "test" and not arguments.dry_run)
    }
    for recipe in recipes.values():
        load_prompt(recipe.prompt)
    with announced("asking torch for GPUs"):
        gpus = plan.gpus()
    sizes = {split: len(items) for split, items in splits.items()}
    if arguments.dry_run:
        sizes = OFFICIAL_SIZES | sizes
    rows = plan.plan_rows(list(recipes.values()), sizes, gpu=gpus[0] if gpus else None)
    too_long = lengths.too_long(list(recipes.values()), splits)
    if arguments.dry_run:
        show_plan(console, rows, too_long)
        return 0
    failures: dict[str, str] = {}
    jobs = []
    for (file, recipe), row in zip(recipes.items(), rows, strict=True):
        try:
            command = command_for(file, recipe, arguments.data, "test" in splits)
        except UserError as error:
            failures[recipe.name] = str(error)
            continue
        if command:
            jobs.append(Job(recipe.name, tuple(command), row.seconds or 1.0))
    jobs = able(jobs, list(recipes.values()), rows, gpus, failures)
    show_plan(console, rows, too_long)

    # The runs
    failures |= run_jobs(jobs, arguments.jobs or max(1, len(gpus)), len(gpus), console)

    # The vote
    names = [recipe.name for recipe in recipes.values()]
    finished = [name for name in names if record_path(RESULTS / name).is_file() and name not in failures]
    vote = RESULTS / f"vote-{arguments.name or arguments.recipes[0].resolve().name}"
    (vote / "log.txt").unlink(missing_ok=True)  # of the vote before: what it said is in the record
    for split in [split for split in ("dev", "test") if split in splits and finished]:
        command = [sys.executable, "-m", "run.vote", *finished, "--split", split, "--data", str(arguments.data)]
        command += ["--out", str(vote), "--expect", *names]
        reason = run_job(command, vote / "log.txt", {}, lambda _: None, threading.Event())
        if reason:
            failures[f"vote on {split}"] = reason
    if finished:
        console.print(table([RESULTS / name for name in finished], vote))
        missing = [name for name in names if name not in finished]
        console.print(
            f"The vote is of {len(finished)} of {len(names)}" + (f"; missing: {', '.join(missing)}" if missing else "")
        )
    for reason, failed in ready.by_reason(failures).items():
        console.print(f"[red]failed[/red] {', '.join(failed)}: {reason}", soft_wrap=True)
    if failures:
        console.print("The same command tries what failed again and keeps the rest.")
    if finished:
        compared = f"Compare them: python -m run.evaluate {' '.join(finished[:2])} {vote.name}"
        console.print(f"Runs lie in {RESULTS}, the vote and the submission in {vote}. {compared}", soft_wrap=True)
    console.print(f"{time.monotonic() - started:.0f} s")
    return 1 if failures else 0


def command_for(file: Path, recipe: Recipe, data: Path, test: bool) -> list[str]:
    """The command that does what is missing of a recipe, or nothing. UserError when its folder holds something else."""
    folder = RESULTS / recipe.name
    if not record_path(folder).is_file():
        score = ["--score", "test"] if test else []
        module = "orpo.orpo_train" if recipe.objective == ORPO else "run.train"
        return [sys.executable, "-m", module, "--recipe", str(file), "--data", str(data), *score]
    record = read_record(folder)
    differing = differing_settings(record["recipe"], recipe)
    differing += [
        f"{split} data"
        for split in ("train", "dev")
        if record["data"].get(split, {}).get("sha256") != _sha(data, split)
    ]
    if differing:
        raise UserError(
            f"{folder} is a finished run with other settings ({', '.join(differing)}). Delete it to train "
            f"again, or give the "
            "recipe another name to keep both."
        )
    if test and record["splits"].get("test", {}).get("data_sha256") != _sha(data, "test"):
        return [sys.executable, "-m", "run.test", "--model_id", str(folder), "--data", str(data)]
    return []


def show_plan(console: Any, rows: Sequence[plan.PlanRow], too_long: Sequence[str]) -> None:
    console.print(plan.plan_table(rows))
    for line in too_long:
        console.print(line, markup=False, soft_wrap=True)


def able(
    jobs: list[Job], recipes: list[Recipe], rows: list[plan.PlanRow], gpus: list[plan.Gpu], failures: dict[str, str]
) -> list[Job]:
    """The jobs that this machine can do; why the others cannot be done goes to `failures`. UserError when none can, or
    when the disk has no room for them: before anything is fetched or made.
    """
    names = [job.name for job in jobs]
    left = [(recipe, row) for recipe, row in zip(recipes, rows, strict=True) if recipe.name in names]
    found = ready.obstacles([recipe for recipe, _ in left], [row for _, row in left], gpus)
    if found and len(found) == len(recipes):
        raise UserError(
            f"nothing can be run here. {ready.refusal(found)} Nothing was fetched. The plan for other machines: "
            "--dry_run; a try-out in a minute: --recipes resource/miniature/recipes --data resource/miniature/data"
        )
    failures |= found
    training = [
        row for recipe, row in left if recipe.name not in found and not record_path(RESULTS / row.run).is_file()
    ]
    if training:
        from huggingface_hub import constants

        ready.check_room(training, RESULTS, Path(constants.HF_HUB_CACHE))
    return [job for job in jobs if job.name not in found]


def run_jobs(jobs: list[Job], at_once: int, gpus: int, console: Any) -> dict[str, str]:
    """Runs the jobs, each on a GPU of its own where there are several, under one bar for the whole and one for each
    stage.
    """
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    failures: dict[str, str] = {}
    stop = threading.Event()
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(at_once):
        slots.put(slot)
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(at_once) as pool:
        whole = progress.add_task(f"all {len(jobs)} runs", total=sum(job.weight for job in jobs), visible=bool(jobs))

        def work(job: Job) -> None:
            slot = slots.get()
            environment = {"OMP_NUM_THREADS": threads} if at_once > 1 else {}
            if gpus > 1:
                environment["CUDA_VISIBLE_DEVICES"] = str(slot % gpus)
            task = progress.add_task(f"{job.name}: starting", total=None)
            counted = 0.0

            def update(event: dict[str, Any]) -> None:
                nonlocal counted
                progress.update(
                    task, description=f"{job.name}: {event['stage']}", completed=event["done"], total=event["total"]
                )
                if event["stage"] == "train" and event["total"]:  # scoring is short beside it
                    share = job.weight * event["done"] / event["total"]
                    progress.advance(whole, share - counted)
                    counted = share

            started = time.monotonic()
            reason = run_job(job.command, RESULTS / job.name / "log.txt", environment, update, stop)
            progress.advance(whole, job.weight - counted)
            progress.remove_task(task)
            slots.put(slot)
            if reason:
                failures[job.name] = reason
            word = "[red]failed[/red]" if reason else "done"
            progress.console.print(f"{word} {job.name}, {time.monotonic() - started:.0f} s", highlight=False)

        try:
            list(pool.map(work, jobs))
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or nobody reads the output any more
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return failures


def table(runs: list[Path], vote: Path) -> Any:
    """One row a run, the vote last: accuracies with 95 % Wilson intervals."""
    from rich.table import Table

    from src.console.tables import Fitted

    shown = Table("run", "method", "trainable", "items", "dev accuracy", "test accuracy", "seconds")
    for run in [*runs, *([vote] if record_path(vote).is_file() else [])]:
        record = read_record(run)
        splits = record["splits"]
        items = "/".join(str(splits[split]["items"]) for split in ("dev", "test") if split in splits)
        cells = [accuracy(splits.get(split)) for split in ("dev", "test")]
        if "recipe" in record:
            trainable = f"{record['trainable_parameters']:,}"
            shown.add_row(
                run.name, Recipe(**record["recipe"]).method_words, trainable, items, *cells, f"{record['seconds']:.0f}"
            )
        else:
            shown.add_section()
            shown.add_row(run.name, "hard vote", "", items, *cells, "")
    return Fitted(shown)


def accuracy(result: dict[str, Any] | None) -> str:
    if result is None:
        return "not scored"
    if result["accuracy"] is None:
        return "no labels"
    low, high = wilson(result["correct"], result["items"])
    return f"{result['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def _sha(data: Path, split: str) -> str:
    return sha256(split_path(data, split))


if __name__ == "__main__":
    sys.exit(run_main(main, resumes=True))
