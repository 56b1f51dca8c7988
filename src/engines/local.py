"""The engine for one machine: as many jobs at a time as there are GPUs, each a child of this command."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from src.console.jobs import Job, run_jobs
from src.engines.job_list import refuse_wide, variables

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
    """Runs prepared jobs, as `run_jobs`. UserError, before any start, where one needs more GPUs than there are."""
    refuse_wide(jobs, max(1, gpus), "this machine")
    return run_jobs(jobs, at_once, gpus, console, variables(NAME, environment), modules)
