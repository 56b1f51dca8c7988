"""The shim sees what a process writes, and kills, stops or fails at the call that it is told."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.kills import unsynced
from tests.faults.shim import LAYOUT, Call, Plan, calls, compile_shim, compiler, fired
from tests.faults.trials import spread

WRITER = """
import os, sys
with open("kept/a.part", "w") as file:
    file.write("x" * 100)
    file.flush()
    os.fsync(file.fileno())
os.replace("kept/a.part", "kept/a")
open("elsewhere", "w").close()
os.mkdir("kept/inner")
if os.fork() == 0:
    os.unlink("kept/a")
    os._exit(0)
os.wait()
"""
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(compiler() is None, reason="no C compiler: the shim cannot be made"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the shim is for Linux"),
]
Write = Callable[[Plan], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def write(shim: Path, tmp_path: Path) -> Write:
    """Runs `WRITER` under a plan."""

    def start(plan: Plan) -> subprocess.CompletedProcess[str]:
        (tmp_path / "kept").mkdir()
        plan.write(tmp_path / "plan", tmp_path / "log", [tmp_path / "kept"])
        environment = {**os.environ, "LD_PRELOAD": str(shim), "FAULTS_PLAN": str(tmp_path / "plan")}
        command = [sys.executable, "-c", WRITER]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return start


def test_the_layouts_agree(shim: Path) -> None:
    code = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).faults_size())"
    found = subprocess.run([sys.executable, "-c", code, str(shim)], capture_output=True, text=True, check=True)
    assert int(found.stdout) == LAYOUT.size


def test_calls_are_counted_over_processes_and_only_in_the_folder(write: Write, tmp_path: Path) -> None:
    assert write(Plan()).returncode == 0
    found = calls(tmp_path / "log")
    assert [call.kind for call in found] == ["create", "write", "sync", "rename", "mkdir", "unlink"]
    assert [call.number for call in found] == [1, 2, 3, 4, 5, 6]
    assert found[1].size == 100 and found[3].other == str(tmp_path / "kept/a")
    assert found[0].pid == found[4].pid != found[5].pid
    assert not fired(tmp_path / "plan")


@pytest.mark.parametrize(("action", "left"), [("before", 0), ("half", 50), ("after", 100)])
def test_a_kill_at_a_write(write: Write, tmp_path: Path, action: str, left: int) -> None:
    assert write(Plan(at=2, action=action)).returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["a.part"]
    assert (tmp_path / "kept/a.part").stat().st_size == left
    assert fired(tmp_path / "plan")


def test_a_full_disk_stays_full_and_lets_files_go(write: Write, tmp_path: Path) -> None:
    done = write(Plan(at=2, action="fail", error="ENOSPC"))
    assert "No space left on device" in done.stderr
    assert (tmp_path / "kept/a.part").stat().st_size == 0


def test_half_of_a_write_and_then_no_room(write: Write, tmp_path: Path) -> None:
    assert "No space left on device" in write(Plan(at=2, action="short", error="ENOSPC")).stderr
    assert (tmp_path / "kept/a.part").stat().st_size == 50


def test_one_call_fails_once(write: Write, tmp_path: Path) -> None:
    done = write(Plan(at=4, action="once", error="EIO"))
    assert "Input/output error" in done.stderr and "'kept/a.part' -> 'kept/a'" in done.stderr
    assert (tmp_path / "kept/a.part").stat().st_size == 100


def test_a_signal_goes_to_the_parent(write: Write, tmp_path: Path) -> None:
    assert write(Plan(at=6, action="before", signal=signal.SIGTERM, target="parent")).returncode == -signal.SIGTERM


def test_what_was_not_synced_is_found_under_its_new_name(tmp_path: Path) -> None:
    folder = str(tmp_path)
    found = [
        Call(1, 1, "write", 5, f"{folder}/new/a", ""),
        Call(2, 1, "write", 5, f"{folder}/new/b", ""),
        Call(3, 1, "sync", 0, f"{folder}/new/a", ""),
        Call(4, 1, "rename", 0, f"{folder}/new", f"{folder}/kept"),
        Call(5, 1, "write", 5, f"{folder}/kept/c", ""),
    ]
    assert unsynced(found) == [tmp_path / "kept/b", tmp_path / "kept/c"]


def test_few_trials_are_spread_and_many_are_all() -> None:
    groups = {f"{name:02}": [f"{name:02}-{part}" for part in range(3)] for name in range(20)}
    few, everything = spread(groups, 5), spread(groups, 1000)
    assert len({name[:2] for name in few}) == 5 and few == spread(groups, 5)
    assert max(int(name[:2]) for name in few) >= 10 > min(int(name[:2]) for name in few)
    assert sorted(everything) == sorted(name for names in groups.values() for name in names)
