"""A process that has imported what many commands need, and forks for each of them: on a CPU importing torch and
transformers takes longer than the miniature takes to score a split.

`ForkServer` starts it and asks it for commands, over a socket that also hands on the log and the pipe for progress. A
command runs as `python -m` would run it, in a process group of its own. It ends with the server, and the server with
the command that started it (src/console/children.py). Not for commands that use a GPU: a process that has begun with
CUDA cannot be forked.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from src.console import environment
from src.console.children import PARENT, follow_parent, guarded, started

MODULE = "src.console.fork_server"
LARGEST = 2**20
"""Bytes of a message."""
TICK = 0.05
"""Seconds between two looks at the children."""


class Forked:
    """A command that the server runs; the part of `subprocess.Popen` that is used. returncode: None while it runs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = threading.Event()

    def end(self, code: int) -> None:
        self.returncode = code
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Returns the exit code, as Popen's: the signal's negative number where one ended it. None after `timeout`."""
        self._ended.wait(timeout)
        return self.returncode


class ForkServer:
    """Asks the server for commands; from several threads, too."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._asking = connection, threading.Lock()
        self._begun: Forked | None = None
        self._answered = threading.Condition()
        self._running: dict[int, Forked] = {}
        self._gone = False
        threading.Thread(target=self._listen, daemon=True).start()

    @staticmethod
    @contextlib.contextmanager
    def importing(modules: Sequence[str], variables: dict[str, str]) -> Iterator["ForkServer"]:
        """Within the block, a server that imports `modules`. variables: its environment, and so what libraries read
        while they are imported.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", MODULE, str(theirs.fileno()), *modules]
        options = {"pass_fds": (theirs.fileno(),), **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)}
        with ours, started(command, variables, **options):
            theirs.close()
            yield ForkServer(ours)
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def run(
        self, module: str, arguments: Sequence[str], variables: Mapping[str, str], log: int, pipe: int, name: str
    ) -> Iterator[Forked | None]:
        """Within the block, `python -m module arguments` runs, with its guardian; None where the server is gone.

        variables: all of its environment. log: file for its output. pipe: its number will be in the variable `name`.
        As many as a process started by `subprocess` would be given: whoever calls has them singly.
        """
        request = {"module": module, "arguments": list(arguments), "variables": dict(variables), "pipe": name}
        child = self._ask(request, [log, pipe])
        if child is None:
            yield None
            return
        try:
            with guarded(child):
                yield child
        finally:
            self._send({"forget": child.pid})

    def _ask(self, request: dict[str, Any], files: list[int]) -> Forked | None:
        with self._asking, self._answered:
            self._begun = None
            if not self._send(request, files):
                return None
            self._answered.wait_for(lambda: self._begun is not None or self._gone)
            return self._begun

    def _send(self, message: dict[str, Any], files: Sequence[int] = ()) -> bool:
        try:
            socket.send_fds(self._connection, [json.dumps(message).encode()], list(files))
        except OSError:
            return False
        return True

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._connection.recv(LARGEST):
                message = json.loads(data)
                with self._answered:
                    if "code" in message:
                        self._running.pop(message["pid"]).end(message["code"])
                    else:
                        self._begun = self._running[message["pid"]] = Forked(message["pid"])
                        self._answered.notify_all()
        with self._answered:  # a server that is gone has taken its children with it
            self._gone = True
            for child in self._running.values():
                child.end(-signal.SIGKILL)
            self._answered.notify_all()


def serve(connection: socket.socket) -> int:
    """Forks for each request, until the other end is closed. Returns an exit code: in a fork, the command's."""
    running: set[int] = set()
    while True:
        if select.select([connection], [], [], TICK if running else None)[0]:
            data, files, _, _ = socket.recv_fds(connection, LARGEST, 2)
            if not data:
                return 0
            request = json.loads(data)
            if "forget" in request:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(request["forget"], 0)
                continue
            if (pid := os.fork()) == 0:
                connection.close()
                return _command(request, *files)
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)  # whoever is first, this or the child itself
            for file in files:
                os.close(file)
            running.add(pid)
            connection.send(json.dumps({"pid": pid}).encode())
        for pid in list(running):
            # It stays a zombie until it is forgotten: so nobody else gets its number, while its group may be killed.
            if found := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                running.discard(pid)
                code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
                connection.send(json.dumps({"pid": pid, "code": code}).encode())


def _command(request: dict[str, Any], log: int, pipe: int) -> int:
    """Runs the command in this process, and returns its exit code."""
    os.setpgid(0, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(request["variables"] | {PARENT: str(os.getppid()), request["pipe"]: str(pipe)})
    sys.argv = [request["module"], *request["arguments"]]
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    follow_parent()
    environment.clear()  # of what libraries would read while they are imported; the command says what it ignores
    environment.drop_lost_cache()
    gc.disable()  # what is imported stays: going through it again and again takes an eighth of the time
    with contextlib.suppress(ImportError):  # the command itself will say so
        for one in sys.argv[2:]:
            importlib.import_module(one)
    gc.freeze()
    gc.enable()
    # Threads of libraries that wait, such as OpenBLAS's, which a fork ends and begins anew when it needs them.
    warnings.filterwarnings("ignore", message=r".*use of fork\(\) may lead to deadlocks", category=DeprecationWarning)
    sys.exit(serve(socket.socket(fileno=int(sys.argv[1]))))
