"""Writing files whole or not at all, so that a kill, a full disk or a power cut leaves the old file or the new one."""

import contextlib
import errno
import json
import math
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from src.console.cli import UserError
from src.files.reading import HALF

TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[^.]*)\.(?P<pid>\d+)\.tmp")
"""Name of a file that is being written. A kill can leave it behind."""


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 with `\\n` line ends, whole or not at all: a reader sees the old file or the new one. Makes the
    folders that are missing.
    """
    write_texts({Path(path): text})


def write_texts(texts: Mapping[Path, str], all_or_none: bool = False) -> None:
    """`write_text` for files that belong together: no file is replaced before all texts are safely on the disk.

    all_or_none  the old files are removed before the first new one is in its place, and the first of `texts` comes
                 last: where it is there, all are of this call
    """
    written: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")
            written[temporary] = path
            temporary.unlink(missing_ok=True)  # which would be a link that someone put there
            with temporary.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        if all_or_none:
            for path in texts:
                path.unlink(missing_ok=True)
                sync_folder(path.parent)
        for temporary, path in reversed(written.items()) if all_or_none else written.items():
            os.replace(temporary, path)
            if all_or_none:
                sync_folder(path.parent)
        for folder in {path.parent for path in texts}:
            sync_folder(folder)
            remove_leftovers(folder)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. {advice(error)}") from error
    finally:
        for temporary in written:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def advice(error: OSError) -> str:
    """What to do where a file cannot be written."""
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "Give another place, or the right to write there."
    return "Make room, or give another place."


def sync_folder(folder: Path) -> None:
    """Has the names in `folder` reach the disk, where the file system can do that."""
    with contextlib.suppress(OSError), _opened(folder) as descriptor:
        os.fsync(descriptor)


def sync_file(path: Path) -> None:
    """Has the content of `path` reach the disk. OSError when it cannot."""
    with _opened(path) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes what processes of this machine were writing in `folder` when they were killed."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            found = TEMPORARY.fullmatch(name)
            if found and found["host"] in ("", _host()) and not is_alive(int(found["pid"])):
                (folder / name).unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether this machine has such a process."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to someone else
        pass
    return True


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def write_json(path: str | Path, obj: Any) -> None:
    """Writes indented JSON. Paths become text. Numbers that are not finite (a diverged loss) become null: JSON has no
    NaN.
    """
    write_text(path, as_json(obj))


def as_json(obj: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(_json_value(obj), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def write_jsonl(path: str | Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, with values as in `write_json`."""
    write_text(path, as_jsonl(objects))


def as_jsonl(objects: Iterable[Mapping[str, Any]]) -> str:
    """The text that `write_jsonl` writes."""
    return "".join(json.dumps(_json_value(one), ensure_ascii=False, allow_nan=False) + "\n" for one in objects)


def _json_value(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_json_value(key): _json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(inner) for inner in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    # A path that is not UTF-8 comes with half characters in place of its bytes, which no file of ours can hold.
    return HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", value) if isinstance(value, str) else value
