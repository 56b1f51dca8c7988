"""A list of jobs as every engine takes it: in a good order, each patient with whoever works in its folder already."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from src.console.cli import UserError
from src.console.jobs import INTERRUPTED_WORD, Job, Update
from src.files.locks import at_work, lock_folder
from src.files.signs import ENGINE, STARTING, Sign, conclude, remove_sign, write_sign
from src.plan.work import Wanted, command_left

LOOK = 1.0
"""Seconds between two looks at a folder that someone else works in."""


@dataclass(frozen=True)
class Patient:
    """How a job is done: once nobody else works in its folder, and only what is left by then.

    left    the command that is left, empty for none; asked after someone else was at work
    engine  its name
    """

    command: Sequence[str]
    folder: Path
    left: Callable[[], Sequence[str]]
    engine: str

    def __call__(self, run: Callable[[Sequence[str]], str], update: Update, stop: threading.Event) -> str:
        """Returns why it failed, or ""."""
        command, folder = self.command, self.folder
        while True:
            if busy := at_work(folder):
                update({"stage": f"the folder {busy}; waits", "done": 0, "total": 0})
                while at_work(folder):
                    if stop.wait(LOOK):
                        return INTERRUPTED_WORD
                try:
                    command = self.left()
                except UserError as error:
                    return str(error)
                if not command:
                    return ""
            folder.mkdir(parents=True, exist_ok=True)
            # Until the process gives its own.
            write_sign(folder, replace(Sign.of_this_process(), engine=self.engine, stage=STARTING))
            reason = run(command)
            if not reason:
                remove_sign(folder)
            elif reason != INTERRUPTED_WORD:
                if at_work(folder):  # someone else was faster
                    continue
                conclude(folder, reason)
            return reason


def prepared(jobs: Sequence[Job], wanted: Sequence[Wanted], engine: str) -> list[Job]:
    """The jobs in the order to start them: those that need the most GPUs first, then the longest, so that no long one
    is left for the end alone. Those whose folder is in use come last, and wait there. What an earlier attempt said of a
    job that starts anew is forgotten.
    """
    runs = {one.name: one for one in wanted}
    busy = {job.name for job in jobs if at_work(runs[job.name].folder)}
    for job in jobs:
        if job.name not in busy:
            remove_sign(runs[job.name].folder)
    ordered = sorted(jobs, key=lambda job: (job.name in busy, -job.gpus, -job.weight))
    return [replace(job, attempt=patient(job, runs[job.name], engine)) for job in ordered]


def refuse_wide(jobs: Sequence[Job], most: int, where: str) -> None:
    """UserError, before any job is started, where one needs more than the `most` GPUs that there are together."""
    if wide := [job for job in jobs if job.gpus > most]:
        needs = ", ".join(f"{job.name} needs {job.gpus} GPUs" for job in wide)
        raise UserError(
            f"{needs}, and {where} has {most}. Nothing was started. Leave such runs out (--only NAME …), or have "
            "their recipe say fsdp: auto, which shards a run only where no single GPU holds it."
        )


def patient(job: Job, wanted: Wanted, engine: str) -> Patient:
    return Patient(job.command, wanted.folder, functools.partial(command_left, wanted, job.gpus), engine)


@contextlib.contextmanager
def present(folder: Path) -> Iterator[None]:
    """Within the block, whoever looks at `folder` sees that a command is at work that starts what waits. Another one
    may be as well: no run is started twice, because its own folder is locked.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(UserError):
            stack.enter_context(lock_folder(folder))
        yield


def variables(engine: str, shared: Mapping[str, str]) -> dict[str, str]:
    """What the commands get in their environment."""
    return {**shared, ENGINE: engine}
