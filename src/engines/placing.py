"""The flags of `run.reproduce` that say where its jobs run, and the choice of the engine."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from src.console.cli import UserError
from src.console.jobs import Job
from src.engines import bench, local, ray, slurm, status
from src.engines.job_list import prepared, present
from src.files.locks import at_work
from src.plan.work import Wanted

if TYPE_CHECKING:
    from rich.console import Console

ENGINES = (local.NAME, ray.NAME, slurm.NAME)


@dataclass(frozen=True)
class Room:
    """Where jobs are placed, and what they get.

    folder       of what the engine writes, and of the lock that says that it is at work
    at_once      jobs at a time on this machine; gpus: how many it has
    environment  variables of all jobs; modules: what they take longest to import
    """

    folder: Path
    at_once: int
    gpus: int
    environment: Mapping[str, str]
    modules: Sequence[str]


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engines")
    group.add_argument("--engine", choices=ENGINES, default=local.NAME, help="where runs go (default: %(default)s)")
    address = "of a Ray cluster, HOST:PORT or auto (default: one of this machine alone)"
    group.add_argument("--address", help=address)
    options = "options of sbatch without their dashes: --sbatch time=24:00:00 partition=gpu"
    group.add_argument("--sbatch", nargs="+", default=[], metavar="NAME=VALUE", help=options)
    group.add_argument("--submit", action="store_true", help="with --engine slurm: submit the script, too")
    group.add_argument("--status", action="store_true", help="what each run does now; starts nothing")
    group.add_argument("--json", action="store_true", help="with --status: for programs")
    group.add_argument("--bench", type=int, metavar="N", help="what the engine costs: time N jobs that do nothing")


def check(arguments: argparse.Namespace) -> None:
    if arguments.json and not arguments.status:
        raise UserError("--json: allowed with --status.")
    if arguments.status and arguments.dry_run:
        raise UserError("--status and --dry_run: found both, allowed: one of them.")
    if arguments.bench is not None and arguments.bench < 1:
        raise UserError(f"--bench: found {arguments.bench}, allowed: 1 or more.")
    if arguments.address and arguments.engine != ray.NAME:
        raise UserError("--address: allowed with --engine ray.")
    if arguments.engine != slurm.NAME and (arguments.submit or arguments.sbatch):
        raise UserError(f"{'--submit' if arguments.submit else '--sbatch'}: allowed with --engine slurm.")
    slurm.check(arguments.sbatch, arguments.submit)
    if arguments.engine == slurm.NAME and arguments.bench:
        raise UserError("--bench: allowed with --engine local and ray; Slurm's own queue decides when its tasks begin.")
    if arguments.engine == ray.NAME and not arguments.status:
        ray.check()


def goes_elsewhere(arguments: argparse.Namespace) -> bool:
    """Whether the jobs run on machines of which this one knows nothing."""
    return bool(arguments.address) or arguments.engine == slurm.NAME


def place(
    jobs: Sequence[Job], wanted: Sequence[Wanted], room: Room, arguments: argparse.Namespace, console: "Console"
) -> dict[str, str] | None:
    """Has the engine do the jobs: name → why one failed. None when they go on without this command."""
    if arguments.engine == slurm.NAME:
        free = [job for job in jobs if not at_work(job.log.parent)]
        paths = slurm.place(
            prepared(free, wanted, slurm.NAME), room.folder, console, room.environment, arguments.sbatch
        )
        if arguments.submit:
            slurm.submit(paths, console)
        told = (
            "once they are done, the same command votes" if arguments.submit or not paths else "--submit submits them"
        )
        console.print(f"--status shows what each run does; {told}", markup=False, soft_wrap=True)
        return None
    with present(room.folder):
        return _run(prepared(jobs, wanted, arguments.engine), room, arguments, console)


def _run(jobs: Sequence[Job], room: Room, arguments: argparse.Namespace, console: "Console") -> dict[str, str]:
    if arguments.engine == ray.NAME:
        return ray.run(jobs, max(room.at_once, room.gpus), console, room.environment, arguments.address)
    return local.run(jobs, room.at_once, room.gpus, console, room.environment, room.modules)


def show_status(wanted: Sequence[Wanted], folder: Path, arguments: argparse.Namespace, console: "Console") -> None:
    """Prints what each run does. folder: of the engine."""
    controller = status.controller_of(folder)
    there = slurm.queued(folder)
    found = slurm.judged(status.standings(wanted, bool(controller), there), there)
    if arguments.json:
        print(json.dumps(status.as_json(found, controller), ensure_ascii=False))
    else:
        console.print(status.table(found, controller))


def show_bench(folder: Path, at_once: int, arguments: argparse.Namespace, console: "Console") -> None:
    """Prints what the engine costs. The jobs need no GPU, and `at_once` of them run at a time."""
    import io

    from src.console.tables import make_console

    room, nowhere = Room(folder, at_once, 0, {}, ()), make_console(markup=True, file=io.StringIO())
    lines = bench.bench(arguments.bench, folder, arguments.engine, lambda jobs: _run(jobs, room, arguments, nowhere))
    console.print("\n".join(lines), soft_wrap=True, markup=False)
