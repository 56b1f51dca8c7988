"""Where trials happen: a folder with the repository's rooms, toy models and a toy corpus, and a house for each trial.

A house has the rooms by links and `resource/results` of its own, a copy of a state. Its paths are relative, so that
records of two houses can be compared.
"""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.faults.shim import Call, Plan, calls, compile_shim, fired

ROOT = Path(__file__).parents[2]
LINKED = ("src", "run", "orpo", "tests")
FILES = ("backbones.yaml", "tokenizers.yaml", "speeds.yaml", "task.yaml", "prompts", "recipes", "miniature")
LIMIT_SECONDS = 120
ITEMS = {"train": 16, "dev": 9, "test": 9}


@dataclasses.dataclass(frozen=True)
class Done:
    """A command that has ended. code: negative for a signal, None when it had to be stopped after `LIMIT_SECONDS`."""

    code: int | None
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


class Running:
    """A command that was started. `poll` gives its exit code or None."""

    def __init__(self, pid: int, poll: Callable[[], int | None], output: Path) -> None:
        self.pid, self._poll, self.output = pid, poll, output
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self._poll()
        return self.code

    def wait(self, seconds: float = LIMIT_SECONDS) -> Done | None:
        """What it has printed and its exit code, or None when it still runs after so long."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                return None
            time.sleep(0.01)
        return Done(self.code, *self._texts())

    def finish(self) -> Done:
        """As `wait`, but ends it when it takes too long."""
        done = self.wait()
        if done is None:
            os.killpg(self.pid, 9)
            while self.poll() is None:
                time.sleep(0.01)
            return Done(None, *self._texts())
        return done

    def _texts(self) -> list[str]:
        files = [self.output.with_name(f"{self.output.name}.{end}") for end in ("out", "err")]
        return [file.read_text(encoding="utf-8", errors="replace") if file.is_file() else "" for file in files]


class Server:
    """The process that forks commands (server.py); one request at a time."""

    def __init__(self, base: Path, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "tests.faults.server"]
        self.log = (base / "server.log").open("a")
        self.process = subprocess.Popen(
            command,
            cwd=base,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.lock = threading.Lock()

    def ask(self, request: dict[str, Any]) -> Any:
        with self.lock:
            assert self.process.stdin and self.process.stdout
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        assert answer, f"the server has ended; see {self.log.name}"
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


class House:
    """A folder that commands run in."""

    def __init__(self, world: "World", folder: Path) -> None:
        self.world, self.folder = world, folder
        self.results = folder / "resource/results"
        self._numbers = itertools.count(1)

    def start(self, command: Sequence[str], plan: Plan | None = None, real: bool = False) -> Running:
        """Starts `python -m command`. real: as a process of its own, and not as a fork of the server."""
        number = next(self._numbers)
        self.output, self.plan, self.log = (self.folder / f"{name}{number}" for name in ("output", "plan", "log"))
        if plan:
            plan.write(self.plan, self.log, [self.results])
        module, *words = command
        if real:
            return self._start_real(module, words, plan is not None)
        server = self.world.server()
        request = {"module": module, "words": words, "folder": str(self.folder), "output": str(self.output)}
        pid = server.ask({"start": {**request, "plan": str(self.plan) if plan else None}})
        return Running(pid, lambda: server.ask({"poll": pid}), self.output)

    def _start_real(self, module: str, words: Sequence[str], planned: bool) -> Running:
        environment = {**self.world.environment, **({"FAULTS_PLAN": str(self.plan)} if planned else {})}
        files = [self.output.with_name(f"{self.output.name}.{end}").open("w") for end in ("out", "err")]
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=files[0],
            stderr=files[1],
            start_new_session=True,
        )
        for file in files:
            file.close()
        return Running(process.pid, process.poll, self.output)

    def run(self, command: Sequence[str], plan: Plan | None = None, real: bool = False) -> Done:
        """`start`, and its end."""
        return self.start(command, plan, real).finish()

    def calls(self) -> list[Call]:
        """Those that the last command with a plan made."""
        return calls(self.log)

    def fired(self) -> bool:
        """Whether the last plan has happened."""
        return fired(self.plan)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class World:
    """Everything that trials share, in `folder`. Not to be shared by processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.base, self.states = self.folder / "base", self.folder / "states"
        self.base.mkdir(parents=True)
        self.states.mkdir()
        for name in LINKED:
            (self.base / name).symlink_to(ROOT / name)
        (self.base / "resource").mkdir()
        for name in FILES:
            (self.base / "resource" / name).symlink_to(ROOT / "resource" / name)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "COLUMNS"},
            **{"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
            # Processes that are started anew should agree on the order of sets.
            **{"PYTHONDONTWRITEBYTECODE": "1", "LD_PRELOAD": str(compile_shim(self.folder))},
        }
        self._server: Server | None = None
        self._lock = threading.RLock()
        self._houses = itertools.count(1)
        self._fill()

    def _fill(self) -> None:
        """Models, recipes, a prompt and corpora, made by a child: what is forked later must not have computed yet."""
        output = self.folder / "made"
        request = {"module": "tests.faults.made", "words": [], "folder": str(self.base), "output": str(output)}
        pid = self.server().ask({"start": {**request, "plan": None}})
        done = Running(pid, lambda: self.server().ask({"poll": pid}), output).finish()
        assert done.code == 0, done.text

    def server(self) -> Server:
        with self._lock:
            if self._server is None:
                self._server = Server(self.base, self.environment)
            return self._server

    def house(self, state: Path | None = None) -> House:
        """A new house. Its results are a copy of `state`."""
        folder = self.folder / f"house{next(self._houses)}"
        (folder / "resource").mkdir(parents=True)
        for name in LINKED:
            (folder / name).symlink_to(ROOT / name)
        for entry in (self.base / "resource").iterdir():
            (folder / "resource" / entry.name).symlink_to(entry)
        house = House(self, folder)
        if state is None:
            house.results.mkdir()
        else:
            shutil.copytree(state, house.results, symlinks=True)
        return house

    def close(self) -> None:
        if self._server:
            self._server.close()
