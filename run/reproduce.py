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

import argparse
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src import task
from src.console.cli import Parser, UserError, announced, run_main
from src.console.jobs import run_job, run_jobs
from src.console.terminal import name_problem
from src.data import DATA, SPLITS, Item, load_split, split_path
from src.files.paths import RESULTS, record_path
from src.model import devices, hub, trust
from src.model.recipe_files import RECIPES, load_recipes
from src.model.recipes import CHOICES, Recipe
from src.plan import estimates as plan
from src.plan import lengths, ready
from src.plan.table import plan_table
from src.plan.work import Place, all_done, jobs_left
from src.prompt.prompts import load_prompt
from src.runs.record import Record
from src.runs.run_list import accuracy_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


IMPORTED = ("src.runs.training", "src.runs.scoring", "src.train.fine_tuning")
"""What run.train takes longest to import."""


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
    task.add_flag(parser)
    trust.add_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    from src.console.tables import make_console

    arguments = make_parser().parse_args(argv)
    check(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clusters end jobs with SIGTERM; the runs must end, too
    started = time.monotonic()
    console = make_console(markup=True)

    # The plan
    recipes = load_recipes(arguments.recipes, arguments.only, arguments.objective)
    trust.check(*recipes.values())
    known = task.current().official.items if arguments.dry_run else {}
    splits = load_splits(arguments.data, known)
    for recipe in recipes.values():
        load_prompt(recipe.prompt)
    handed_on = ["--task", str(arguments.task)] if arguments.task else []
    place = Place(RESULTS, arguments.data, "test" in splits, handed_on)
    failures: dict[str, str] = {}
    if not arguments.dry_run and all_done(recipes, place):
        console.print(f"{', '.join(recipe.name for recipe in recipes.values())}: complete", soft_wrap=True)
    else:
        sizes = {**known, **{split: len(items) for split, items in splits.items()}}
        if (found := work(console, recipes, splits, sizes, place, arguments)) is None:
            return 0
        failures = found

    # The vote
    names = [recipe.name for recipe in recipes.values()]
    finished = [name for name in names if record_path(RESULTS / name).is_file() and name not in failures]
    vote = RESULTS / f"vote-{arguments.name or arguments.recipes[0].resolve().name}"
    (vote / "log.txt").unlink(missing_ok=True)  # log of the previous vote, whose results are in its record
    for split in [split for split in ("dev", "test") if split in splits and finished]:
        command = [sys.executable, "-m", "run.vote", *finished, "--split", split, "--data", str(arguments.data)]
        command += ["--out", str(vote), "--expect", *names, *handed_on]
        reason = run_job(command, vote / "log.txt", {}, lambda _: None, threading.Event())
        if reason:
            failures[f"vote on {split}"] = reason
    show_results(console, names, finished, vote, failures)
    console.print(f"{time.monotonic() - started:.0f} s")
    return 1 if failures else 0


def work(
    console: "Console",
    recipes: Mapping[Path, Recipe],
    splits: Mapping[str, Sequence[Item]],
    sizes: Mapping[str, int],
    place: Place,
    arguments: argparse.Namespace,
) -> dict[str, str] | None:
    """Shows the plan and does what is left: name → why it failed. None for a dry run, which ends with the plan. sizes:
    numbers of items by split.
    """
    with announced("asking torch for GPUs"):
        gpus = devices.gpus()
    estimates = plan.estimate_runs(list(recipes.values()), sizes, gpu=gpus[0] if gpus else None)
    too_long = lengths.too_long(list(recipes.values()), splits)
    if arguments.dry_run:
        show_plan(console, estimates, too_long)
        return None
    jobs, failures = jobs_left(recipes, estimates, gpus, place)
    show_plan(console, estimates, too_long)
    left = [recipe for recipe in recipes.values() if recipe.name in {job.name for job in jobs}]
    at_once = arguments.jobs or max(1, len(gpus))
    return failures | run_jobs(jobs, at_once, len(gpus), console, hub.handed_on(left), IMPORTED)


def check(arguments: argparse.Namespace) -> None:
    if arguments.name is not None and Path(arguments.name).name != arguments.name:
        raise UserError(f"--name: found {arguments.name!r}, allowed: the name of one folder, without slashes.")
    if problem := name_problem(arguments.name or ""):
        raise UserError(f"--name: {problem}.")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError(f"--jobs: found {arguments.jobs}, allowed: 1 or more.")


def load_splits(data: Path, known: Mapping[str, int]) -> dict[str, list[Item]]:
    """The existing splits. UserError when train or dev is missing and its size is not `known`."""
    return {
        split: load_split(data, split, labelled=split != "test")
        for split in SPLITS
        if split_path(data, split).is_file() or (split != "test" and split not in known)
    }


def show_plan(console: "Console", estimates: Sequence[plan.Estimate], too_long: Sequence[str]) -> None:
    console.print(plan_table(estimates))
    for line in too_long:
        console.print(line, markup=False, soft_wrap=True)


def show_results(
    console: "Console", names: Sequence[str], finished: Sequence[str], vote: Path, failures: Mapping[str, str]
) -> None:
    """The table of the runs and the vote, what failed and why, and where everything lies."""
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
        compared = f"Compare them: python -m run.evaluate {' '.join(finished[:2])} {vote.name}{task.flag()}"
        console.print(f"Runs lie in {RESULTS}, the vote and the submission in {vote}. {compared}", soft_wrap=True)


def table(runs: Sequence[Path], vote: Path) -> "RenderableType":
    """One row a run, the vote last: accuracies with 95 % Wilson intervals."""
    from rich.table import Table

    from src.console.tables import Fitted

    shown = Table("run", "method", "trainable", "items", "dev accuracy", "test accuracy", "seconds")
    for run in [*runs, *([vote] if record_path(vote).is_file() else [])]:
        record = Record.load(run)
        items = "/".join(str(record.splits[split].items) for split in ("dev", "test") if split in record.splits)
        cells = [accuracy_text(record.splits.get(split)) for split in ("dev", "test")]
        if record.is_vote:
            shown.add_section()
            shown.add_row(run.name, "hard vote", "", items, *cells, "")
        else:
            trainable, seconds = f"{record.trainable_parameters:,}", f"{record.seconds or 0:.0f}"
            shown.add_row(run.name, record.recipe.method_words, trainable, items, *cells, seconds)
    return Fitted(shown)


if __name__ == "__main__":
    sys.exit(run_main(main, resumes=True))
