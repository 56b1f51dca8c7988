"""Signs of life: what a process writes into its folder while it works, and what is left when it ends."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from src.console import progress
from src.console.cli import UserError
from src.files import signs
from src.files.paths import STATUS
from src.files.signs import Sign, conclude, read_sign, signs_of_life, write_sign


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "EVERY", 0.02)
    monkeypatch.setattr(signs, "QUIET", 0.1)


def awaited(folder: Path, stage: str, seconds: float = 5) -> Sign:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = read_sign(folder)
        if found is not None and found.stage == stage:
            return found
        time.sleep(0.01)
    raise AssertionError(f"no sign of {stage}")


def test_a_sign_tells_the_stage_and_how_far_it_is(tmp_path: Path, quick: None) -> None:
    with signs_of_life(tmp_path):
        with progress.stage("train", 10) as bar:
            bar.begin(2, 10)
            time.sleep(0.1)
            bar.update(4, "loss 1")
            found = awaited(tmp_path, "train")
            while found.done < 4:
                found = awaited(tmp_path, "train")
            assert (found.done, found.total, found.note, found.state) == (4, 10, "loss 1", "running")
            assert found.pid == os.getpid() and found.is_of_this_machine and found.is_alive
            assert found.left is not None and 0.25 < found.left < 5, "six steps, of which two took a tenth of a second"
        with progress.stage("score dev", 3):
            assert awaited(tmp_path, "score dev").left is None, "no step is done yet"
    assert not (tmp_path / STATUS).exists(), "the record says it now"


def test_while_nothing_moves_signs_go_on_and_say_since_when(tmp_path: Path, quick: None) -> None:
    with signs_of_life(tmp_path), progress.stage("train", 10) as bar:
        bar.update(1)
        first = awaited(tmp_path, "train")
        time.sleep(0.4)
        later = awaited(tmp_path, "train")
    assert later.at > first.at and later.moved == first.moved


def test_signs_are_not_written_faster_than_they_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "EVERY", 0.1)
    written: list[float] = []
    monkeypatch.setattr(signs, "write_sign", lambda folder, sign: written.append(time.monotonic()))
    with signs_of_life(tmp_path), progress.stage("train", 10**9) as bar:
        end = time.monotonic() + 0.55
        done = 0
        while time.monotonic() < end:
            done += 1
            bar.update(done)
    assert 2 <= len(written) <= 5 and done > 1000


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (UserError("the disk is full."), "failed", "the disk is full."),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
        (KeyboardInterrupt(), "stopped", ""),
    ],
)
def test_what_fails_says_why(tmp_path: Path, error: BaseException, state: str, reason: str) -> None:
    (tmp_path / "log.txt").write_text("begun", encoding="utf-8")
    with pytest.raises(type(error)), signs_of_life(tmp_path):
        raise error
    found = read_sign(tmp_path)
    assert found is not None and (found.state, found.reason) == (state, reason)


@pytest.mark.parametrize("there", [[".lock"], [".lock", "model"]])
def test_a_folder_that_is_no_run_keeps_none(tmp_path: Path, there: list[str]) -> None:
    for name in there:
        (tmp_path / name).touch()
    with pytest.raises(UserError), signs_of_life(tmp_path):
        raise UserError("refused before anything was made")
    assert sorted(os.listdir(tmp_path)) == there


def test_a_folder_that_is_gone_ends_no_work(tmp_path: Path, quick: None) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with signs_of_life(folder), progress.stage("train", 3) as bar:
        bar.update(1)
        awaited(folder, "train")
        folder.rename(tmp_path / "moved")
        bar.update(2)
        time.sleep(0.1)
    assert not folder.exists(), "nothing makes it anew"


def test_after_a_kill_the_last_sign_is_left_and_its_process_is_known_to_be_dead(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom src.files import signs\n"
        "signs.write_sign(Path(sys.argv[1]), signs.Sign.of_this_process())\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    found = read_sign(tmp_path)
    assert found is not None and found.state == "running" and found.is_of_this_machine and not found.is_alive
    assert not replace(found, pid=os.getpid()).is_alive, "another process of the same number"
    conclude(tmp_path, "killed by the system")
    after = read_sign(tmp_path)
    assert after == replace(found, state="failed", reason="killed by the system", at=after.at) if after else False


def test_a_process_that_has_ended_and_is_not_waited_for_is_dead() -> None:
    ended = subprocess.Popen(["sleep", "60"])
    alive = replace(Sign.of_this_process(), pid=ended.pid, born=signs.born(ended.pid))
    assert alive.born and alive.is_alive
    ended.kill()
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{ended.pid}").exists() and not alive.is_alive
    ended.wait()


def test_who_started_it_does_not_overrule_what_the_process_itself_said(tmp_path: Path) -> None:
    mine = replace(Sign.of_this_process(), state="failed", reason="diverged")
    write_sign(tmp_path, mine)
    conclude(tmp_path, "diverged (exit 2, see log.txt)")
    assert read_sign(tmp_path) == mine


def test_a_sign_of_a_job_of_slurm_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "15"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CCI_ENGINE", "slurm")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = Sign.of_this_process()
    assert (found.job, found.engine, found.gpus) == ("12_3", "slurm", "1")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "running"}', "null", "0"])
def test_a_damaged_file_is_called_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / STATUS).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"status\.json is damaged"):
        read_sign(tmp_path)


def test_a_value_of_another_type_is_damage_and_an_unknown_key_is_a_later_version(tmp_path: Path) -> None:
    write_sign(tmp_path, Sign.of_this_process())
    values = json.loads((tmp_path / STATUS).read_text(encoding="utf-8"))
    (tmp_path / STATUS).write_text(json.dumps({**values, "more": 1}), encoding="utf-8")
    assert read_sign(tmp_path) is not None
    (tmp_path / STATUS).write_text(json.dumps({**values, "done": "many"}), encoding="utf-8")
    with pytest.raises(ValueError, match="damaged"):
        read_sign(tmp_path)
