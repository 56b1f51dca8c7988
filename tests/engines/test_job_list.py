"""The order of jobs, and patience with those who work in a folder already."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from src.console.cli import UserError
from src.console.jobs import Job
from src.engines import job_list
from src.engines.job_list import prepared, present
from src.files.locks import at_work
from src.files.signs import Sign, read_sign, write_sign

HOLDING = (
    "import sys\nfrom pathlib import Path\nfrom src.files.locks import lock_folder\n"
    "with lock_folder(Path(sys.argv[1])):\n  print('has it', flush=True)\n  sys.stdin.read()\n"
)


EVENT = threading.Event()


@dataclass(frozen=True)
class Made:
    """The part of a `Wanted` that is used."""

    name: str
    folder: Path


@pytest.fixture
def hold() -> Iterator[Callable[[Path], "subprocess.Popen[str]"]]:
    """Locks a folder by another process, until its stdin is closed."""
    holders: list[subprocess.Popen[str]] = []

    def begin(folder: Path) -> "subprocess.Popen[str]":
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        held = subprocess.Popen([sys.executable, "-c", HOLDING, str(folder)], **pipes)  # type: ignore[call-overload]
        holders.append(held)
        assert held.stdout.readline() == "has it\n"
        return held  # type: ignore[no-any-return]

    yield begin
    for one in holders:
        one.kill()
        one.wait()


def job(folder: Path, weight: float, gpus: int = 1) -> Job:
    return Job(folder.name, ("do", folder.name), folder / "log.txt", weight, gpus=gpus)


def made(jobs: Sequence[Job]) -> list[Made]:
    return [Made(one.name, one.log.parent) for one in jobs]


def test_wide_jobs_come_first_then_long_ones_then_those_at_work(
    tmp_path: Path, hold: Callable[[Path], "subprocess.Popen[str]"]
) -> None:
    jobs = [job(tmp_path / "short", 1), job(tmp_path / "busy", 9), job(tmp_path / "long", 5)]
    jobs += [job(tmp_path / "also-short", 1), job(tmp_path / "wide", 2, gpus=2)]
    hold(tmp_path / "busy")
    ordered = prepared(jobs, made(jobs), "local")  # type: ignore[arg-type]
    assert [one.name for one in ordered] == ["wide", "long", "short", "also-short", "busy"]


def test_what_an_earlier_attempt_said_is_forgotten_but_not_what_one_at_work_says(
    tmp_path: Path, hold: Callable[[Path], "subprocess.Popen[str]"]
) -> None:
    jobs = [job(tmp_path / "failed", 1), job(tmp_path / "busy", 1)]
    hold(tmp_path / "busy")
    for one in jobs:
        one.log.parent.mkdir(exist_ok=True)
        write_sign(one.log.parent, Sign.of_this_process())
    prepared(jobs, made(jobs), "local")  # type: ignore[arg-type]
    assert read_sign(tmp_path / "failed") is None and read_sign(tmp_path / "busy") is not None


def test_a_run_at_work_is_waited_for_and_then_only_what_is_left_is_done(
    tmp_path: Path, hold: Callable[[Path], "subprocess.Popen[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_list, "LOOK", 0.02)
    monkeypatch.setattr(job_list, "command_left", lambda wanted, gpus: left if gpus == 2 else ["for other GPUs"])
    holder, one = hold(tmp_path / "run"), job(tmp_path / "run", 1, gpus=2)
    (ready,) = prepared([one], made([one]), "local")  # type: ignore[arg-type]
    ran: list[Sequence[str]] = []
    told: list[str] = []

    def do() -> str:
        return ready.do(lambda command: ran.append(command) or "", lambda event: told.append(event["stage"]), stop)  # type: ignore[func-returns-value]

    left, stop = ["score", "it"], threading.Event()
    threading.Timer(0.3, holder.stdin.close).start()  # type: ignore[union-attr]
    assert do() == "" and ran == [["score", "it"]]
    assert told[0].startswith("the folder is in use by process ") and "waits" in told[0]
    holder, left = hold(tmp_path / "run"), []
    threading.Timer(0.3, holder.stdin.close).start()  # type: ignore[union-attr]
    assert do() == "" and len(ran) == 1, "all is done"
    hold(tmp_path / "run")
    threading.Timer(0.3, stop.set).start()
    assert do() == "interrupted" and len(ran) == 1


def test_who_was_faster_is_waited_for_too(
    tmp_path: Path, hold: Callable[[Path], "subprocess.Popen[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_list, "LOOK", 0.02)
    monkeypatch.setattr(job_list, "command_left", lambda wanted, gpus: [])
    one = job(tmp_path / "run", 1)
    (ready,) = prepared([one], made([one]), "local")  # type: ignore[arg-type]

    def run(command: Sequence[str]) -> str:
        holder = hold(tmp_path / "run")
        threading.Timer(0.3, holder.stdin.close).start()  # type: ignore[union-attr]
        return "run is in use by process 7 (exit 2)"

    assert ready.do(run, lambda event: None, threading.Event()) == ""


def test_a_failure_is_left_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = job(tmp_path / "run", 1)
    one.log.parent.mkdir()
    (ready,) = prepared([one], made([one]), "local")  # type: ignore[arg-type]
    assert ready.do(lambda command: "killed by the system", lambda event: None, threading.Event())
    sign = read_sign(tmp_path / "run")
    assert sign is not None and (sign.state, sign.reason) == ("failed", "killed by the system")


def test_until_a_command_gives_a_sign_it_is_called_starting(tmp_path: Path) -> None:
    one = job(tmp_path / "run", 1)
    (ready,) = prepared([one], made([one]), "local")  # type: ignore[arg-type]
    seen = []
    assert ready.do(lambda command: seen.append(read_sign(tmp_path / "run")) or "", lambda event: None, EVENT) == ""  # type: ignore[func-returns-value]
    assert seen[0] is not None and (seen[0].stage, seen[0].engine, seen[0].pid) == ("starting", "local", os.getpid())
    assert read_sign(tmp_path / "run") is None


def test_a_run_that_is_not_to_be_done_any_more_fails_with_the_reason(
    tmp_path: Path, hold: Callable[[Path], "subprocess.Popen[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(wanted: Made, gpus: int) -> list[str]:
        raise UserError("a finished run with other settings")

    monkeypatch.setattr(job_list, "LOOK", 0.02)
    monkeypatch.setattr(job_list, "command_left", refuse)
    holder, one = hold(tmp_path / "run"), job(tmp_path / "run", 1)
    (ready,) = prepared([one], made([one]), "local")  # type: ignore[arg-type]
    threading.Timer(0.2, holder.stdin.close).start()  # type: ignore[union-attr]
    assert ready.do(lambda command: "", lambda event: None, threading.Event()) == "a finished run with other settings"


def test_two_commands_may_be_at_work_at_once(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom src.engines.job_list import present\n"
        "from src.files.locks import at_work\n"
        "with present(Path(sys.argv[1])):\n  print(at_work(Path(sys.argv[1])))\n"
    )
    with present(tmp_path / "jobs"):
        found = subprocess.run([sys.executable, "-c", code, str(tmp_path / "jobs")], capture_output=True, text=True)
    assert f"process {os.getpid()} " in found.stdout, found
    assert not (tmp_path / "jobs").exists() and at_work(tmp_path / "jobs") == ""


def test_the_job_of_a_stopped_command_does_not_begin(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    assert job(tmp_path / "run", 1).do(lambda command: json.dumps(time.time()), lambda event: None, stop)
