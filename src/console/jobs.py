"""Commands as child processes: their output in a log file, their progress through a pipe, their failure as one line.
Several run at the same time, each on its own GPU, under one bar for all and one for each stage.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.console.children import pausing, started
from src.console.cli import INTERRUPTED
from src.console.fork_server import ForkServer
from src.console.progress import PIPE
from src.console.slots import VISIBLE, Slots, visible
from src.console.start import ROOT

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

COMMAND = "$ "
"""Begins the line of a log that has the command."""
INTERRUPTED_WORD = "interrupted"
ENDED_LAUNCHER = "torch.distributed.elastic.multiprocessing.api.SignalException"
"""Begins the last line of torchrun where a signal has ended it; its exit code is then that of any failure."""
SHORTEST, LONGEST, LONGER = 0.002, 0.1, 1.3
"""Seconds between two looks at a command: few for one that has just begun, so that short ones cost little."""

Update = Callable[[dict[str, Any]], None]
"""Gets {"stage", "done", "total", "note"} while a command runs."""


@dataclass(frozen=True)
class Job:
    """A command, where its output goes, and its share of the whole in estimated seconds.

    passing  folders that are removed once the command is done
    gpus     how many it needs, where there are any
    attempt  gets (run, update, stop), where `run` runs a command and gives why it failed, and does the job with it, in
             place of one run of `command`
    """

    name: str
    command: tuple[str, ...]
    log: Path
    weight: float
    passing: tuple[Path, ...] = ()
    gpus: int = 1
    attempt: Callable[[Callable[[Sequence[str]], str], Update, threading.Event], str] | None = None

    def do(self, run: Callable[[Sequence[str]], str], update: Update, stop: threading.Event) -> str:
        """Why it failed, or ""; what it leaves for the time in between is removed when it is done."""
        if stop.is_set():
            return INTERRUPTED_WORD
        reason = self.attempt(run, update, stop) if self.attempt else run(self.command)
        for folder in () if reason else self.passing:
            shutil.rmtree(folder, ignore_errors=True)
        return reason


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    gpus: int,
    console: "Console",
    environment: Mapping[str, str] | None = None,
    modules: Sequence[str] = (),
) -> dict[str, str]:
    """Runs the jobs in their order, `at_once` at a time, and returns name → why it failed. Where there are several
    GPUs, each job has its own. environment: variables that all of them get. modules: imported once for all, where there
    is no GPU.
    """
    failures: dict[str, str] = {}
    stop = threading.Event()
    slots = Slots(at_once, gpus)
    shared = dict(environment or {})
    shared |= {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))} if at_once > 1 else {}
    forks = ForkServer.importing(modules, _environment(shared)) if modules and not gpus and len(jobs) > 1 else None
    with (
        bars_of(jobs, console) as bars,
        pausing(),
        forks or nullcontext(None) as server,
        ThreadPoolExecutor(at_once) as pool,
    ):

        def work(job: Job) -> None:
            taken = slots.take(job.gpus)
            gpu = {VISIBLE: visible(taken, gpus)} if gpus > 1 else {}
            started = time.monotonic()
            try:
                with bars.of(job) as update:

                    def run(command: Sequence[str]) -> str:
                        return run_job(command, job.log, {**shared, **gpu}, update, stop, server)

                    reason = job.do(run, update, stop)
            finally:
                slots.give_back(taken)
            if reason:
                failures[job.name] = reason
            bars.say(job, reason, time.monotonic() - started)

        try:
            list(pool.map(work, jobs))
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or the output's reader is gone
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return failures


WIDE = 120
"""Columns of a terminal that has room for loss, learning rate and speed beside a bar and its times."""


class Bars:
    """One bar for all jobs, by their weights, and one for the stage of each job that runs."""

    def __init__(self, progress: "Progress", jobs: Sequence[Job]) -> None:
        total = sum(job.weight for job in jobs)
        self.progress = progress
        self.whole = progress.add_task(f"all {len(jobs)} runs", total=total, visible=bool(jobs))

    def finish(self, job: Job, reason: str, seconds: float) -> None:
        """For a job that has no bar of its own."""
        self.progress.advance(self.whole, job.weight)
        self.say(job, reason, seconds)

    def say(self, job: Job, reason: str, seconds: float) -> None:
        word = "[red]failed[/red]" if reason else "done"
        self.progress.console.print(f"{word} {job.name}, {seconds:.0f} s", highlight=False)

    @contextmanager
    def of(self, job: Job) -> Iterator[Update]:
        """Within, a bar for `job`. Yields the `update` of `run_job`."""
        bar = self.progress.add_task(f"{job.name}: starting", total=None)
        counted = 0.0

        def update(event: dict[str, Any]) -> None:
            nonlocal counted
            words, total = f"{job.name}: {event['stage']}", event["total"]
            words += f", {event['note']}" if event.get("note") and self.progress.console.width >= WIDE else ""
            self.progress.update(bar, description=words, completed=event["done"], total=total)
            if event["stage"] == "train" and total:  # scoring is short beside it
                share = job.weight * event["done"] / total
                self.progress.advance(self.whole, share - counted)
                counted = share

        yield update
        self.progress.advance(self.whole, job.weight - counted)
        self.progress.remove_task(bar)


@contextmanager
def bars_of(jobs: Sequence[Job], console: "Console") -> Iterator[Bars]:
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console) as shown:
        yield Bars(shown, jobs)


def run_job(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    update: Update,
    stop: threading.Event,
    server: ForkServer | None = None,
) -> str:
    """Runs `command` to its end, or until `stop` is set, and returns why it failed, or "".

    `update` gets {"stage", "done", "total", "note"} while it runs. Each command is its own process, a fork of `server`
    if there is one. So its memory is always freed, and if it is killed, nothing else dies. It ends with this process,
    with all that it has started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        output = open(log, "a", encoding="utf-8", opener=_open_no_link)  # noqa: SIM115  # closed below
    except OSError as error:
        return f"its log {log} cannot be written: {error.strerror}"
    reading, writing = os.pipe()
    with output:
        output.write(f"{COMMAND}{' '.join(command)}\n")
        output.flush()
        with _begun(command, _environment(environment), output.fileno(), writing, server) as child:
            os.close(writing)
            reader = threading.Thread(target=_listen, args=(reading, update), daemon=True)
            reader.start()
            pause = SHORTEST
            while child.poll() is None and not stop.wait(pause):
                pause = min(LONGEST, LONGER * pause)
    reader.join(timeout=5)
    if child.returncode == 0:
        return ""
    return INTERRUPTED_WORD if stop.is_set() else _reason(log, child.returncode)


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `more`, for a command of this repository."""
    return {**os.environ, **environment_of_jobs(), **more}


def environment_of_jobs() -> dict[str, str]:
    """What every command of this repository gets that is not started by hand."""
    # `python -m run.train` must find the repository from any folder, and no module of the folder it is started in.
    found = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    # A log is UTF-8, whatever the terminal's encoding is.
    return found | {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


@contextmanager
def _begun(
    command: Sequence[str], environment: dict[str, str], output: int, pipe: int, server: ForkServer | None
) -> Iterator[Any]:
    """Within, the command's process, by `server` if it is `python -m`, or by itself where that is gone."""
    python, module = [*command, "", ""][:2], [*command, "", "", ""][2]
    if server is not None and python == [sys.executable, "-m"]:
        with server.run(module, command[3:], environment, output, pipe, PIPE) as child:
            if child is not None:
                yield child
                return
    options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT, "pass_fds": (pipe,)}
    with started(command, {**environment, PIPE: str(pipe)}, **options) as child:
        yield child


def _open_no_link(name: str, flags: int) -> int:
    """Opens a file, unless it is a link: what that leads to would grow."""
    return os.open(name, flags | os.O_NOFOLLOW, 0o666)


def _listen(pipe: int, update: Update) -> None:
    with os.fdopen(pipe, encoding="utf-8") as lines:
        for line in lines:
            update(json.loads(line))


def _reason(log: Path, code: int) -> str:
    """Why the last command in `log` ended with `code`: its last error message, or its last line."""
    if code == -signal.SIGKILL:
        return f"killed by the system, most often because memory ran out (see {log})"
    if code in (-signal.SIGINT, -signal.SIGTERM, INTERRUPTED):
        return INTERRUPTED_WORD
    text = log.read_text(encoding="utf-8", errors="replace").rpartition(COMMAND)[2]
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    if lines and lines[-1].startswith(ENDED_LAUNCHER):
        return INTERRUPTED_WORD
    marked = [line for line in lines if "error: " in line.lower()]
    message = (marked or lines or ["no output"])[-1].removeprefix("traceback : ")  # torchrun's, of a rank
    return f"{message.removeprefix('error: ')[:300]} (exit {code}, see {log})"
