"""Size and sha256 of files, and how files differ from what was noted of them.

Files of gigabytes are read once: what was found is remembered with the file's size, times and number on its disk. A
copy or a changed file has other times, so it is read again.
"""

import contextlib
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.console import progress
from src.console.cli import UserError
from src.files import paths
from src.files.writing import write_json

LARGE = 64 * 2**20
"""From so many bytes on, a file's digest is remembered."""
CHUNK = 8 * 2**20
MOST_REMEMBERED = 10_000
SHOWN = 12
"""Characters of a sha256 in messages."""
THREADS = 4
BROWSERS = ("Thumbs.db", "desktop.ini")
"""What Windows leaves in a folder that was looked at. A Mac leaves hidden files (`.DS_Store`, `._name`)."""


@dataclass(frozen=True)
class Digest:
    bytes: int
    sha256: str

    @classmethod
    def of_text(cls, text: str) -> "Digest":
        """Of the file that `write_text` makes of `text`."""
        content = text.encode()
        return cls(len(content), hashlib.sha256(content).hexdigest())

    @classmethod
    def parse(cls, stored: Any, where: str) -> "Digest":
        """ValueError, which begins with `where`, for anything but the JSON of a digest."""
        found = stored if isinstance(stored, dict) else {}
        size, sha256 = found.get("bytes"), found.get("sha256")
        if not isinstance(size, int) or isinstance(size, bool) or not isinstance(sha256, str):
            raise ValueError(f"{where} is no size and sha256")
        return cls(size, sha256)

    def as_json(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "sha256": self.sha256}


Digests = Mapping[str, Digest]
"""Name of a file, relative to a folder → its digest."""


def files_in(folder: Path, leave_out: Iterable[str] = ()) -> list[str]:
    """Names of all files in `folder` and below, relative to it, sorted. Hidden files and those of `BROWSERS` are left
    out: they come and go by themselves, and no library loads them.
    """
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    seen = [str(path) for path in found if path.name not in BROWSERS and not any(part[0] == "." for part in path.parts)]
    return sorted(set(seen) - set(leave_out))


def digests(folder: Path, names: Iterable[str], words: str = "") -> dict[str, Digest]:
    """Name → digest of files in `folder`. words: what the bar of large files says; none without. OSError when a file
    cannot be read.
    """
    names = list(names)
    sizes = [(folder / name).stat().st_size for name in names]
    known = _Memory() if any(size >= LARGE for size in sizes) else None
    unread = sum(size for name, size in zip(names, sizes, strict=True) if not (known and known.get(folder / name)))

    with _bar(words, unread) as update, ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda name: _digest(folder / name, known, update), names))
    if known:
        known.save()
    return dict(zip(names, found, strict=True))


@contextlib.contextmanager
def _bar(words: str, unread: int) -> Iterator[Callable[[], None]]:
    """Within, a bar for so many bytes. Yields what each chunk calls, from any thread."""
    if not words or unread < LARGE:
        yield lambda: None
        return
    chunks, lock = itertools.count(1), threading.Lock()
    with progress.stage(words, unread // CHUNK + 1) as bar:

        def one_more() -> None:
            with lock:
                bar.update(next(chunks))

        yield one_more


def differences(folder: Path, noted: Digests, words: str = "") -> list[str]:
    """How files of `folder` differ from what was noted of them, one sentence part for each file; [] when none does."""
    # A foreign record may name any file of this machine, also one that never ends (/proc/kcore).
    outside = [name for name in noted if Path(name).is_absolute() or ".." in Path(name).parts]
    there = [name for name in noted if name not in outside and (folder / name).is_file()]
    found = [f"{name} is {'outside the folder' if name in outside else 'gone'}" for name in noted if name not in there]
    whole = []
    for name in there:
        size = (folder / name).stat().st_size
        if size == noted[name].bytes:
            whole.append(name)
        else:
            found.append(f"{name} has {size:,} bytes instead of {noted[name].bytes:,}")
    for name, now in digests(folder, whole, words).items():
        if now != noted[name]:
            found.append(f"{name} has sha256 {now.sha256[:SHOWN]}… instead of {noted[name].sha256[:SHOWN]}…")
    return found


def _digest(path: Path, known: "_Memory | None", update: Callable[[], None]) -> Digest:
    if known and (before := known.get(path)):
        return before
    found, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
            size += len(chunk)
            update()
    digest = Digest(size, found.hexdigest())
    if known:
        known.put(path, digest)
    return digest


class _Memory:
    """Digests of large files, kept in a file in the folder of results. It may be deleted at any time."""

    def __init__(self) -> None:
        self.file = paths.RESULTS / ".digests.json"
        self.fresh: dict[str, Any] = {}
        self.stored = self._load()

    def _load(self) -> dict[str, Any]:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def get(self, path: Path) -> Digest | None:
        there = {**self.stored, **self.fresh}.get(str(path.resolve()))
        if not isinstance(there, list) or there[:-1] != _stamp(path):
            return None
        return Digest(there[0], there[-1]) if isinstance(there[-1], str) else None

    def put(self, path: Path, digest: Digest) -> None:
        if digest.bytes >= LARGE:
            self.fresh[str(path.resolve())] = [*_stamp(path), digest.sha256]

    def save(self) -> None:
        """Another process may have written in the meantime; what it lost is only read again."""
        if self.fresh:
            kept = {name: value for name, value in self._load().items() if os.path.exists(name)}
            entries = list({**kept, **self.fresh}.items())[-MOST_REMEMBERED:]
            with contextlib.suppress(UserError):  # a folder that may not be written to
                write_json(self.file, dict(entries))


def _stamp(path: Path) -> list[int]:
    """What changes when a file's content does. The time of the last change of its entry cannot be set by hand."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
