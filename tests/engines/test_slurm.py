"""The engine for Slurm: the text of its scripts, and what a real Slurm of this machine alone does with them."""

import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from src.console.cli import UserError
from src.console.jobs import Job
from src.console.tables import make_console
from src.engines import slurm
from src.engines.status import Standing
from src.files.signs import read_sign
from src.files.writing import write_json
from tests.engines.small_slurm import MISSING, small_slurm

WORDS = ("--name", "it's 한글 $HOME", 'a "b" `c`', "*", "-n")


def made(folder: Path, *command: str, gpus: int = 1, passing: tuple[Path, ...] = ()) -> Job:
    return Job(folder.name, command or ("true",), folder / "log.txt", 1.0, passing, gpus)


def quiet() -> "tuple[io.StringIO, object]":
    text = io.StringIO()
    return text, make_console(markup=True, file=text, width=10_000)


def run_task(text: str, task: int, folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """As Slurm would run it: a copy, in bash, with the number of its task."""
    (folder / "copy").write_text(text, encoding="utf-8")
    known = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_JOB_ID": "7", **variables}
    return subprocess.run(
        ["bash", str(folder / "copy")], env={**os.environ, **known}, capture_output=True, text=True, check=False
    )


def test_a_script_gives_each_task_its_command_word_by_word(tmp_path: Path) -> None:
    says = "import sys, json, os; print(json.dumps([sys.argv[1:], os.environ['CCI_ENGINE']], ensure_ascii=False))"
    folder = tmp_path / "결과 '모음' %A"
    gone = tmp_path / "check points"
    gone.mkdir()
    jobs = [
        made(folder / "first", "true"),
        made(folder / "둘째 run", sys.executable, "-c", says, *WORDS, passing=(gone,)),
    ]
    ((path, (text, names)),) = slurm.scripts(jobs, folder, {"GIVEN": "to all, too"}, ["time=24:00:00"]).items()
    assert path == folder / "1gpu.sbatch" and names == ["first", "둘째 run"]
    assert "#SBATCH --array=0-1\n" in text and "#SBATCH --gres=gpu:1\n" in text and "#SBATCH --time=24:00:00\n" in text
    assert "#SBATCH --requeue\n" in text and "#SBATCH --signal=B:USR1@120\n" in text
    assert "export GIVEN='to all, too'\n" in text
    done = run_task(text, 1, tmp_path)
    assert done.returncode == 0, done
    lines = (folder / "둘째 run" / "log.txt").read_text(encoding="utf-8").splitlines()
    assert (
        lines[0].startswith("$ ")
        and lines[1] == f'[{__import__("json").dumps(list(WORDS), ensure_ascii=False)}, "slurm"]'
    )
    assert not gone.exists(), "what a finished run needs no more"
    assert run_task(text, 2, tmp_path).returncode == 1


def test_a_script_is_sound_bash(tmp_path: Path) -> None:
    jobs = [made(tmp_path / f"run {number}", sys.executable, "-c", "pass", *WORDS) for number in range(3)]
    ((path, (text, _)),) = slurm.scripts(jobs, tmp_path / "jobs", {}, []).items()
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False).stderr == ""
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", str(path)], capture_output=True, text=True, check=False).stdout == ""


def test_the_exit_code_of_the_command_is_that_of_the_task_and_its_checkpoints_stay(tmp_path: Path) -> None:
    gone = tmp_path / "checkpoints"
    gone.mkdir()
    jobs = [made(tmp_path / "run", sys.executable, "-c", "raise SystemExit('error: full')", passing=(gone,))]
    ((_, (text, _)),) = slurm.scripts(jobs, tmp_path, {}, []).items()
    done = run_task(text, 0, tmp_path)
    assert done.returncode == 1 and done.stdout.splitlines()[-1].endswith("exit 1")
    assert (tmp_path / "run" / "log.txt").read_text().splitlines()[-1] == "error: full" and gone.is_dir()


@pytest.mark.parametrize(("number", "code", "asked"), [("USR1", 0, ["requeue 7_0"]), ("TERM", 143, [])])
def test_a_signal_ends_the_command_and_the_one_before_the_time_limit_puts_the_task_back(
    tmp_path: Path, number: str, code: int, asked: list[str]
) -> None:
    (tmp_path / "bin").mkdir()
    control = tmp_path / "bin" / "scontrol"
    control.write_text(f'#!/bin/bash\necho "$@" >> {shlex.quote(str(tmp_path / "asked"))}\n', encoding="utf-8")
    control.chmod(0o755)
    waits = "import time; print('begun', flush=True); time.sleep(60)"
    ((_, (text, _)),) = slurm.scripts([made(tmp_path / "run", sys.executable, "-c", waits)], tmp_path, {}, []).items()
    (tmp_path / "copy").write_text(text, encoding="utf-8")
    variables = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "7"}
    variables["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    task = subprocess.Popen(["bash", str(tmp_path / "copy")], env={**os.environ, **variables})
    log, until = tmp_path / "run" / "log.txt", time.monotonic() + 20
    while not (log.is_file() and "begun\n" in log.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    subprocess.run(["kill", f"-{number}", str(task.pid)], check=True)
    assert task.wait(20) == code
    found = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").is_file() else []
    assert found == asked


def test_arrays_are_no_larger_than_slurm_takes_and_of_one_number_of_gpus(tmp_path: Path) -> None:
    jobs = [made(tmp_path / f"run{number}") for number in range(2001)]
    jobs.insert(0, made(tmp_path / "wide", gpus=2))
    found = slurm.scripts(jobs, tmp_path, {}, [])
    names = ["2gpu.sbatch", "1gpu-1.sbatch", "1gpu-2.sbatch", "1gpu-3.sbatch"]
    assert [path.name for path in found] == names
    sizes = [re.findall(r"^#SBATCH --array=0-(\d+)$", text, re.MULTILINE) for text, _ in found.values()]
    assert sizes == [["0"], ["999"], ["999"], ["0"]]
    assert [name for _, some in found.values() for name in some] == [job.name for job in jobs]
    assert "--gres=gpu:2\n" in found[tmp_path / "2gpu.sbatch"][0]


def test_own_options_for_gpus_take_the_place_of_ours(tmp_path: Path) -> None:
    ((_, (text, _)),) = slurm.scripts([made(tmp_path / "run")], tmp_path, {}, ["gres=gpu:h100:1"]).items()
    assert text.count("--gres") == 1 and "#SBATCH --gres=gpu:h100:1\n" in text


@pytest.mark.parametrize("option", ["--time=1", "", "time=1\n#SBATCH --uid=0"])
def test_options_that_no_script_can_hold_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=r"--sbatch: found .* allowed: options of sbatch without their dashes"):
        slurm.check([option], False)


def test_what_is_queued_is_not_placed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "jobs-try"
    write_json(folder / "submitted.json", {"12": ["first", "second"], "15": ["third"]})
    said = "12_1|PENDING|Resources\n15_0|RUNNING|None\n99_0|RUNNING|None\n"
    done = subprocess.CompletedProcess([], 0, said, "")
    monkeypatch.setattr(slurm, "_asked", lambda *command: done)
    queued = {"second": "Slurm 12_1: PENDING (Resources)", "third": "Slurm 15_0: RUNNING"}
    assert slurm.queued(folder) == queued
    text, console = quiet()
    jobs = [made(tmp_path / name) for name in ("first", "second", "third")]
    (path,) = slurm.place(jobs, folder, console, {}, [])  # type: ignore[arg-type]
    assert "0)  # first" in path.read_text(encoding="utf-8") and "#SBATCH --array=0-0\n" in text.getvalue()
    assert "2 runs of 3 in Slurm's queue or at work already" in text.getvalue()


def test_slurm_knows_what_files_of_another_host_cannot_tell(tmp_path: Path) -> None:
    unseen = Standing("first", "unknown", "no sign for 12 min", job="12_0", host="gpu-7")
    assert slurm.judged([unseen], {})[0].state == "stopped"
    assert slurm.judged([unseen], {"first": "Slurm 12_0: RUNNING"})[0].state == "running"
    assert slurm.judged([unseen], None)[0].why == "no sign for 12 min; Slurm does not answer"
    assert slurm.judged([replace(unseen, state="stopped")], {"first": "Slurm 12_0: PENDING (BeginTime)"})[0] == replace(
        unseen, state="waiting", why="Slurm 12_0: PENDING (BeginTime)"
    )
    begins = Standing("first", "waiting", "Slurm 12_0: RUNNING")
    assert (slurm.judged([begins], {"first": begins.why})[0].state) == "running", "it has locked nothing yet"
    by_hand = replace(unseen, job="")
    assert slurm.judged([by_hand], {}) == [by_hand]


# A real one


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if MISSING or os.geteuid():
        pytest.skip(f"no Slurm can be started here: {', '.join(MISSING) or 'only root can'}")
    folder = Path("/tmp") / f"slurm{os.getpid()}"  # the path of a socket is short
    folder.mkdir(mode=0o755)
    try:
        with small_slurm(folder) as variables:
            yield variables
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def step(folder: Path) -> int:
    checkpoint = folder / "checkpoint.txt"
    return int(checkpoint.read_text() or 0) if checkpoint.is_file() else 0


@pytest.mark.slow
def test_a_real_slurm_runs_requeues_and_finishes(
    real: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, real[name])
    results = tmp_path / "결과 모음"
    folder = results / "jobs-시험 하나"
    module = [sys.executable, "-m", "tests.engines.made_run"]
    long, bad, wide = results / "오래 걸림", results / "bad", results / "wide"
    jobs = [
        made(wide, *module, str(wide), "2", "0.1", gpus=2),
        made(long, *module, str(long), "40", "0.2"),
        made(bad, *module, str(bad), "1", "0", "the disk is full"),
    ]
    text, console = quiet()
    paths = slurm.place(jobs, folder, console, {}, ["time=10"])  # type: ignore[arg-type]
    assert [path.name for path in paths] == ["2gpu.sbatch", "1gpu.sbatch"]
    slurm.submit(paths, console)  # type: ignore[arg-type]
    until = time.monotonic() + 240
    while step(long) < 3:
        assert time.monotonic() < until, (slurm.queued(folder), text.getvalue())
        time.sleep(0.2)
    sign = read_sign(long)
    assert sign is not None and sign.engine == "slurm" and re.fullmatch(r"\d+_0", sign.job)
    there = slurm.queued(folder)
    assert there is not None and there["오래 걸림"] == f"Slurm {sign.job}: RUNNING"
    assert slurm.place(jobs[1:2], folder, console, {}, []) == [], "it is at work"  # type: ignore[arg-type]
    subprocess.run(["scancel", "--batch", "--signal=USR1", sign.job], check=True)  # as before the time limit
    while not (long / "done.txt").is_file():
        assert time.monotonic() < until, slurm.queued(folder)
        if "PENDING" in (slurm.queued(folder) or {}).get("오래 걸림", ""):  # Slurm would wait for two minutes
            subprocess.run(["scontrol", "update", f"JobId={sign.job}", "StartTime=now"], check=False)
        time.sleep(0.2)
    while slurm.queued(folder):
        assert time.monotonic() < until, slurm.queued(folder)
        time.sleep(0.2)
    assert (long / "done.txt").read_text() == "slurm" and (wide / "done.txt").is_file()
    assert len((long / "starts.txt").read_text().splitlines()) == 2, "once more after the requeue"
    failed = read_sign(bad)
    assert failed is not None and failed.reason == "the disk is full" and failed.host == socket.gethostname()
    array = sign.job.partition("_")[0]
    assert "exit 0" in (folder / f"{array}_0.txt").read_text() and "exit 2" in (folder / f"{array}_1.txt").read_text()
