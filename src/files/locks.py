"""One process in a folder at a time. The second one is told who has it."""

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from src.console.cli import UserError
from src.files.paths import LOCK
from src.files.writing import advice, remove_leftovers

PATIENCE_SECONDS = 0.2
"""Whoever looks whether a folder is locked holds the lock for an instant; that is no reason to give up."""


@dataclass(frozen=True)
class Held:
    """A folder that this process works in, and the number by which the disk knows it."""

    folder: Path
    identity: tuple[int, int]

    @classmethod
    def of(cls, folder: Path) -> "Held":
        """`folder`, which is created, as it is now."""
        folder.mkdir(parents=True, exist_ok=True)
        identity = _identity(folder)
        assert identity is not None, folder
        return cls(folder, identity)

    def refuse_gone(self) -> None:
        """UserError when the folder was moved or deleted since it was locked."""
        if _identity(self.folder) != self.identity:
            raise UserError(
                f"{self.folder} was moved or deleted while this command worked in it, so it is not finished. "
                "Move it back and start the same command again; if it is gone, the command begins anew."
            )


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[Held]:
    """Within the block, no other process may lock `folder`, which is created; UserError, which says who has it, if one
    has. The lock also ends with the process. What killed processes were writing there is removed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be made or written to: {error.strerror}. {advice(error)}") from error
    try:
        remove_leftovers(folder)
        yield Held.of(folder)
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                if _is_open(descriptor, folder / LOCK):
                    os.unlink(folder / LOCK)
            os.close(descriptor)
        with contextlib.suppress(OSError):  # Remove the folder if nothing was written.
            folder.rmdir()


def _lock(folder: Path) -> int | None:
    """The descriptor that holds the lock; None where the file system has no locks."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                os.close(descriptor)
                time.sleep(0.02)
                continue
            told = _told(descriptor) or "another process"
            os.close(descriptor)
            raise UserError(f"{folder} is in use by {told}. Wait until it ends, or take another folder.") from None
        except OSError:  # some network file systems have no locks
            os.close(descriptor)
            (folder / LOCK).unlink(missing_ok=True)
            return None
        if _is_open(descriptor, folder / LOCK):
            break
        os.close(descriptor)  # its last owner has just removed the file
    who = {"pid": os.getpid(), "host": socket.gethostname(), "command": _command(), "since": time.strftime("%F %T")}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(who, ensure_ascii=False).encode(), 0)
    return descriptor


def _command() -> str:
    """As the user typed it."""
    module = getattr(getattr(sys.modules.get("__main__"), "__spec__", None), "name", None)
    return shlex.join([*(("python", "-m", module) if module else sys.argv[:1]), *sys.argv[1:]])


def _told(descriptor: int) -> str:
    """Who holds a lock, in words; nothing when neither its file nor this machine tells."""
    try:
        who = json.loads(os.pread(descriptor, 10_000, 0))
        return f"process {int(who['pid'])} on {who['host']}, since {who['since']} ({who['command'][:200]})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return _by_this_machine(descriptor)


def _by_this_machine(descriptor: int) -> str:
    """The same for a process here that has not written who it is yet."""
    try:
        number = os.fstat(descriptor).st_ino
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        pid = next(words[4] for words in locks if words[1] == "FLOCK" and words[5].endswith(f":{number}"))
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return f"process {pid} on {socket.gethostname()} ({command[:200]})"
    except (OSError, IndexError, StopIteration):
        return ""


def at_work(folder: Path) -> str:
    """`is in use by process …` when another process has locked `folder`, else nothing."""
    with _of_another(folder) as descriptor:
        return "" if descriptor is None else f"is in use by {_told(descriptor) or 'another process'}"


def holder(folder: Path) -> tuple[int, str] | None:
    """(process id, host) of another process that has locked `folder`; (0, "") where it does not say. None when nobody
    has.
    """
    with _of_another(folder) as descriptor:
        if descriptor is None:
            return None
        try:
            who = json.loads(os.pread(descriptor, 10_000, 0))
            return int(who["pid"]), str(who["host"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return 0, ""


@contextlib.contextmanager
def _of_another(folder: Path) -> Iterator[int | None]:
    """Within the block, the file of a lock that another process holds, to be read; None when it is free."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield None
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        held = False
    except OSError as error:
        held = isinstance(error, BlockingIOError)
    try:
        yield descriptor if held else None
    finally:
        os.close(descriptor)


def _is_open(descriptor: int, path: Path) -> bool:
    """Whether `descriptor` is of the file that is at `path` now."""
    mine = os.fstat(descriptor)
    return (mine.st_dev, mine.st_ino) == _identity(path)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
