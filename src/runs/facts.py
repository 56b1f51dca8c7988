"""The parts of a record: what it says of the prompt, the chat template, a data file, the task, and a scored split."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints

from src import task
from src.data import Item, sha256
from src.files.digests import Digest, Digests
from src.files.kinds import fits
from src.files.reading import shortened


@dataclass(frozen=True, kw_only=True)
class Part:
    """An object in a record; the fields are its keys.

    stored  what the file held, empty for a new part. Unchanged values are written back exactly as they were.
    """

    stored: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Keys that a new part has only where they hold something; the others may be null."""
    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Key → what older versions called it."""
    FIRST: ClassVar[tuple[str, ...]] = ()
    """Keys that are written before the others."""

    @classmethod
    def parse(cls, stored: Any, where: str) -> Self:
        """ValueError, which begins with `where`, when a value is of another kind than is written."""
        if not isinstance(stored, dict):
            raise ValueError(f"{where} is no object")
        names = {key: old if (old := cls.RENAMED.get(key, key)) in stored else key for key in kinds_of(cls)}
        values = {
            key: stored[names[key]]
            for key, kinds in kinds_of(cls).items()
            if is_kind(stored, names[key], kinds, f"{where}: ")
        }
        return cls(**values, stored=stored)

    def as_json(self) -> dict[str, Any]:
        now = {key: getattr(self, key) for key in kinds_of(type(self))}
        if not self.stored:
            return {key: value for key, value in now.items() if value is not None or key not in self.OPTIONAL}
        before = self.parse(self.stored, "")
        return {**self.stored, **{key: value for key, value in now.items() if value != getattr(before, key)}}

    def unknown(self) -> list[str]:
        """Keys of the file that this version does not know."""
        known = {*kinds_of(type(self)), *self.RENAMED.values()}
        return [key for key in self.stored if key not in known]


def kinds_of(part: type[Any]) -> Mapping[str, Any]:
    """Key → the type of its values, as `fits` takes it."""
    return _kinds_of(part)  # type: ignore[arg-type]  # a class has a hash


@functools.cache  # found anew each time, this takes most of the time of reading a record
def _kinds_of(part: type[Any]) -> Mapping[str, Any]:
    names = [one.name for one in fields(part) if one.name != "stored"]
    hints = get_type_hints(part)
    first = getattr(part, "FIRST", ())
    return {name: hints[name] for name in [*first, *(name for name in names if name not in first)]}


@dataclass(frozen=True, kw_only=True)
class PromptFacts(Part):
    """examples_sha256: of the training split that the prompt's examples are from."""

    name: str = ""
    sha256: str = ""
    text: str = ""
    examples_sha256: str | None = None

    OPTIONAL: ClassVar = ("examples_sha256",)


@dataclass(frozen=True, kw_only=True)
class TemplateFacts(Part):
    """How prompts are rendered with the chat template; older versions kept the first three."""

    source: str | None = None
    system_turn: str = ""
    sha256: str = ""
    date: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    text_sha256: str | None = None
    ids_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataFile(Part):
    path: str | None = None
    sha256: str | None = None
    items: int | None = None

    @classmethod
    def of(cls, path: Path, items: Sequence[Item]) -> "DataFile":
        return cls(path=str(path), sha256=sha256(path), items=len(items))


@dataclass(frozen=True, kw_only=True)
class TaskFacts(Part):
    name: str = ""
    sha256: str = ""

    @classmethod
    def current(cls) -> "TaskFacts":
        return cls(name=task.current().name, sha256=task.current().sha256)


@dataclass(frozen=True, kw_only=True)
class Result(Part):
    """The result on a split. `accuracy`, `correct` and `interval` are None where not every item has a label.

    data, data_sha256  the file of the items, which need not be the one in the record's `data`
    rows               how the model was called: kind of the rows, what the guard found, what kept prefixes from being
                       shared
    files              name → size and sha256 of the scores, the predictions and what else was written with them
    """

    items: int = 0
    orders: int | None = None
    seconds: float | None = None
    data: str | None = None
    data_sha256: str | None = None
    rows: Mapping[str, Any] | None = None
    accuracy: float | None = None
    correct: int | None = None
    interval: Sequence[float] | None = None
    reasoning: Mapping[str, Any] | None = None
    files: Mapping[str, Any] | None = None

    OPTIONAL: ClassVar[tuple[str, ...]] = ("reasoning", "files")

    @property
    def noted_files(self) -> Digests:
        """Name of a file of scores or predictions → its digest; {} in older records."""
        return parse_digests(self.files, "files")

    @classmethod
    def parse(cls, stored: Any, where: str) -> Self:
        found = super().parse(stored, where)
        parse_digests(found.files, f"{where}: files")
        if not 0 <= (found.correct or 0) <= (found.items or math.inf):
            raise ValueError(f"{where}: {found.correct} of {found.items} items are right")
        if found.items < 0 or (found.orders or 1) < 1 or not 0 <= (found.accuracy or 0) <= 1:
            raise ValueError(f"{where}: found items {found.items}, orders {found.orders}, accuracy {found.accuracy}")
        if found.interval is not None and len(found.interval) != 2:
            raise ValueError(f"{where}: interval is {shortened(repr(found.interval), 200)}")
        return found


JOINED = {
    "dev": "Out of fold: each item has the scores of the fold run that was not trained on its dialogue.",
    "test": "The mean of the fold runs' log-probabilities, for each order of the options.",
}
"""Split → how the scores of fold runs were joined, where that is a vote's rule."""


@dataclass(frozen=True, kw_only=True)
class VoteResult(Result):
    """The result of a vote on a split, with its rule and voters.

    fitted     for rules other than the hard vote: the rule's name, what was fitted, and on what
    unanimous  share of the items that all voters answer alike
    """

    rule: str | None = None
    fitted: Mapping[str, Any] | None = None
    voters: Sequence[Mapping[str, Any]] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    unanimous: float | None = None
    pairs: Sequence[Mapping[str, Any]] = ()
    decided_by: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] | None = None
    commit: str | None = None

    OPTIONAL: ClassVar = ("reasoning", "rows", "seconds", "files", "fitted")
    RENAMED: ClassVar = {"commit": "git_commit"}
    FIRST: ClassVar = ("accuracy", "correct", "interval", "items", "data", "data_sha256", "rule")


def is_kind(stored: Mapping[str, Any], key: str, kinds: Any, where: str = "") -> bool:
    """Whether there is a value. ValueError when it is of another kind than the type `kinds`."""
    value = stored.get(key)
    if value is not None and not fits(value, kinds):
        raise ValueError(f"{where}{key} is {shortened(repr(value), 200)}")
    return value is not None


def parse_digests(stored: Mapping[str, Any] | None, where: str) -> Digests:
    """ValueError, which begins with `where`, for anything but name → size and sha256."""
    return {name: Digest.parse(one, f"{where}: {name}") for name, one in (stored or {}).items()}


def digests_json(found: Digests) -> dict[str, Any]:
    return {name: digest.as_json() for name, digest in found.items()}


def parse_result(stored: Any, where: str) -> Result:
    kind = VoteResult if isinstance(stored, dict) and "voters" in stored else Result
    return kind.parse(stored, where)
