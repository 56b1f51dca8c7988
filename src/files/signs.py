"""Signs of life of a run: `status.json`, a small file in its folder, says what the process there does and how far.

A thread writes it, every two seconds at most, from counts that the progress bar keeps anyway: a training step does
nothing for it. It is removed when the work is done, because the record says so then, and stays with the reason when the
work failed. A process that is killed leaves the last sign behind; the lock tells whether it lives, not the file.
"""

import contextlib
import functools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from src.console import launch, progress
from src.console.cli import UserError
from src.files.kinds import fits
from src.files.paths import RECIPE, RECORD, STATUS
from src.files.writing import is_alive

EVERY, QUIET = 2.0, 20.0
"""Seconds between two signs while something moves, and while nothing does."""
ENGINE = "CCI_ENGINE"
"""Environment variable with the engine that placed the command; without it, someone started it by hand."""
BY_HAND = "by hand"
RUNNING, FAILED, STOPPED = "running", "failed", "stopped"
STARTING = "starting"
"""The stage in the sign that an engine writes for a process which has not given one yet."""
LARGEST = 100_000
"""Bytes of a status file."""
LONGEST_REASON = 1000


@dataclass(frozen=True)
class Sign:
    """The last sign of life of a process in a run folder. Times are seconds since 1970 by the clock of its host.

    state    running, failed or stopped (interrupted)
    born     tells the process from a later one of the same number; "" where the system does not say
    engine   that placed it
    gpus     as CUDA_VISIBLE_DEVICES has them; "" for all there are, or none
    job      of Slurm: 12_3 for the third task of array 12
    since    when the work began
    at       when this sign was written
    moved    when `done` last grew
    stage    what is done now; "" before the first stage
    total    0 where the length of the stage is not known
    left     seconds to the end of the stage, at the speed so far; None where that cannot be known
    reason   why it failed
    """

    state: str
    pid: int
    host: str
    born: str
    engine: str
    gpus: str
    job: str
    since: float
    at: float
    moved: float
    stage: str = ""
    done: int = 0
    total: int = 0
    note: str = ""
    left: float | None = None
    reason: str = ""

    @classmethod
    def of_this_process(cls) -> "Sign":
        now, number = time.time(), os.getpid()
        variables = os.environ
        job, task = variables.get("SLURM_ARRAY_JOB_ID"), variables.get("SLURM_ARRAY_TASK_ID")
        return cls(
            state=RUNNING,
            pid=number,
            host=socket.gethostname(),
            born=born(number),
            engine=variables.get(ENGINE, BY_HAND),
            gpus=launch.current().gpus or variables.get("CUDA_VISIBLE_DEVICES", ""),
            job=f"{job}_{task}" if job and task else variables.get("SLURM_JOB_ID", ""),
            since=now,
            at=now,
            moved=now,
        )

    @property
    def is_of_this_machine(self) -> bool:
        """Whether its process can be looked for here. A machine that was started anew since is another one."""
        return self.host == socket.gethostname() and self.born.partition(" ")[0] == _boot()

    @property
    def is_alive(self) -> bool:
        """Whether the very process still exists on this machine, where it was."""
        return self.is_of_this_machine and (born(self.pid) == self.born if self.born else is_alive(self.pid))


def born(pid: int) -> str:
    """This boot of the machine, and the process's start in it; "" without such a process (one that has ended and is not
    waited for is none), or where neither is told.
    """
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return "" if words[0] in "ZX" else f"{_boot()} {words[19]}"
    except (OSError, IndexError):
        return ""


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


@contextlib.contextmanager
def signs_of_life(folder: Path) -> Iterator[None]:
    """Within the block, `folder` has signs of this process, which has locked it. Afterwards the file is gone, or says
    why the work failed. A folder that has become no run keeps no file.

    What cannot be written is left out: no work ends because nobody can be told of it.
    """
    first, ended = Sign.of_this_process(), threading.Event()
    thread = threading.Thread(target=_write_now_and_then, args=(folder, first, ended), daemon=True)
    thread.start()
    last: Sign | None = first
    try:
        yield
        last = None
    except UserError as error:
        last = replace(first, state=FAILED, reason=str(error))
        raise
    except (KeyboardInterrupt, SystemExit):
        last = replace(first, state=STOPPED)
        raise
    except BaseException as error:
        last = replace(first, state=FAILED, reason=f"{type(error).__name__}: {error}")
        raise
    finally:
        ended.set()
        thread.join(timeout=5)
        if last is None or not set(_names(folder)) & {RECIPE, RECORD, "log.txt"}:
            remove_sign(folder)
        else:
            write_sign(folder, _now(last))


def conclude(folder: Path, reason: str) -> None:
    """For whoever started a process in `folder` and saw it end for `reason`: has the file say so, where the process
    itself could not.
    """
    with contextlib.suppress(ValueError):
        before = read_sign(folder)
        if before is None or before.state == RUNNING:
            base = before or replace(Sign.of_this_process(), pid=0, born="")
            write_sign(folder, replace(base, state=FAILED, reason=reason, at=time.time()))


def write_sign(folder: Path, sign: Sign) -> None:
    """Whole or not at all for a reader, but not safe from a power cut, after which the file is of no use."""
    values = asdict(replace(sign, reason=sign.reason[:LONGEST_REASON]))
    temporary = folder / f".{STATUS}.{socket.gethostname().replace('.', '-')}.{os.getpid()}.tmp"
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
        with temporary.open("x", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(values, file, ensure_ascii=False)
        os.replace(temporary, folder / STATUS)
        return
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def read_sign(folder: Path) -> Sign | None:
    """None without one. ValueError, in words, when it is damaged."""
    path = folder / STATUS
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(LARGEST))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged") from error
    return _parsed(found, path)


def remove_sign(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / STATUS).unlink(missing_ok=True)


def _parsed(found: Any, path: Path) -> Sign:
    hints = _hints()
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} is damaged")
    known = {field.name: found[field.name] for field in fields(Sign) if field.name in found}
    if any(not fits(value, hints[name]) for name, value in known.items()):
        raise ValueError(f"{path} is damaged")
    try:
        return Sign(**known)
    except TypeError as error:
        raise ValueError(f"{path} is damaged") from error


@functools.cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Sign)


def _write_now_and_then(folder: Path, sign: Sign, ended: threading.Event) -> None:
    written = -QUIET
    while not ended.wait(EVERY):
        now = _now(sign)
        moved = (now.stage, now.done) != (sign.stage, sign.done)
        sign = replace(now, moved=now.at) if moved else now
        if moved or time.monotonic() - written >= QUIET:
            written = time.monotonic()
            write_sign(folder, sign)


def _now(sign: Sign) -> Sign:
    """`sign` with what is done now."""
    stage = progress.current()
    if stage is None:
        return replace(sign, at=time.time())
    return replace(
        sign,
        at=time.time(),
        stage=stage.stage,
        done=stage.done,
        total=stage.total,
        note=stage.words,
        left=stage.seconds_left(),
    )


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
