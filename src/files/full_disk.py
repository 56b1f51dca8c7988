"""Errors of disks that are full, read-only or failing, as the user's message."""

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from src.console.cli import UserError
from src.console.words import size_text

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NUMBER = re.compile(r"os error (\d+)")
"""How Rust's libraries (safetensors) name the system's error."""

OF_TORCH = re.compile("inline_container|StreamWriter|unexpected pos|file write|iostream|basic_ios|arent directory")
"""In what torch.save says when a file does not take what it writes."""


@contextlib.contextmanager
def told(what: str, folder: Path, needed: float = 0) -> Iterator[None]:
    """Within the block, which writes `what` in `folder`, an error of the disk becomes a UserError. needed: bytes that
    the block writes, if they are known.

    torch says of a full disk only that it wrote less than it should have. Rust's libraries (safetensors, tokenizers)
    raise exceptions of their own, which name the system's error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        of_torch = isinstance(error, RuntimeError) and OF_TORCH.search(str(error))
        if not (isinstance(error, OSError) or of_torch or NUMBER.search(str(error))):
            raise
        raise UserError(f"{what} cannot be written in {folder}: {_reason(error, folder, needed)}") from error


def _reason(error: Exception, folder: Path, needed: float) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if found := NUMBER.search(str(error)):
        number = int(found[1])
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
    advice = "Mend that, and start the same command again: it goes on."
    if number in FULL or not isinstance(error, OSError):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        takes = f"it takes {size_text(needed)}, and " if needed else ""
        reason = f"{reason} ({takes}{size_text(free)} are free)"
        advice = "Make room, and start the same command again: it goes on."
    return f"{reason}. {advice}"
