"""The flags of `run.reproduce` that say where its jobs run, and the choice of the engine."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from src.console.cli import UserError
from src.console.jobs import Job
from src.engines import local, status
from src.engines.job_list import prepared, present
from src.plan.work import Wanted

if TYPE_CHECKING:
    from rich.console import Console

ENGINES = (local.NAME,)


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
    group.add_argument("--status", action="store_true", help="what each run does now; starts nothing")
    group.add_argument("--json", action="store_true", help="with --status: for programs")


def check(arguments: argparse.Namespace) -> None:
    if arguments.json and not arguments.status:
        raise UserError("--json: allowed with --status.")
    if arguments.status and arguments.dry_run:
        raise UserError("--status and --dry_run: found both, allowed: one of them.")


def goes_elsewhere(arguments: argparse.Namespace) -> bool:
    """Whether the jobs run on machines of which this one knows nothing."""
    return False


def place(
    jobs: Sequence[Job], wanted: Sequence[Wanted], room: Room, arguments: argparse.Namespace, console: "Console"
) -> dict[str, str] | None:
    """Has the engine do the jobs: name → why one failed. None when they go on without this command."""
    ready = prepared(jobs, wanted, arguments.engine)
    with present(room.folder):
        return local.run(ready, room.at_once, room.gpus, console, room.environment, room.modules)


def show_status(wanted: Sequence[Wanted], folder: Path, arguments: argparse.Namespace, console: "Console") -> None:
    """Prints what each run does. folder: of the engine."""
    controller = status.controller_of(folder)
    found = status.standings(wanted, bool(controller))
    if arguments.json:
        print(json.dumps(status.as_json(found, controller), ensure_ascii=False))
    else:
        console.print(status.table(found, controller))
