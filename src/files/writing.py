"""Writing files whole or not at all, and one process in a folder at a time."""

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from src.console.cli import UserError


def write_text(path: str | Path, text: str) -> None:
    """UTF-8 with `\\n` line ends, whole or not at all: a reader sees the old file or the new one. Makes the folders."""
    write_texts({Path(path): text})


def write_texts(texts: Mapping[Path, str]) -> None:
    """`write_text` for files that belong together: no name changes before all texts are safely on the disk."""
    written: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            written[temporary] = path
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for temporary, path in written.items():
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Make room, or give another place.") from error
    finally:
        for temporary in written:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keeps other processes out of `folder`, which is made, until the block or this process ends. UserError when one is
    in it already.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}. Give another place.") from error
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is being trained by another process. Wait for it, or give another --name."
            ) from None
        except OSError:  # some network file systems lock no folders
            pass
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # only an empty folder can be removed
                folder.rmdir()
    finally:
        os.close(descriptor)


def write_json(path: str | Path, obj: Any) -> None:
    """Indented JSON. Paths become text; numbers that are not finite (a diverged loss) become null: JSON has no NaN."""
    write_text(path, json.dumps(_json_value(obj), ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, values as in `write_json`."""
    write_text(
        path, "".join(json.dumps(_json_value(one), ensure_ascii=False, allow_nan=False) + "\n" for one in objects)
    )


def _json_value(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
