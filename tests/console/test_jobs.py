"""Real child processes; progress goes through the real pipe."""

import io
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from src.console import jobs
from src.console.jobs import Job, run_job, run_jobs
from src.console.progress import PIPE, stage

STAGES = (
    "from src.console.progress import stage\n"
    + "with stage('train', 3) as bar:\n  [bar.update(n, 'x') for n in (1, 2, 3)]\n"
)


def run(code: str, log: Path, **options: Any) -> tuple[str, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    stop = options.get("stop") or threading.Event()
    reason = run_job([sys.executable, "-c", code], log, options.get("environment", {}), events.append, stop)
    return reason, events


def test_progress_and_output_arrive(tmp_path: Path) -> None:
    reason, events = run(STAGES + "print('said')", tmp_path / "deep" / "log.txt")
    assert reason == ""
    assert events[-1] == {"stage": "train", "done": 3, "total": 3, "note": "x"}
    assert (tmp_path / "deep" / "log.txt").read_text().splitlines()[-1] == "said"


def test_environment_reaches_the_command(tmp_path: Path) -> None:
    run(
        "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])",
        tmp_path / "log",
        environment={"CUDA_VISIBLE_DEVICES": "1"},
    )
    assert (tmp_path / "log").read_text().splitlines()[-1] == "1"


def test_a_log_is_utf_8_whatever_the_terminal_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PYTHONIOENCODING", "ascii"), ("PYTHONUTF8", "0"), ("LC_ALL", "C")):
        monkeypatch.setenv(name, value)
    (tmp_path / "says.py").write_text("print('⟦정답⟧'); raise SystemExit('error: 똠방각하')", encoding="utf-8")
    command = [sys.executable, str(tmp_path / "says.py")]
    reason = run_job(command, tmp_path / "log", {}, lambda event: None, threading.Event())
    assert reason.startswith("똠방각하 (exit 1")
    assert (tmp_path / "log").read_text(encoding="utf-8").splitlines()[1] == "⟦정답⟧"


def test_a_failure_is_the_last_error_of_the_last_command(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run("import sys; print('error: the old one'); sys.exit(2)", log)
    reason, _ = run("import sys; print('error: the disk is full'); print('bye'); sys.exit(2)", log)
    assert reason.startswith("the disk is full (exit 2")
    assert run("print('no word of it'); raise SystemExit(3)", log)[0].startswith("no word of it (exit 3")
    assert run("raise SystemExit(3)", log)[0].startswith("no output (exit 3")


def test_a_killed_command_is_called_killed(tmp_path: Path) -> None:
    reason, _ = run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", tmp_path / "log")
    assert reason.startswith("killed by the system")


def test_stop_ends_the_command(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    started = time.monotonic()
    reason, _ = run("import time; time.sleep(60)", tmp_path / "log", stop=stop)
    assert reason == "interrupted"
    assert time.monotonic() - started < 20


def test_without_a_pipe_a_stage_is_silent_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(PIPE, raising=False)
    with stage("score", 2) as bar:
        bar.update(1)
        bar.update(2, "done")
    assert capfd.readouterr() == ("", "")


def test_a_command_finds_the_repository_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/mine")
    reason, _ = run("import os, sys, run.vote; print(os.environ['PYTHONPATH'])", tmp_path / "log")
    root = Path(__file__).parents[2]
    assert reason == "" and (tmp_path / "log").read_text().splitlines()[-1] == f"{root}:/mine"


def test_no_module_of_the_folder_it_is_started_in_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "yaml.py").write_text("open('it_ran', 'w')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "run.vote", "--help"]
    assert run_job(command, tmp_path / "log", {}, lambda event: None, threading.Event()) == ""
    assert not (tmp_path / "it_ran").exists()


def test_what_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(60)"
    stop, started = threading.Event(), time.monotonic()
    threading.Timer(0.5, stop.set).start()
    assert run(code, tmp_path / "log", stop=stop)[0] == "interrupted"
    assert time.monotonic() - started < 10


# Several at once


def run_all(some: Sequence[Job], at_once: int, gpus: int) -> tuple[dict[str, str], str]:
    """(failures, what was printed)"""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200)
    return run_jobs(some, at_once, gpus, console), console.file.getvalue()  # type: ignore[attr-defined]


def test_each_job_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[str, str] = {}
    both = threading.Barrier(2, timeout=20)

    def job(command: Sequence[str], log: Path, environment: Mapping[str, str], *rest: Any) -> str:
        used[command[0]] = environment["CUDA_VISIBLE_DEVICES"]
        both.wait()
        return ""

    monkeypatch.setattr(jobs, "run_job", job)
    failures, printed = run_all([Job(name, (name,), Path(name), 1.0) for name in ("one", "two")], 2, 2)
    assert failures == {} and sorted(used.values()) == ["0", "1"]
    assert "done one, " in printed and "done two, " in printed


def test_a_job_of_several_gpus_sees_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[str, str] = {}

    def job(command: Sequence[str], log: Path, environment: Mapping[str, str], *rest: Any) -> str:
        used[command[0]] = environment["CUDA_VISIBLE_DEVICES"]
        return ""

    monkeypatch.setattr(jobs, "run_job", job)
    some = [Job(name, (name,), Path(name), 1.0, gpus=gpus) for name, gpus in (("wide", 4), ("pair", 2), ("one", 1))]
    assert run_all(some, 1, 4)[0] == {} and used == {"wide": "0,1,2,3", "pair": "0,1", "one": "0"}


def test_one_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    codes = {"bad": "raise SystemExit('error: no room')", "good": STAGES}
    some = [Job(name, (sys.executable, "-c", code), tmp_path / name, 3.0) for name, code in codes.items()]
    failures, printed = run_all(some, 1, 0)
    assert list(failures) == ["bad"] and failures["bad"].startswith("no room (exit 1")
    assert "failed bad, " in printed and "done good, " in printed and "all 2 runs" in printed
    assert run_all([], 1, 0)[0] == {}


def test_what_is_passing_goes_when_the_command_is_done(tmp_path: Path) -> None:
    some = []
    for name, code in {"bad": "raise SystemExit(1)", "good": "pass"}.items():
        folder = tmp_path / name / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "state").write_text("all of it", encoding="utf-8")
        some.append(Job(name, (sys.executable, "-c", code), tmp_path / f"{name}.txt", 1.0, (folder,)))
    run_all(some, 1, 0)
    assert (tmp_path / "bad" / "checkpoints" / "state").is_file(), "to go on from"
    assert (tmp_path / "good").is_dir() and not (tmp_path / "good" / "checkpoints").exists()
