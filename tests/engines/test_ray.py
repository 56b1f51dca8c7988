"""The engine for Ray, on a real cluster of several nodes on the loopback address; left out where Ray is missing."""

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src.console.cli import UserError
from src.console.jobs import Job
from src.console.tables import make_console
from src.engines import ray as engine
from src.engines.job_list import Patient
from src.files.signs import read_sign

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray is not installed")


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_the_package_the_message_says_what_to_install() -> None:
    with pytest.raises(UserError, match=r"--engine ray needs the package ray.*pip install -r .*requirements-ray\.txt"):
        engine.check()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "nothing answers there"),
        ("ray://127.0.0.1:10001", "allowed: HOST:PORT"),
        ("here", "allowed: HOST:PORT"),
        ("127.0.0.1:99999", "nothing answers there"),
    ],
)
def test_where_nothing_listens_is_told_at_once(address: str, words: str) -> None:
    with pytest.raises(UserError, match=rf"--address.*{words}"):
        engine.refuse_silent(address)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs nothing, and two nodes with one processor each, on the loopback address."""
    os.environ.update(engine.QUIET | engine.HERE_ALONE)
    from ray.cluster_utils import Cluster

    usual = {"node_ip_address": "127.0.0.1", "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **usual})
    for _ in range(2):
        made.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    made.wait_for_nodes()
    yield made
    made.shutdown()


def made_job(folder: Path, *words: object, gpus: int = 1) -> Job:
    command = (sys.executable, "-m", "tests.engines.made_run", str(folder), *map(str, words))
    return Job(folder.name, command, folder / "log.txt", 1.0, gpus=gpus, attempt=Patient(command, folder, tuple, "ray"))


def run(jobs: list[Job], address: str | None) -> tuple[dict[str, str], str]:
    console = make_console(markup=True, file=io.StringIO(), width=200)
    return engine.run(jobs, 2, console, {}, address), console.file.getvalue()  # type: ignore[attr-defined]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


def test_a_run_that_no_node_has_gpus_for_is_named_before_any_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"Alive": True, "Resources": {"GPU": 1.0}}, {"Alive": False, "Resources": {"GPU": 8.0}}]
    cluster = SimpleNamespace(nodes=lambda: nodes)  # where nothing can be started
    monkeypatch.setattr(engine, "_connected", lambda address, at_once: contextlib.nullcontext(cluster))
    with pytest.raises(UserError, match=r"wide needs 2 GPUs, and the largest node of the cluster has 1\. Nothing was"):
        run([made_job(tmp_path / "small", 1, 0.0), made_job(tmp_path / "wide", 1, 0.0, gpus=2)], "10.0.0.1:6379")


@needs_ray
@pytest.mark.slow
def test_a_run_whose_node_is_lost_goes_on_elsewhere_and_failures_are_told(cluster: Any, tmp_path: Path) -> None:
    long, short, bad = (tmp_path / name for name in ("오래 걸림", "short", "bad"))
    jobs = [made_job(long, 60, 0.2), made_job(short, 3, 0.1), made_job(bad, 1, 0.0, "the disk is full")]
    results: list[Any] = []
    working = threading.Thread(target=lambda: results.append(run(jobs, cluster.address)))
    working.start()
    until = time.monotonic() + 90
    while time.monotonic() < until and not (sign := (long.is_dir() and read_sign(long)) or None):
        time.sleep(0.1)
    while sign is None or sign.done < 3:
        assert time.monotonic() < until
        time.sleep(0.1)
        sign = read_sign(long)
    assert (sign.engine, sign.state) == ("ray", "running")
    raylet = parent(parent(sign.pid))
    (lost,) = (one for one in cluster.worker_nodes if one.all_processes["raylet"][0].process.pid == raylet)
    lost.kill_raylet()
    working.join(180)
    failures, shown = results[0]
    assert failures.keys() == {"bad"} and failures["bad"].startswith("the disk is full (exit 2")
    assert "done short" in shown and "failed bad" in shown
    assert (long / "done.txt").read_text() == "ray" and read_sign(long) is None
    starts = (long / "starts.txt").read_text().split("\n")[:-1]
    assert len(starts) == 2, "once on the lost node, and once more"
    assert int((long / "checkpoint.txt").read_text()) == 60
    failed = read_sign(bad)
    assert failed is not None and (failed.state, failed.reason) == ("failed", "the disk is full")


@needs_ray
@pytest.mark.slow
def test_with_its_controller_a_run_ends_and_the_same_command_goes_on(cluster: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.engines.test_ray import made_job, run\n"
        "print(run([made_job(Path(sys.argv[1]), 50, 0.1)], sys.argv[2])[0])\n"
    )
    command = [sys.executable, "-c", code, str(folder), cluster.address]
    controller = subprocess.Popen(command)
    until = time.monotonic() + 90
    while not (folder / "checkpoint.txt").is_file():
        assert time.monotonic() < until
        time.sleep(0.1)
    controller.kill()
    controller.wait()
    assert not (folder / "done.txt").exists()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "{}\n"
    assert (folder / "done.txt").is_file()
    assert len((folder / "starts.txt").read_text().splitlines()) == 2
