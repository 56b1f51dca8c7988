"""Child processes that end with the command that started them, whatever ends it: a signal, a closed terminal, a kill.

A child leads a process group of its own, in which everything is that it starts (compilers, loaders of data). Beside it
waits a guardian: a small shell that reads a pipe to which nobody writes. The pipe closes when the command is gone, and
the guardian kills the group. The child also asks the system to be killed when its parent ends (`follow_parent`), which
counts for commands that a script starts, too.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from src.console.environment import processes

PARENT = "CCI_PARENT"
"""Environment variable with the process id of whoever started the command and wants it to end with itself."""
PATIENCE = 1.0
"""Seconds that a child has to end by itself once it is asked to."""
POLL = 0.2
GUARDIAN = 'read -r _; kill -s KILL -- "-$1"'
PR_SET_PDEATHSIG = 1

_groups: set[int] = set()
"""The groups of the children that run now."""


class Child(Protocol):
    """The part of `subprocess.Popen` that is used here."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int | None: ...


@contextlib.contextmanager
def started(command: Sequence[str], environment: dict[str, str], **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """Within the block, `command` runs as a child with its guardian. At the end of the block its whole group is ended.

    options: of `subprocess.Popen`.
    """
    environment = {**environment, PARENT: str(os.getpid())}
    child = subprocess.Popen(command, env=environment, process_group=0, **options)
    with guarded(child):
        yield child


@contextlib.contextmanager
def guarded(child: Child) -> Iterator[None]:
    """Within the block, a child that leads a group has its guardian. At the end its whole group is ended."""
    _groups.add(child.pid)
    nowhere = subprocess.DEVNULL
    guardian = subprocess.Popen(
        ["sh", "-c", GUARDIAN, "sh", str(child.pid)],
        stdin=subprocess.PIPE,
        stdout=nowhere,
        stderr=nowhere,
        start_new_session=True,  # what ends this command's group does not end it
    )
    assert guardian.stdin is not None
    try:
        yield
    finally:
        if child.poll() is None:
            _signal(child.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(PATIENCE)
        _signal(child.pid, signal.SIGKILL)  # also what the child has left behind
        child.wait()
        _groups.discard(child.pid)
        guardian.stdin.close()
        guardian.wait()


@contextlib.contextmanager
def pausing() -> Iterator[None]:
    """Within the block, Ctrl-Z and `fg` hold for the children, too; they are not in the terminal's group."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pause(number: int, frame: Any) -> None:
        for group in _groups:
            _signal(group, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)  # goes on here after `fg`
        for group in _groups:
            _signal(group, signal.SIGCONT)

    before = signal.signal(signal.SIGTSTP, pause)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


def follow_parent() -> None:
    """Has this process killed when the one that PARENT names ends; ends it now if that has ended already.

    A launcher (torchrun) stands between its ranks and whoever started it. Each rank is killed with the launcher.
    """
    number = os.environ.pop(PARENT, "")
    if not number.isdigit():
        return
    parent = os.getppid() if processes() > 1 else int(number)
    if not _killed_with_parent():
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)


def _killed_with_parent() -> bool:
    """Whether the system will do it; Linux does."""
    try:
        return ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) == 0
    except (AttributeError, OSError):
        return False


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    os.kill(os.getpid(), signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
