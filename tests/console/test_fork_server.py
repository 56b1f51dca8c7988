"""Commands as forks of a process that has imported what they need."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from src.console import jobs
from src.console.fork_server import ForkServer
from src.console.jobs import Job, run_job, run_jobs
from src.console.tables import make_console
from tests.console.test_children import is_alive, wait_for

HEAVY = "import os\nopen(os.environ['COUNT'], 'a').write('imported\\n')\n"
SAYS = """
import sys, os, heavy
from src.console.progress import stage
if __name__ == '__main__':
    with stage('train', 3) as bar:
        [bar.update(n, 'x') for n in (1, 2, 3)]
    print(sys.argv[1:], os.environ['WORD'], 'CCI_PARENT' in os.environ, os.getpid() == os.getpgid(0))
    exec(sys.argv[1])
"""


@pytest.fixture
def count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that gets a line whenever the module `heavy` is imported."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "heavy.py").write_text(HEAVY)
    (modules / "says.py").write_text(SAYS)
    monkeypatch.setenv("PYTHONPATH", str(modules))
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    monkeypatch.setenv("WORD", "one")
    return tmp_path / "count"


@pytest.fixture
def server(count: Path) -> Iterator[ForkServer]:
    with ForkServer.importing(("heavy",), jobs._environment({})) as made:
        yield made


def run(server: ForkServer | None, log: Path, code: str, **options: Any) -> tuple[str, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    stop = options.get("stop") or threading.Event()
    command = [sys.executable, "-m", "says", code]
    return run_job(command, log, options.get("environment", {}), events.append, stop, server), events


def test_a_command_runs_as_by_itself_and_imports_nothing_twice(
    server: ForkServer, count: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for number, one in enumerate((server, server, None)):
        log = tmp_path / f"{number}.txt"
        reason, events = run(one, log, "print('⟦정답⟧', flush=True)", environment={"WORD": "other"})
        assert reason == "" and events[-1] == {"stage": "train", "done": 3, "total": 3, "note": "x"}
        said.append(log.read_text(encoding="utf-8"))
    # By itself it has CCI_PARENT until run_main takes it away, as in a fork.
    assert said[0] == said[1] == said[2] and "other True True" in said[0] and said[0].endswith("⟦정답⟧\n")
    assert count.read_text().splitlines() == ["imported"] * 2, "by the server, and by the one without it"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('error: no room'); sys.exit(2)", "no room (exit 2"),
        ("raise SystemExit('error: a word')", "a word (exit 1"),
        ("sys.exit(None)", ""),
        ("1 / 0", "ZeroDivisionError: division by zero (exit 1"),
        ("import signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by the system"),
        ("os._exit(7)", " (exit 7"),
    ],
)
def test_how_a_command_ended(server: ForkServer, tmp_path: Path, code: str, reason: str) -> None:
    found, _ = run(server, tmp_path / "log", code)
    assert reason in found and bool(reason) == bool(found)


def test_several_at_once(server: ForkServer, tmp_path: Path) -> None:
    """Each waits for the other: neither would end alone."""
    code = (
        f"open('{tmp_path}/' + str(%d), 'w')\nimport time\nwhile not os.path.exists('{tmp_path}/%d'): time.sleep(.01)"
    )
    found: list[str] = []

    def wait(one: int) -> None:
        found.append(run(server, tmp_path / f"log{one}", code % (one, 1 - one))[0])

    threads = [threading.Thread(target=wait, args=(one,)) for one in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == ["", ""]


def test_stop_ends_a_command_and_what_it_started(server: ForkServer, tmp_path: Path) -> None:
    stop, told = threading.Event(), tmp_path / "told"
    code = (
        "import subprocess, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "more = subprocess.Popen(['sleep', '600'])\n"
        f"open('{told}.part', 'w').write(f'{{os.getpid()}} {{more.pid}}')\n"
        f"os.rename('{told}.part', '{told}')\ntime.sleep(600)"
    )
    threading.Thread(target=lambda: wait_for(told.is_file, 30) and stop.set(), daemon=True).start()
    started = time.monotonic()
    reason, _ = run(server, tmp_path / "log", code, stop=stop)
    assert reason == "interrupted" and time.monotonic() - started < 30
    pids = [int(one) for one in told.read_text().split()]
    assert wait_for(lambda: not any(map(is_alive, pids)), 10)
    assert run(server, tmp_path / "log", "pass")[0] == "", "the server goes on"


def test_a_server_that_is_gone_takes_its_commands_with_it_and_is_not_needed(
    server: ForkServer, count: Path, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    code = f"open('{told}', 'w').write(str(os.getppid()))\nimport time\ntime.sleep(600)"

    def kill() -> None:
        wait_for(lambda: told.is_file() and told.read_text() != "", 30)
        os.kill(int(told.read_text()), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    assert run(server, tmp_path / "log", code)[0].startswith("killed by the system")
    assert run(server, tmp_path / "log", "pass")[0] == ""
    assert len(count.read_text().splitlines()) == 2, "it was imported once more"


def test_jobs_share_a_server_where_there_is_no_gpu(count: Path, tmp_path: Path) -> None:
    def imported(gpus: int, modules: tuple[str, ...] = ("heavy",)) -> int:
        count.unlink(missing_ok=True)
        some = [Job(f"{n}", (sys.executable, "-m", "says", "pass"), tmp_path / f"{n}", 1.0) for n in range(3)]
        assert run_jobs(some, 2, gpus, make_console(), {"WORD": "x"}, modules) == {}
        return len(count.read_text().splitlines())

    assert imported(0) == 1
    assert imported(1) == imported(0, ()) == 3


def test_what_cannot_be_imported_is_the_command_s_own_failure(count: Path, tmp_path: Path) -> None:
    with ForkServer.importing(("no_such_module",), jobs._environment({})) as server:
        assert run(server, tmp_path / "log", "pass")[0] == ""
        command = [sys.executable, "-m", "no_such_module"]
        reason = run_job(command, tmp_path / "log", {}, lambda event: None, threading.Event(), server)
        assert "No module named" in reason
