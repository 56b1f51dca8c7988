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
from src.files.reading import HALF


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 with `\\n` line ends, whole or not at all: a reader sees the old file or the new one. Makes the
    folders that are missing.
    """
    write_texts({Path(path): text})


def write_texts(texts: Mapping[Path, str]) -> None:
    """`write_text` for files that belong together: no file is replaced before all texts are safely on the disk."""
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
    """Within the block, no other process may lock `folder`, which is created; UserError if one has. The lock also ends
    with the process.
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
        except OSError:  # some network file systems cannot lock folders
            pass
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Remove the folder if nothing was written.
                folder.rmdir()
    finally:
        os.close(descriptor)


def write_json(path: str | Path, obj: Any) -> None:
    """Writes indented JSON. Paths become text. Numbers that are not finite (a diverged loss) become null: JSON has no
    NaN.
    """
    write_text(path, json.dumps(_json_value(obj), ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, with values as in `write_json`."""
    lines = (json.dumps(_json_value(one), ensure_ascii=False, allow_nan=False) + "\n" for one in objects)
    write_text(path, "".join(lines))


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
