"""What --status says of a run: while it goes on, after a kill, a failure, on another host, and when it is done."""

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from src.console.tables import make_console
from src.data import sha256, split_path
from src.engines import status
from src.engines.status import Standing, as_json, duration, standings, table
from src.files.paths import LOCK, RECIPE, STATUS, record_path
from src.files.signs import Sign, write_sign
from src.files.writing import write_json
from src.model.recipes import make_recipe
from src.plan.work import Place, Wanted
from tests.made_runs import make_split

RUNNING = (
    "import sys, time\nfrom pathlib import Path\nfrom src.files import signs\nfrom src.console import progress\n"
    "from src.files.locks import lock_folder\nsigns.EVERY = 0.02\n"
    "with lock_folder(Path(sys.argv[1])), signs.signs_of_life(Path(sys.argv[1])):\n"
    "  with progress.stage('train', 8) as bar:\n"
    "    time.sleep(0.05)\n    bar.update(2, 'loss 0.5')\n    time.sleep(0.2)\n    print('on it', flush=True)\n"
    "    word = sys.stdin.readline().strip()\n"
    "  if word: raise SystemExit(word)\n"
)


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    for split, count in (("train", 6), ("dev", 3), ("test", 3)):
        make_split(tmp_path / "data", split, count, labelled=split != "test")
    recipe = make_recipe({"backbone": "eeve", "method": "lora"}, "eeve.yaml")
    return Wanted(tmp_path / "eeve.yaml", recipe, Place(tmp_path / "results", tmp_path / "data", True))


@pytest.fixture
def begin(wanted: Wanted) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """A process that works in the folder of the run, and is in the third of eight steps."""
    started: list[subprocess.Popen[str]] = []

    def make() -> "subprocess.Popen[str]":
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", RUNNING, str(wanted.folder)]
        made = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
        started.append(made)
        assert made.stdout.readline() == "on it\n"
        return made  # type: ignore[no-any-return]

    yield make
    for one in started:
        one.kill()
        one.wait()


def only(wanted: Wanted, controlled: bool = False, **queued: str) -> Standing:
    (found,) = standings([wanted], controlled, queued)
    return found


def finish(wanted: Wanted, *splits: str, **changes: Any) -> None:
    """Writes the record of a finished run, with these splits scored."""
    digests = {split: sha256(split_path(wanted.place.data, split)) for split in ("train", "dev", "test")}
    record = {
        "run": wanted.name,
        "recipe": {**asdict(wanted.recipe), **changes},
        "seconds": 90.0,
        "data": {split: {"sha256": digests[split]} for split in ("train", "dev")},
        "splits": {split: {"items": 3, "accuracy": None, "data_sha256": digests[split]} for split in splits},
    }
    write_json(record_path(wanted.folder), record)


def test_nothing_is_there(wanted: Wanted) -> None:
    assert only(wanted) == Standing("eeve", "waiting")


def test_while_it_runs_then_after_a_kill(wanted: Wanted, begin: Callable[[], "subprocess.Popen[str]"]) -> None:
    process = begin()
    found = only(wanted)
    assert (found.state, found.stage, found.done, found.total, found.why) == ("running", "train", 2, 8, "loss 0.5")
    assert (found.pid, found.host, found.engine) == (process.pid, socket.gethostname(), "by hand")
    assert found.age is not None and found.age < 5 and found.left is not None and 0.1 < found.left < 5
    process.kill()
    process.wait()
    found = only(wanted)
    assert (found.state, found.done, found.left) == ("stopped", 2, None)
    assert found.why == f"process {process.pid} ended without a word, as after a kill"


def test_a_stopped_process_is_alive_however_old_its_sign_is(
    wanted: Wanted, begin: Callable[[], "subprocess.Popen[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = begin()
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + 10_000)
    found = only(wanted)
    assert found.state == "running" and found.age is not None and found.age > 9_000
    shown = io.StringIO()
    make_console(markup=True, width=200, file=shown).print(table([found], ""))
    assert "2.8 h ago, still for 2.8 h" in shown.getvalue()
    process.kill()


def test_a_failure_says_why(wanted: Wanted, begin: Callable[[], "subprocess.Popen[str]"]) -> None:
    process = begin()
    (wanted.folder / "log.txt").write_text("begun", encoding="utf-8")
    process.communicate("interrupt\n")
    assert (only(wanted).state, only(wanted).why) == ("stopped", "interrupted")
    write_sign(wanted.folder, replace(Sign.of_this_process(), state="failed", reason="the disk is full"))
    found = only(wanted, controlled=True)
    assert (found.state, found.why) == ("failed", "the disk is full")


def test_a_new_process_that_gave_no_sign_yet_is_not_taken_for_the_dead_one(
    wanted: Wanted, begin: Callable[[], "subprocess.Popen[str]"]
) -> None:
    process = begin()
    dead = replace(Sign.of_this_process(), pid=1, stage="train", done=7, total=8)
    process.send_signal(19)  # SIGSTOP: so it gives no further sign
    write_sign(wanted.folder, dead)
    found = only(wanted)
    assert (found.state, found.done, found.pid, found.why) == ("running", 0, process.pid, "no sign of life yet")


def test_done_is_what_the_record_says(wanted: Wanted) -> None:
    finish(wanted, "dev", "test")
    assert only(wanted) == Standing("eeve", "done", seconds=90.0)
    make_split(wanted.place.data, "test", 3, labelled=True)
    assert (only(wanted).state, only(wanted).why) == ("waiting", "trained; test is not scored yet")
    finish(wanted, "dev", "test", epoch=9)
    assert (only(wanted).state, only(wanted).why) == (
        "failed",
        "a finished run with other settings (epoch) has its folder",
    )


def test_scores_that_are_gone_are_to_be_made_again(wanted: Wanted) -> None:
    finish(wanted, "dev", "test")
    record = json.loads(record_path(wanted.folder).read_text(encoding="utf-8"))
    record["splits"]["test"]["files"] = {"scores_test.jsonl": {"sha256": "0" * 64, "bytes": 1}}
    record.pop("sha256", None)
    write_json(record_path(wanted.folder), record)
    found = only(wanted)
    assert (found.state, found.why) == ("waiting", "scores_test.jsonl is gone; to be scored again")


def test_a_damaged_record_is_no_finished_run(wanted: Wanted) -> None:
    write_json(record_path(wanted.folder), {"run": "eeve"})
    record_path(wanted.folder).write_text("{", encoding="utf-8")
    found = only(wanted)
    assert found.state == "failed" and "record.json" in found.why


@pytest.mark.parametrize(
    ("age", "state", "words"),
    [
        (30.0, "running", "by its last sign alone: no lock of gpu-7 is seen here"),
        (720.0, "unknown", "no sign for 12 min; whether process 5 on gpu-7 lives cannot be seen from here"),
        (-60.0, "running", "the clock of gpu-7 is 60 s ahead of this one"),
    ],
)
def test_what_another_host_does_is_told_by_its_last_sign(wanted: Wanted, age: float, state: str, words: str) -> None:
    wanted.folder.mkdir(parents=True)
    now = time.time()
    sign = replace(Sign.of_this_process(), host="gpu-7", pid=5, stage="train", done=1, total=4, gpus="3", job="12_0")
    write_sign(wanted.folder, replace(sign, at=now - age, moved=now - age, engine="slurm"))
    found = only(wanted)
    assert found.state == state and words in found.why
    assert status.place_text(found) == "slurm, gpu-7, GPU 3, Slurm 12_0, process 5"


def test_a_machine_that_was_started_anew_is_another_one(wanted: Wanted) -> None:
    wanted.folder.mkdir(parents=True)
    sign = replace(Sign.of_this_process(), born="another-boot 17", at=time.time() - 1000)
    write_sign(wanted.folder, sign)
    assert only(wanted).state == "unknown"


def test_without_locks_a_living_process_is_running(wanted: Wanted) -> None:
    wanted.folder.mkdir(parents=True)
    write_sign(wanted.folder, Sign.of_this_process())
    assert (only(wanted).state, only(wanted).why) == ("running", "this file system has no locks")


def test_a_job_that_an_engine_has_just_started_is_not_called_waiting(wanted: Wanted) -> None:
    wanted.folder.mkdir(parents=True)
    write_sign(wanted.folder, replace(Sign.of_this_process(), stage="starting", engine="local"))
    assert (only(wanted).state, only(wanted).stage, only(wanted).why) == ("running", "starting", "")
    write_sign(wanted.folder, replace(Sign.of_this_process(), stage="starting", engine="local", pid=2**22 + 1))
    assert only(wanted).state == "stopped"


def test_a_run_that_was_begun_waits_only_where_someone_starts_it(wanted: Wanted) -> None:
    wanted.folder.mkdir(parents=True)
    (wanted.folder / RECIPE).write_text("backbone: eeve\n", encoding="utf-8")
    assert only(wanted).state == "stopped"
    assert (only(wanted, controlled=True).state, only(wanted, controlled=True).why) == (
        "waiting",
        "goes on from where it was",
    )
    assert only(wanted, eeve="Slurm 12_0: PENDING (Resources)").why == "Slurm 12_0: PENDING (Resources)"


def test_a_damaged_sign_hides_nothing(wanted: Wanted) -> None:
    wanted.folder.mkdir(parents=True)
    (wanted.folder / STATUS).write_text("{", encoding="utf-8")
    assert only(wanted).state == "unknown" and "status.json is damaged" in only(wanted).why
    finish(wanted, "dev", "test")
    assert only(wanted).state == "done"


def test_a_sign_that_changes_while_it_is_read_is_read_again(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process fails between the look at its sign and the look at its lock: that is no death without a word."""
    wanted.folder.mkdir(parents=True)
    dead = replace(Sign.of_this_process(), pid=2**22 + 1)
    write_sign(wanted.folder, dead)
    looks: list[Path] = []

    def fail_first(folder: Path) -> None:
        looks.append(folder)
        if len(looks) == 1:
            write_sign(folder, replace(dead, state="failed", reason="diverged"))

    monkeypatch.setattr(status, "holder", fail_first)
    assert (only(wanted).state, only(wanted).why) == ("failed", "diverged")


def test_for_programs(wanted: Wanted) -> None:
    found = json.loads(json.dumps(as_json(standings([wanted], False), "")))
    assert found["counts"] == {"done": 0, "running": 0, "waiting": 1, "failed": 0, "stopped": 0, "unknown": 0}
    assert found["jobs"][0]["run"] == "eeve" and found["jobs"][0]["left"] is None and found["controller"] == ""


def test_for_people(wanted: Wanted) -> None:
    found = [
        Standing("eeve", "running", "loss 0.5", "train", 30, 120, 5400.0, 3.0, 3.0, "local", "h", 7, "0"),
        Standing("p[o]lar", "waiting"),
        Standing("qwen2", "done", seconds=4000.0),
    ]
    for width in (200, 80, 30):
        shown = io.StringIO()
        make_console(markup=True, width=width, file=shown).print(table(found, ""))
        text = shown.getvalue()
        assert all(word in text for word in ("30/120", "(25%)", "p[o]lar", "1.5", "3 s", "running", "GPU 0"))
        assert "3 runs: 1 done, 1 running, 1 waiting" in " ".join(text.split())
        assert "no command that starts what is left is seen from here" in " ".join(text.split())


def test_durations() -> None:
    assert [duration(one) for one in (None, 4, 89, 90, 600, 5400, 86400 * 2, 86400 * 20)] == [
        *("unknown", "4 s", "89 s", "1.5 min", "10 min", "1.5 h", "2.0 d", "20 d")
    ]


def test_the_lock_file_is_not_touched(wanted: Wanted, begin: Callable[[], "subprocess.Popen[str]"]) -> None:
    begin()
    before = (wanted.folder / LOCK).read_text(encoding="utf-8"), sorted(os.listdir(wanted.folder))
    only(wanted)
    assert ((wanted.folder / LOCK).read_text(encoding="utf-8"), sorted(os.listdir(wanted.folder))) == before
