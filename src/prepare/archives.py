"""JSON files where users have them: in a folder, in a zip, in a zip within a zip.

Members of a zip are read in memory and never extracted, so their names cannot reach a path of this machine. Nothing
larger than `MOST_BYTES` is unpacked, whatever size the zip claims.
"""

import contextlib
import io
import itertools
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from src.console.cli import UserError, nearest
from src.data import SPLITS
from src.files.reading import MOST_BYTES, composed, read_bytes

MOST_FILES = 10_000
"""In a zip, or in a folder."""
MOST_DAMAGED = 20
"""Zips in a zip that are tried and cannot be read."""
MOST_LISTED_BYTES = 2_000_000
"""Of a zip's directory, which names its members."""
CHUNK_BYTES = 4096
"""Bytes that are unpacked at once: few enough for memory even if each expands to thousands."""

UTF8_NAME, ENCRYPTED = 0x800, 0x1  # bits of a zip member's general purpose flag (APPNOTE.TXT, 4.4.4)

JSON_ENDINGS = (".json", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class Candidate:
    """A JSON file: at `path` itself, or `member` of the zip at `path`, or `member` of the zip `outer` within that zip.

    `name` is its readable base name.
    """

    path: Path
    name: str
    member: zipfile.ZipInfo | None = None
    outer: zipfile.ZipInfo | None = None

    @property
    def place(self) -> str:
        return ": ".join([readable(str(self.path)), *(member_name(one) for one in (self.outer, self.member) if one)])

    @property
    def split(self) -> str | None:
        """The split word in the name, or None if there is none or more than one."""
        words = set(re.findall(rf"(?<![a-z])({'|'.join(SPLITS)})(?![a-z])", self.name.lower()))
        return words.pop() if len(words) == 1 else None

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for the same file if it is given twice."""
        return (self.path.resolve(), *(one and one.header_offset for one in (self.outer, self.member)))

    def read(self) -> bytes:
        """The bytes of the file. UserError, which names the place, if it cannot be read."""
        if self.member is None:
            return read_bytes(self.path)
        with _opened(self.path, readable(str(self.path))) as archive:
            if self.outer is None:
                return _unpack(archive, self.member, self.place)
            place = f"{readable(str(self.path))}: {member_name(self.outer)}"
            with _opened(io.BytesIO(_unpack(archive, self.outer, place)), place) as inner:
                return _unpack(inner, self.member, self.place)


@dataclass
class Found:
    """The contents of a path: JSON files, why zips within a zip could not be read, and names of other files.

    unpacked  bytes of the zips within a zip, which together may be as large as one file
    """

    candidates: list[Candidate] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    unpacked: int = 0


def find(path: Path) -> Found:
    """Searches a path that the user gave: a folder (with all folders in it), a zip, or a JSON file."""
    found = Found()
    try:
        there = path.exists()
    except OSError as error:  # a name that no file system takes
        raise UserError(f"{str(path)[:60]}…: {error.strerror}. Give a zip, a folder or a JSON file") from error
    if path.is_dir():
        files = list(itertools.islice(path.rglob("*"), MOST_FILES + 1))
        if len(files) > MOST_FILES:
            raise UserError(f"{path}: found more than {MOST_FILES:,} files; allowed: that many. Name the file itself.")
        for file in sorted(files):
            name = readable(file.relative_to(path).as_posix())
            if is_json(name) and file.is_file():
                found.candidates.append(Candidate(file, name.split("/")[-1]))
    elif not there:
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file or folder.{nearest(path.name, names)}")
    elif not path.is_file():
        raise UserError(
            f"{path}: this is no ordinary file (a pipe or a device); allowed: a zip, a folder, a JSON file."
        )
    elif zipfile.is_zipfile(path):
        with _opened(path, str(path)) as archive:
            _list(archive, path, found)
    elif path.suffix.lower() in JSON_ENDINGS:
        candidate = Candidate(path, readable(path.name))
        if candidate.split is None:
            raise UserError(
                f"{path}: the name does not say which split this is; "
                f"allowed: exactly one of the words {', '.join(SPLITS)} in it. "
                "Rename it, for instance to data_train.json"
            )
        found.candidates.append(candidate)
    else:
        kind = "a damaged zip, download it again" if path.suffix.lower() == ".zip" else "neither"
        raise UserError(
            f"{path}: found {kind}; allowed: a zip, a folder or a JSON file. "
            "Unpack any other archive and give its folder"
        )
    return found


def _list(archive: zipfile.ZipFile, path: Path, found: Found, outer: zipfile.ZipInfo | None = None) -> None:
    """Adds the members of a zip, and the members of zips in it, but no deeper."""
    for member in archive.infolist():
        name = member_name(member)
        base = name.rstrip("/").split("/")[-1]
        if is_json(name):
            found.candidates.append(Candidate(path, base, member, outer))
        elif is_hidden(name) or member.is_dir():
            continue
        elif not name.lower().endswith(".zip"):
            found.others.append(base)
        elif outer is not None:
            place = f"{readable(str(path))}: {member_name(outer)}: {name}"
            found.unread.append(f"{place} is a zip in a zip in a zip. Unpack it and give its folder.")
        else:
            place = f"{readable(str(path))}: {name}"
            try:
                content = _unpack(archive, member, place, found.unpacked)
                found.unpacked += len(content)
                with _opened(io.BytesIO(content), place) as inner:
                    _list(inner, path, found, member)
            except UserError as error:  # perhaps nothing in it is needed
                found.unpacked += MOST_BYTES // MOST_DAMAGED
                found.unread.append(str(error))


@contextlib.contextmanager
def _opened(file: Path | io.BytesIO, place: str) -> Iterator[zipfile.ZipFile]:
    try:
        _check_directory(file)
        archive = zipfile.ZipFile(file)
    except Exception as error:  # on damaged bytes zipfile and its decompressors raise anything
        raise UserError(f"{place} is a damaged zip ({_why(error)}). Download it again.") from error
    with archive:
        # zipfile uses the last directory that it finds. In a zip that was cut off, that may be the directory of a zip
        # within it.
        starts = [member.header_offset for member in archive.infolist()]
        if starts and min(starts) > 0 and _begins_as_zip(file):
            raise UserError(f"{place} is a damaged zip (its own directory is missing). Download it again.")
        yield archive


def _check_directory(file: Path | io.BytesIO) -> None:
    """ValueError before the zip's directory is read, when that would fill the memory."""
    with contextlib.nullcontext(file) if isinstance(file, io.BytesIO) else file.open("rb") as opened:
        end = zipfile._EndRecData(opened)  # type: ignore[attr-defined]  # it knows the longer form of zips, too
    listed = end[5] if end else 0  # zipfile._ECD_SIZE
    if listed > MOST_LISTED_BYTES:
        raise ValueError(f"its directory has {listed:,} bytes; allowed: {MOST_LISTED_BYTES:,}")


def _begins_as_zip(file: Path | io.BytesIO) -> bool:
    if isinstance(file, io.BytesIO):
        return file.getbuffer()[:4] == b"PK\3\4"
    with file.open("rb") as opened:
        return opened.read(4) == b"PK\3\4"


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, place: str, before: int = 0) -> bytes:
    if member.flag_bits & ENCRYPTED:
        raise UserError(f"{place} is encrypted. Unpack the zip with its password and give the folder instead.")
    content, most = bytearray(), MOST_BYTES - before
    size = member.file_size
    try:
        if size <= most:
            with archive.open(member) as file:
                while len(content) <= most and (chunk := file.read(CHUNK_BYTES)):
                    content += chunk
            size = len(content)
    except NotImplementedError as error:
        raise UserError(
            f"{place} is packed in a way that is not known here ({_why(error)}). "
            "Unpack the zip with another program and give the folder instead."
        ) from error
    except Exception as error:  # as in `_opened`
        raise UserError(f"{place} cannot be unpacked ({_why(error)}). Download the zip again.") from error
    if size > most:
        raise UserError(f"{place}: found {size:,} bytes; allowed: {most:,}. This is not the official zip.")
    return bytes(content)


def _why(error: BaseException) -> str:
    lines = str(error).splitlines()
    return readable(lines[0]) if lines else type(error).__name__


def is_json(name: str) -> bool:
    """Whether a path in a folder or zip is a JSON file. A Mac's resource forks (`__MACOSX/`, `._x.json`) are not."""
    return name.lower().endswith(JSON_ENDINGS) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return any(part.startswith((".", "__MACOSX")) for part in parts)


def member_name(member: zipfile.ZipInfo) -> str:
    """The name as it was meant, NFC and with slashes.

    Without the UTF-8 flag zipfile reads a name as cp437. macOS writes UTF-8 without the flag, Korean Windows CP949.
    """
    name = member.filename
    if not member.flag_bits & UTF8_NAME:
        for encoding in ("utf-8", "cp949"):
            try:
                name = name.encode("cp437").decode(encoding)
                break
            except UnicodeError:
                continue
    return composed(name).replace("\\", "/")


def readable(name: str) -> str:
    """A path of this machine as text, NFC. Names that are not UTF-8 came from a zip of Korean Windows and are CP949."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raw = os.fsencode(name)
        try:
            name = raw.decode("cp949")
        except UnicodeDecodeError:
            name = raw.decode("utf-8", "backslashreplace")
    return composed(name)
