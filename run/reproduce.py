"""The whole competition: every recipe of a folder trained and scored, then the vote. Picks up where it stopped.

    python -m run.reproduce --dry_run
    python -m run.reproduce
    python -m run.reproduce --only polar eeve
    python -m run.reproduce --recipes resource/miniature/recipes --data resource/miniature/data --jobs 2
    python -m run.reproduce --recipes resource/recipes/published resource/recipes/orpo --objective orpo --name orpo
    python -m run.reproduce --folds 5 --seeds 2 --dry_run
    python -m run.reproduce --status
    python -m run.reproduce --engine slurm --sbatch time=24:00:00 partition=gpu

Each recipe is trained by run.train, or by orpo.orpo_train when its objective is orpo. Finished runs are kept,
unfinished ones go on, a backbone that fails is reported and the rest goes on. Runs that need the most GPUs come first,
then those of the most hours in the plan. Each run's output is in resource/results/NAME/log.txt.

A run of all parameters that no single GPU holds by the plan, or whose recipe says fsdp: on, is sharded over 2, 4 or 8
of them, the fewest that hold it; torchrun starts it.

--status, from any terminal, with the same flags as the command that runs, tells what each run does: how far it is, when
it last gave a sign of life, why it failed. A run that someone else has at work is waited for and not started twice.

--engine ray places the runs on a Ray cluster, --engine slurm writes an array script for Slurm and with --submit submits
it, too; src/engines/README.en.md has the rest.

With --folds K, train and dev together are divided into K folds: whole dialogues, the categories spread evenly. Each
recipe is trained K times (times S with --seeds S, the recipe's seed and those after it): run NAME-f1of5 is trained on
all folds but the first and scored on the first, which is its dev split, and on test. It keeps its last weights and not
those that are best on dev, so no fold chooses anything about the run that it is scored with. Checkpoints of finished
fold runs are removed. NAME-oof5 joins them: as
its dev split all labelled items, each scored by the run that was not trained on its dialogue, and on test the mean of
the K runs. It is compared and votes like any run: python -m run.vote NAME-oof5 … --rule weighted.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src import task
from src.console.cli import Parser, UserError, announced, run_main
from src.console.jobs import run_job
from src.console.terminal import name_problem
from src.console.words import counted
from src.data import DATA, SPLITS, Item, load_split, split_path
from src.engines import placing
from src.files.paths import RESULTS, record_path
from src.model import devices, hub, trust
from src.model.recipe_files import RECIPES, load_recipes
from src.model.recipes import CHOICES, Recipe
from src.plan import estimates as plan
from src.plan import folds as cross
from src.plan import lengths, ready
from src.plan.shared import shared_out
from src.plan.table import plan_table
from src.plan.work import Place, Wanted, all_done, jobs_left
from src.prompt.prompts import load_prompt
from src.runs.fold_table import fold_table
from src.runs.record import Record
from src.runs.run_list import accuracy_text
from src.train import reports

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


IMPORTED = ("src.runs.training", "src.runs.scoring", "src.train.fine_tuning", "src.figures.training")
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
    parser.add_argument("--folds", type=int, metavar="K", help="cross-validate in K folds of train and dev together")
    parser.add_argument("--seeds", type=int, metavar="S", help="with --folds: each recipe with S seeds (default: 1)")
    shared = "with --folds: leave out the dialogues that train and dev share"
    parser.add_argument("--drop_shared", action="store_true", help=shared)
    placing.add_flags(parser)
    reports.add_flag(parser)
    task.add_flag(parser)
    trust.add_flag(parser)
    return parser


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    recipes  by file
    splits   those that are there
    sizes    items of each split, the official numbers where a dry run has no data
    place    of the runs and the data
    name     of the vote, and of the folds
    """

    console: "Console"
    arguments: argparse.Namespace
    recipes: Mapping[Path, Recipe]
    splits: Mapping[str, Sequence[Item]]
    sizes: Mapping[str, int]
    place: Place
    name: str


def main(argv: list[str] | None = None) -> int:
    from src.console.tables import make_console

    arguments = make_parser().parse_args(argv)
    check(arguments)
    reports.check(arguments.report_to)
    if arguments.bench:
        placing.show_bench(RESULTS / "jobs-bench", arguments.jobs or 2, arguments, make_console())
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clusters end jobs with SIGTERM; the runs must end, too
    started = time.monotonic()
    console = make_console(markup=True)
    recipes = load_recipes(arguments.recipes, arguments.only, arguments.objective)
    trust.check(*recipes.values())
    known = task.current().official.items if arguments.dry_run else {}
    splits = {} if arguments.status else load_splits(arguments.data, known)
    for recipe in recipes.values():
        load_prompt(recipe.prompt)
    handed_on = ["--task", str(arguments.task)] if arguments.task else []
    told = ["--report_to", *arguments.report_to] if arguments.report_to else []
    place = Place(RESULTS, arguments.data, split_path(arguments.data, "test").is_file(), handed_on, told)
    sizes = {**known, **{split: len(items) for split, items in splits.items()}}
    name = arguments.name or arguments.recipes[0].resolve().name
    asked = Asked(console, arguments, recipes, splits, sizes, place, name)
    if arguments.status:
        wanted, _ = runs_wanted(asked)
        placing.show_status(wanted, engine_folder(asked), arguments, console)
        return 0
    failures = cross_validate(asked) if arguments.folds is not None else reproduce(asked)
    if failures is None:
        return 0
    console.print(f"{time.monotonic() - started:.0f} s")
    return 1 if failures else 0


def runs_wanted(asked: Asked) -> tuple[list[Wanted], list[cross.Joint]]:
    """The runs that there are to be in the end, and what fold runs are joined to."""
    arguments = asked.arguments
    if arguments.folds is None:
        return [Wanted(file, recipe, asked.place) for file, recipe in asked.recipes.items()], []
    folder, seeds = folds_folder(asked), arguments.seeds or 1
    return cross.fold_runs(asked.recipes, arguments.folds, seeds, asked.place, folder, arguments.name or "")


def folds_folder(asked: Asked) -> Path:
    return RESULTS / f"folds-{asked.name}"


def engine_folder(asked: Asked) -> Path:
    return RESULTS / f"jobs-{'' if asked.arguments.folds is None else 'folds-'}{asked.name}"


def reproduce(asked: Asked) -> dict[str, str] | None:
    """One run of each recipe, and the vote: name → why it failed. None after a dry run, which ends with the plan."""
    wanted, _ = runs_wanted(asked)
    failures = work(asked, wanted, asked.sizes)
    if failures is None:
        return None
    names = [one.name for one in wanted]
    finished = finished_of(names, failures)
    out = RESULTS / f"vote-{asked.name}"
    failures |= vote(asked, {split: (finished, names) for split in ("dev", "test")}, asked.arguments.data, out)
    if finished:
        asked.console.print(table([RESULTS / name for name in finished], out))
    tell(asked.console, finished, names, failures)
    if finished:
        compared = f"Compare them: python -m run.evaluate {' '.join(finished[:2])} {out.name}{task.flag()}"
        told = f"Runs lie in {RESULTS}, the vote and the submission in {out}. {compared}"
        asked.console.print(told, soft_wrap=True)
    return failures


def cross_validate(asked: Asked) -> dict[str, str] | None:
    """The fold runs of each recipe and seed, their scores joined, and the votes. Returns what `reproduce` does."""
    console, arguments, folder = asked.console, asked.arguments, folds_folder(asked)
    cross.refuse_recipes(list(asked.recipes.values()))
    seeds, recipes = arguments.seeds or 1, len(asked.recipes)
    wanted, joints = runs_wanted(asked)
    if set(cross.LABELLED) <= set(asked.splits):  # a dry run may do without
        folds = cross.gather_folds(asked.splits, arguments.data, arguments.folds, arguments.drop_shared)
        cross.refuse_other_folds(folder, folds)
        console.print("\n".join(folds.lines()), soft_wrap=True, markup=False)
        if not arguments.dry_run:
            cross.write_folds(folder, folds)
    told = f"{counted(recipes, 'recipe')}, {arguments.folds} folds, {counted(seeds, 'seed')}"
    console.print(f"{len(wanted)} fold runs: {told}; each keeps its last weights")
    failures = work(asked, wanted, cross.fold_sizes(asked.sizes, arguments.folds))
    if failures is None:
        return None
    names = [one.name for one in wanted]
    finished = finished_of(names, failures)
    joined = cross.join_finished(wanted, joints, finished, folder)
    out = RESULTS / f"vote-folds-{asked.name}"
    answers = [joint.name for joint in joined]
    voters = {"dev": (answers, [joint.name for joint in joints]), "test": (finished, names)}
    failures |= vote(asked, voters, folder, out)
    if joined:
        console.print(fold_table([(joint.recipe, RESULTS / joint.name) for joint in joined], out))
    tell(console, finished, names, failures)
    if joined:
        tested = "test" in asked.splits
        console.print("\n".join(cross.next_steps(answers, folder, out, tested)), soft_wrap=True, markup=False)
    return failures


def work(asked: Asked, wanted: Sequence[Wanted], sizes: Mapping[str, int]) -> dict[str, str] | None:
    """Shows the plan and does what is left: name of a run → why it failed. None for a dry run, which ends with the
    plan. wanted: as many runs of each recipe, recipe after recipe. sizes: numbers of items by split of one run.
    """
    arguments, recipes = asked.arguments, list(asked.recipes.values())
    if not arguments.dry_run and all_done(wanted):
        asked.console.print(f"{', '.join(one.name for one in wanted)}: complete", soft_wrap=True)
        return {}
    with announced("asking torch for GPUs"):
        gpus = devices.gpus()
    each, at_once = len(wanted) // len(recipes), arguments.jobs or max(1, len(gpus))
    elsewhere = placing.goes_elsewhere(arguments)
    estimates = plan.estimate_runs(recipes, sizes, gpu=gpus[0] if gpus else None)
    estimates = shared_out(estimates, recipes, None if elsewhere else gpus)
    shown = estimates if each == 1 else [cross.of_many(one, each, at_once) for one in estimates]
    too_long = lengths.too_long(recipes, asked.splits)
    if arguments.dry_run:
        show_plan(asked.console, shown, too_long)
        return None
    of_each = [replace(estimates[place // each], run=run.name) for place, run in enumerate(wanted)]
    jobs, failures = jobs_left(wanted, of_each, None if elsewhere else gpus, at_once)
    show_plan(asked.console, shown, too_long)
    for reason, names in ready.by_reason(failures).items():  # told again in the end, which may be days away
        asked.console.print(f"left out {', '.join(names)}: {reason}", soft_wrap=True, markup=False)
    left = [one.recipe for one in wanted if one.name in {job.name for job in jobs}]
    handed_on = {} if elsewhere else hub.handed_on(left)
    room = placing.Room(engine_folder(asked), at_once, len(gpus), handed_on, IMPORTED)
    placed = placing.place(jobs, wanted, room, arguments, asked.console)
    if placed is None:
        tell(asked.console, [], [], failures)
        return None
    return failures | placed


def finished_of(names: Sequence[str], failures: Mapping[str, str]) -> list[str]:
    return [name for name in names if record_path(RESULTS / name).is_file() and name not in failures]


def vote(
    asked: Asked, voters: Mapping[str, tuple[Sequence[str], Sequence[str]]], data: Path, out: Path
) -> dict[str, str]:
    """The votes on the splits that are there: which failed and why. voters: split → (those that can vote, all that
    should).
    """
    failures = {}
    (out / "log.txt").unlink(missing_ok=True)  # log of the previous vote, whose results are in its record
    for split, (able, expected) in voters.items():
        if not able or split not in asked.splits:
            continue
        command = [sys.executable, "-m", "run.vote", *able, "--split", split, "--data", str(data)]
        command += ["--out", str(out), "--expect", *expected, *asked.place.task]
        reason = run_job(command, out / "log.txt", {}, lambda _: None, threading.Event())
        if reason:
            failures[f"vote on {split}"] = reason
    return failures


def check(arguments: argparse.Namespace) -> None:
    if arguments.name is not None and Path(arguments.name).name != arguments.name:
        raise UserError(f"--name: found {arguments.name!r}, allowed: the name of one folder, without slashes.")
    if problem := name_problem(arguments.name or ""):
        raise UserError(f"--name: {problem}.")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError(f"--jobs: found {arguments.jobs}, allowed: 1 or more.")
    placing.check(arguments)
    if arguments.folds is None and (arguments.seeds is not None or arguments.drop_shared):
        flag = "--drop_shared" if arguments.seeds is None else "--seeds"
        raise UserError(f"{flag}: allowed with --folds K, which divides train and dev together into K folds.")
    if arguments.folds is not None and arguments.folds < 2:
        raise UserError(
            f"--folds: found {arguments.folds}, allowed: 2 or more; one fold is held out, the others train."
        )
    if arguments.seeds is not None and arguments.seeds < 1:
        raise UserError(f"--seeds: found {arguments.seeds}, allowed: 1 or more.")


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


def tell(console: "Console", finished: Sequence[str], names: Sequence[str], failures: Mapping[str, str]) -> None:
    """Who votes, what failed and why."""
    if finished:
        missing = [name for name in names if name not in finished]
        console.print(
            f"The vote is of {len(finished)} of {len(names)}" + (f"; missing: {', '.join(missing)}" if missing else "")
        )
    for reason, failed in ready.by_reason(failures).items():
        console.print(f"[red]failed[/red] {', '.join(failed)}: {reason}", soft_wrap=True)
    if failures:
        console.print("The same command tries what failed again and keeps the rest.")


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
