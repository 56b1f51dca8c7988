"""Jobs of several ranks, started through torchrun as run.reproduce does, on CPUs."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from src.console import children
from src.console.jobs import run_job
from src.console.slots import VISIBLE, Slots, visible
from src.plan.shared import launcher


def run(folder: Path, how: str, told: list[dict[str, Any]], gpus: str) -> str:
    folder.mkdir()
    command = [sys.executable, *launcher(2), "-m", "tests.console.made_ranks", str(folder), how]
    return run_job(command, folder / "log.txt", {VISIBLE: gpus}, told.append, threading.Event())


def test_two_at_a_time_do_not_meet_and_each_rank_has_a_gpu_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, "3,4,5,6")
    slots, events, others = Slots(2, 4), list[dict[str, Any]](), list[dict[str, Any]]()
    mine, theirs = (visible(slots.take(2), 4) for _ in range(2))
    done, failed = tmp_path / "하나 둘", tmp_path / "failed"
    with ThreadPoolExecutor(2) as pool:
        works, fails = pool.submit(run, done, "", events, mine), pool.submit(run, failed, "fail", others, theirs)
        assert works.result() == ""
        assert fails.result() == f"there is no room here (exit 1, see {failed / 'log.txt'})"
    told = [(folder / f"{rank}.txt").read_text() for folder in (done, failed) for rank in (0, 1)]
    seen, ports = zip(*(line.rsplit(" ", 1) for line in told), strict=True)
    assert seen == ("2 3 3,4", "2 4 3,4", "2 5 5,6", "2 6 5,6"), "ranks, own GPU, GPUs in the job's sign"
    assert ports[0] == ports[1] != ports[2] == ports[3], "where the ranks of each find each other"
    steps = [(event["stage"], event["done"], event["total"]) for event in events]
    assert steps[-1] == ("work", 2, 2) and len(steps) == len(set(steps)), "the first rank alone tells how far it is"


@pytest.mark.slow
def test_a_signal_to_the_launcher_alone_ends_the_ranks_and_is_an_interruption(tmp_path: Path) -> None:
    """As Slurm's scripts send it."""
    folder, found = tmp_path / "run", []  # type: ignore[var-annotated]
    thread = threading.Thread(target=lambda: found.append(run(folder, "wait", [], "0,1")))
    thread.start()
    until = time.monotonic() + 60
    while not all((folder / f"{rank}.txt").is_file() for rank in (0, 1)) and time.monotonic() < until:
        time.sleep(0.05)
    (parent,) = children._groups
    ranks = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8").split()
    assert len(ranks) == 2
    os.kill(parent, signal.SIGTERM)
    thread.join(60)
    assert found == ["interrupted"] and not any(Path(f"/proc/{rank}").exists() for rank in ranks)
