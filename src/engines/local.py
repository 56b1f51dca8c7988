"""The engine for one machine: as many jobs at a time as there are GPUs, each a child of this command."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from src.console.jobs import Job, run_jobs
from src.engines.job_list import variables

if TYPE_CHECKING:
    from rich.console import Console

NAME = "local"


def run(
    jobs: Sequence[Job],
    at_once: int,
    gpus: int,
    console: "Console",
    environment: Mapping[str, str],
    modules: Sequence[str],
) -> dict[str, str]:
    """Runs prepared jobs, as `run_jobs`. Those that need more GPUs than there are fail without a start."""
    able = [job for job in jobs if job.gpus <= max(1, gpus) or not gpus]
    names = {job.name for job in able}
    failures = {
        job.name: f"it needs {job.gpus} GPUs, and this machine has {gpus}" for job in jobs if job.name not in names
    }
    return failures | run_jobs(able, at_once, gpus, console, variables(NAME, environment), modules)
