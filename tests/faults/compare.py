"""What a results folder holds, in a form that two houses can be compared by, and what a command has said."""

import contextlib
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from tests.faults.world import Done

VOLATILE = ("seconds", "peak_memory_bytes", "resumed_from", "commit")
"""Keys of records that differ from one sound run to the next. So do keys that end in `_at` (points in time)."""
UNREAD = ("log.txt", "README.md", ".lock", ".digests.json", "training.csv", "training.png")
"""Files whose bytes may differ: nothing reads them back, or they name processes and times. A run that was killed after
its record was written has no picture.
"""
LEFT = re.compile(r"(^|/)\.[^/]*\.tmp$|(^|/)\.tmp[^/]*$|\.(part|old|tmp)(/|$)")
"""Paths of files that a command makes on the way, and that must be gone in the end."""
ACTION = re.compile(r"python -m|delete|give|free|room|train|score|wait|restore|again|--\w+", re.IGNORECASE)
"""A message that says what to do has one of these."""
MASKED = re.compile(r"house\d+|\b\d+\.\d s\b|\.\d+\.tmp|checkpoint-\d+|\d+:\d\d:\d\d")


def fingerprint(results: Path) -> dict[str, str]:
    """Path in `results` → digest of what must be equal. Leftovers and files in `UNREAD` are not in it."""
    return {name: _digest(path) for name, path in _files(results) if path.name not in UNREAD and not LEFT.search(name)}


def leftovers(results: Path) -> list[str]:
    return [name for name, _ in _files(results) if LEFT.search(name)]


def _files(results: Path) -> list[tuple[str, Path]]:
    found = [path for path in sorted(results.rglob("*")) if path.is_file()]
    return [(str(path.relative_to(results)), path) for path in found]


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.name == "record.json":
        with contextlib.suppress(ValueError):
            found = json.loads(data)
            found.pop("sha256", None)
            data = json.dumps(stable(found), sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def stable(value: Any) -> Any:
    """JSON without what differs from one sound run to the next."""
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if key not in VOLATILE and not key.endswith("_at")}
        return {key: stable(inner) for key, inner in kept.items()}
    return [stable(inner) for inner in value] if isinstance(value, list) else value


def difference(found: dict[str, str], expected: dict[str, str]) -> str:
    """In words; empty when there is none."""
    parts = {
        "missing": sorted(expected.keys() - found.keys()),
        "more": sorted(found.keys() - expected.keys()),
        "other": sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name]),
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)


@dataclasses.dataclass(frozen=True)
class Said:
    """A command's exit code and its lines, without numbers that always differ."""

    code: int | None
    lines: tuple[str, ...]

    @classmethod
    def by(cls, done: Done) -> "Said":
        lines = [MASKED.sub("#", line.strip()) for line in done.text.splitlines()]
        return cls(done.code, tuple(line for line in lines if line and "mtime may not be" not in line))


def error_line(done: Done) -> str | None:
    """The message of a command that refuses properly: exit code 2 and one line (or block) that begins with `error:`."""
    found = re.findall(r"^(?:\S+ \S+ \S+: )?error: .*", done.err, re.MULTILINE)
    whole = done.err[done.err.find("error: ") :].strip()
    return whole if done.code == 2 and len(found) == 1 and "Traceback" not in done.err else None
