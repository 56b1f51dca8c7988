"""What an engine itself costs: the time for many jobs that do nothing."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from src.console.jobs import Job
from src.engines.job_list import Patient

COMMAND = ("true",)
ALONE = 100
"""How many bare processes are timed, for comparison."""


def empty_jobs(count: int, folder: Path, engine: str) -> list[Job]:
    """So many jobs, each with a run folder of its own in `folder`, its log and its signs of life."""
    made = []
    for number in range(count):
        own = folder / f"empty-{number:05d}"
        patient = Patient(COMMAND, own, lambda: (), engine)
        made.append(Job(own.name, COMMAND, own / "log.txt", 1.0, attempt=patient))
    return made


def bench(count: int, folder: Path, engine: str, run: Callable[[Sequence[Job]], dict[str, str]]) -> list[str]:
    """Times `count` empty jobs and returns lines that say how long they took. `folder` is made, and gone afterwards."""
    started = time.monotonic()
    for _ in range(ALONE):
        subprocess.run(COMMAND, check=True)
    alone = (time.monotonic() - started) / ALONE
    load = os.getloadavg()[0]
    started = time.monotonic()
    try:
        failures = run(empty_jobs(count, folder, engine))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - started
    lines = [f"{name}: {reason}" for name, reason in list(failures.items())[:5]]
    return [
        f"{engine}: {count} empty jobs in {seconds:.1f} s, {1000 * seconds / count:.1f} ms a job "
        f"({len(failures)} failed); a bare process takes {1000 * alone:.1f} ms",
        f"{os.cpu_count()} processors, load average {load:.1f} before",
        *lines,
    ]
