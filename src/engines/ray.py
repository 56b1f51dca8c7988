"""The engine for a Ray cluster: each job is a task with as many GPUs as it needs, on whichever node has them free.

Ray places the tasks and starts one anew whose node or worker is lost; the command then goes on from its last
checkpoint. All nodes must see the repository, its environment and the results under the same paths. Without an address
a cluster of this machine alone is begun, on the loopback address. Nothing is reported to anyone: Ray's usage statistics
are off, and so is its dashboard.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from src.console.cli import UserError
from src.console.jobs import INTERRUPTED_WORD, Job, bars_of, run_job
from src.console.start import ROOT, ours
from src.engines.job_list import refuse_wide, variables

if TYPE_CHECKING:
    from rich.console import Console

NAME = "ray"
RETRIES = 10
"""How often a job is started anew whose worker was lost."""
LOOK = 1.0
"""Seconds between two looks at what is done."""
PATIENCE = 5.0
"""Seconds that a cluster has to answer at all."""
LOOPBACK = "127.0.0.1"
HERE_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Has Ray take this machine's address to be the loopback one, and listen there alone; otherwise it puts another one in
place of 127.0.0.1, and listens on all.
"""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0", "RAY_DEDUP_LOGS": "0"}


def check() -> None:
    """UserError where the package is missing."""
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "--engine ray needs the package ray, which is not installed. "
            f"Install it: pip install -r {ours('requirements-ray.txt')}; or leave the flag out: --engine local"
        )


def refuse_silent(address: str) -> None:
    """UserError where nothing listens at `address`: Ray itself tries for two minutes. It may be `auto`."""
    host, colon, port = address.rpartition(":")
    if address == "auto":
        return
    if not colon or not port.isdigit() or "/" in host:
        raise UserError(f"--address: found {address!r}, allowed: HOST:PORT, as `ray start` prints it, or auto.")
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--address {address}: nothing answers there ({error}). Start the cluster: ray start --head"
        ) from error


def run(
    jobs: Sequence[Job], at_once: int, console: "Console", environment: Mapping[str, str], address: str | None
) -> dict[str, str]:
    """Runs prepared jobs on the cluster at `address`, or on one of this machine's own, where `at_once` run at a time
    without GPUs. Returns name → why it failed. UserError, before any start, where one needs more GPUs than a node has.
    """
    failures: dict[str, str] = {}
    with _connected(address, at_once) as ray, contextlib.ExitStack() as stack:
        largest = max(node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"])
        if largest:
            refuse_wide(jobs, int(largest), "the largest node of the cluster")
        bars = stack.enter_context(bars_of(jobs, console))
        task = ray.remote(max_retries=RETRIES)(_work)
        waiting: dict[Any, Job] = {}
        for job in jobs:
            needs = {"num_gpus": job.gpus} if largest else {"num_cpus": 1}
            reference = task.options(name=job.name, **needs).remote(job, variables(NAME, environment), os.getcwd())
            waiting[reference] = job
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=LOOK)
            for reference in ready:
                job = waiting.pop(reference)
                reason, seconds = _result(ray, reference)
                if reason:
                    failures[job.name] = reason
                bars.finish(job, reason, seconds)
    return failures


def _work(job: Job, environment: Mapping[str, str], folder: str) -> tuple[str, float]:
    """In a worker of the cluster: does the job as any other engine. Returns (why it failed, seconds)."""
    started = time.monotonic()
    try:
        os.chdir(folder)
    except OSError as error:
        return f"{socket.gethostname()} does not see {folder} ({error.strerror}); all nodes must share it", 0.0
    stop = threading.Event()

    def run_here(command: Sequence[str]) -> str:
        try:
            return run_job(command, job.log, environment, lambda event: None, stop)
        except OSError as error:
            return f"{command[0]} cannot be started on {socket.gethostname()}: {error.strerror}"

    try:
        reason = job.do(run_here, lambda event: None, stop)
    except KeyboardInterrupt:
        reason = INTERRUPTED_WORD
    return reason, time.monotonic() - started


def _result(ray: Any, reference: Any) -> tuple[str, float]:
    try:
        reason, seconds = ray.get(reference)
        return str(reason), float(seconds)
    except ray.exceptions.RayError as error:
        lines = str(error).splitlines() or [""]
        return f"Ray lost it {RETRIES + 1} times, or could not start it: {type(error).__name__}: {lines[0][:300]}", 0.0


@contextlib.contextmanager
def _connected(address: str | None, at_once: int) -> Iterator[Any]:
    """Within the block, this command is connected to the cluster."""
    check()
    os.environ.update(QUIET)
    if address:
        refuse_silent(address)
    if not address or address.rpartition(":")[0] in (LOOPBACK, "localhost"):
        os.environ.update(HERE_ALONE)
    import ray

    options: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT), **QUIET}},
    }
    if address:
        options["address"] = address
    else:
        options |= {"address": "local", "num_cpus": at_once, "include_dashboard": False}
        options |= {"_node_ip_address": LOOPBACK}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if not address:
            raise
        lines = str(error).splitlines() or [""]
        raise UserError(f"--address {address}: Ray cannot join that cluster ({lines[0][:300]}).") from error
    try:
        yield ray
    finally:
        ray.shutdown()
