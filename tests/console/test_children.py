"""Real processes: whatever ends a command ends its children, and theirs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from src.console.children import PARENT, follow_parent

CHILD = """
import os, subprocess, sys, time
from src.console.cli import run_main
from src.console.progress import stage
def main():
    more = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(sys.argv[1] + ".part", "w").write(f"{os.getpid()} {more.pid}")
    os.rename(sys.argv[1] + ".part", sys.argv[1])
    with stage("train", 10**6) as bar:
        for done in range(10**6):
            bar.update(done)
            time.sleep(0.01)
sys.exit(run_main(main))
"""
COMMAND = """
import signal, sys
from pathlib import Path
from src.console.cli import run_main
from src.console.jobs import Job, run_job, run_jobs
from src.console.tables import make_console
def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command = (sys.executable, "-c", sys.argv[1], sys.argv[2])
    run_jobs([Job("one", command, Path(sys.argv[3]), 1.0)], 1, 0, make_console())
sys.exit(run_main(main))
"""

FORKING = COMMAND.replace("-c", "-m").replace(
    '[Job("one", command, Path(sys.argv[3]), 1.0)], 1, 0, make_console()',
    '[Job(name, command, Path(sys.argv[3]), 1.0) for name in "ab"], 1, 0, make_console(), None, ("json",)',
)
"""The command is a module, and a fork."""


def wait_for(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended, and nobody has asked how


def heeding() -> None:
    """Whoever starts the tests by nohup, or behind `&`, has the signals ignored; a command on a terminal has not."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], list[int], Path]]]:
    """Starts the program of a command. Gives its process, the ids of its child and of that one's, and the log."""
    all_begun: list[subprocess.Popen[bytes]] = []
    pids: list[int] = []

    def begin(program: str, *words: str, **options: object) -> tuple[subprocess.Popen[bytes], list[int], Path]:
        told, log = tmp_path / "pids", tmp_path / "log"
        command = [sys.executable, "-c", program, *(words or (CHILD, str(told), str(log)))]
        with (tmp_path / "output").open("wb") as output:
            made = subprocess.Popen(command, stdout=output, stderr=output, preexec_fn=heeding, **options)  # type: ignore[call-overload]
        all_begun.append(made)
        assert wait_for(told.is_file, 60), (tmp_path / "output").read_text()
        pids.extend(map(int, told.read_text().split()))
        assert all(map(is_alive, pids))
        return made, list(pids), log

    yield begin
    for one in all_begun:
        one.kill()
        one.wait()
    for pid in filter(is_alive, pids):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGKILL", "SIGINT"])
def test_whatever_ends_a_command_ends_its_children(begun: Callable[..., tuple], name: str, tmp_path: Path) -> None:
    made, pids, log = begun(COMMAND, start_new_session=True)
    time.sleep(0.5)  # in the middle of its work
    made.send_signal(getattr(signal, name))
    assert wait_for(lambda: not any(map(is_alive, pids)), 2.0), f"{pids} after {name}"
    made.wait(10)
    assert "Traceback" not in log.read_text() + (tmp_path / "output").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_forks_end_as_children_do(
    begun: Callable[..., tuple], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "forked.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    made, pids, log = begun(FORKING, "forked", str(tmp_path / "pids"), str(tmp_path / "log"), start_new_session=True)
    server = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
    assert server != made.pid and is_alive(server)
    made.send_signal(getattr(signal, name))
    assert wait_for(lambda: not any(map(is_alive, [*pids, server])), 2.0), f"{pids}, {server} after {name}"
    made.wait(10)
    assert "Traceback" not in log.read_text() + (tmp_path / "output").read_text()


@pytest.mark.slow
def test_the_kill_of_a_whole_group(begun: Callable[..., tuple]) -> None:
    made, pids, log = begun(COMMAND, start_new_session=True)
    os.killpg(made.pid, signal.SIGKILL)
    assert wait_for(lambda: not any(map(is_alive, pids)), 2.0)
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_pause_holds_for_the_children_too(begun: Callable[..., tuple]) -> None:
    def stopped(pid: int) -> bool:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    made, pids, _ = begun(COMMAND, start_new_session=True)
    made.send_signal(signal.SIGTSTP)
    assert wait_for(lambda: all(map(stopped, [made.pid, *pids])), 5.0)
    made.send_signal(signal.SIGCONT)
    assert wait_for(lambda: not any(map(stopped, [made.pid, *pids])), 5.0)


FOLLOWER = """
import os, sys, time
from src.console.cli import run_main
def main():
    open(sys.argv[1] + ".part", "w").write(str(os.getpid()))
    os.rename(sys.argv[1] + ".part", sys.argv[1])
    time.sleep(600)
sys.exit(run_main(main))
"""


@pytest.mark.slow
@pytest.mark.parametrize("asks", [True, False], ids=["the system does it", "it looks itself"])
def test_a_command_ends_with_the_script_that_started_it(tmp_path: Path, asks: bool) -> None:
    program = (
        FOLLOWER if asks else f"import src.console.children as c\nc._killed_with_parent = lambda: False\n{FOLLOWER}"
    )
    told = tmp_path / "pid"
    script = f'export {PARENT}=$$\n"$0" -c "$1" "$2"\necho not reached'
    made = subprocess.Popen(["bash", "-c", script, sys.executable, program, str(told)], stdout=subprocess.DEVNULL)
    try:
        assert wait_for(told.is_file, 60)
        made.kill()
        assert wait_for(lambda: not is_alive(int(told.read_text())), 2.0)
    finally:
        made.kill()
        made.wait()


RANK = """
import os, sys, time
from src.console.children import follow_parent
follow_parent()
open(sys.argv[1] + ".part", "w").write(str(os.getpid()))
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""
"""What a rank does at its start. The rest of it waits for the other ranks."""


def test_a_rank_ends_with_its_launcher_which_stands_between(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    launcher = "import subprocess, sys; subprocess.run(sys.argv[1:], check=True)"
    command = [sys.executable, "-c", launcher, sys.executable, "-c", RANK, str(told)]
    made = subprocess.Popen(command, env={**os.environ, PARENT: str(os.getpid()), "WORLD_SIZE": "2"})
    try:
        assert wait_for(told.is_file, 30), "it does not take the launcher for its parent's successor"
        made.kill()
        assert wait_for(lambda: not is_alive(int(told.read_text())), 2.0)
    finally:
        made.kill()
        made.wait()


@pytest.mark.slow
def test_a_command_whose_parent_has_ended_already_does_nothing(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FOLLOWER, str(tmp_path / "pid")], env={**os.environ, PARENT: "1000000000"}, timeout=60
    )
    assert ended.returncode == 143 and not (tmp_path / "pid").exists()


def test_a_command_that_nobody_claims_follows_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "me"):
        monkeypatch.setenv(PARENT, value)
        follow_parent()
        assert PARENT not in os.environ
