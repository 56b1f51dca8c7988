"""The shim (shim.c) from Python: compiled once, told what to do by a file, and read back."""

import dataclasses
import errno
import shutil
import signal
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
LAYOUT = struct.Struct("<3q4i2i512s2048s")
"""`struct plan` of shim.c."""
PREFIX = 512
ACTIONS = ("nothing", "before", "after", "half", "fail", "once", "short")
TARGETS = ("self", "parent", "group")
KINDS = ("write", "rename", "unlink", "mkdir", "sync", "truncate", "create", "map")
FULL = ("write", "truncate", "create", "mkdir")
FAILING = {
    "ENOSPC": FULL,
    "EDQUOT": FULL,
    "EROFS": ("write", "rename", "unlink", "mkdir", "truncate", "create"),
    "EIO": ("write", "sync", "rename"),
    "EFBIG": ("write",),
}
"""What a disk in this state refuses."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the shim does. at: the number of the call at which it acts; 0 for never.

    action  `before`, `after` or `half` of the call a `signal` goes to `target`; `fail` from then on, `once`, or
            (`short`) after half of the data was written
    free    bytes that the disk says are free; -1 for the truth
    """

    at: int = 0
    action: str = "nothing"
    error: str = ""
    signal: int = signal.SIGKILL
    target: str = "self"
    free: int = -1

    def write(self, path: Path, log: Path, prefixes: list[Path]) -> None:
        """Puts it into the file `path`, which processes share; calls under `prefixes` count."""
        kinds = sum(1 << KINDS.index(kind) for kind in FAILING.get(self.error, ()))
        packed = b"".join(str(prefix).encode().ljust(PREFIX, b"\0") for prefix in prefixes)
        path.write_bytes(
            LAYOUT.pack(
                *(0, self.at, self.free),
                *(ACTIONS.index(self.action), getattr(errno, self.error or "EPERM"), self.signal),
                *(TARGETS.index(self.target), kinds, 0),
                *(str(log).encode(), packed),
            )
        )


@dataclasses.dataclass(frozen=True)
class Call:
    """A counted call. path: absolute; other: the second path of a rename."""

    number: int
    pid: int
    kind: str
    size: int
    path: str
    other: str


def fired(path: Path) -> bool:
    """Whether what the plan in `path` says has happened."""
    return bool(LAYOUT.unpack(path.read_bytes())[8])


def calls(log: Path) -> list[Call]:
    """In their order."""
    if not log.is_file():
        return []
    rows = [line.split("\t") for line in log.read_text(encoding="utf-8").splitlines()]
    found = [Call(int(row[0]), int(row[1]), row[2], int(row[3]), row[4], row[5]) for row in rows if len(row) == 6]
    return sorted(found, key=lambda call: call.number)


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def compile_shim(folder: Path) -> Path:
    """The shim's library, in `folder`."""
    path = folder / "shim.so"
    command = [compiler() or "cc", "-O1", "-shared", "-fPIC", "-o", str(path), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return path
