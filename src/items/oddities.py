"""Oddities: irregularities of a data file that do not keep items from being answered. They are counted and reported.

`KINDS` names every kind. The table in `resource/data/README.md` says how each is handled, what is refused, and what
passes without a note.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

KINDS = {
    "encoding": "not saved as UTF-8; read as what it is, written as UTF-8",
    "one-object-a-line": "items one after another instead of a list; read as a list",
    "columns": "a table saved by columns instead of a list; read as a list",
    "file-twice": "the same items in more than one file; the first is taken",
    "item-twice": "the whole item appears again; it is kept once",
    "key-twice": "a key appears twice in one object with the same value; it counts once",
    "unknown-key": "an unknown key; kept, not read",
    "id-number": "the id is a number; its text is the id",
    "number": "a number in place of a text; read as its text",
    "decomposed": "letters in pieces, as a Mac stores them (NFD); put together for the model",
    "half-character": "half a character (a lone surrogate); the model sees \ufffd",
    "speaker-spelling": "a speaker is not written as a whole number; read as that number",
    "speaker-more": "a speaker beyond 1 and 2; kept",
    "utterance-blank": "an utterance is blank; kept",
    "utterance-null": "an utterance is null; read as blank",
    "utterance-id-missing": "an utterance has no utterance_id; it is not a target, so none is needed",
    "utterance-id-twice": "two utterances have the same utterance_id; neither is a target, so it does not matter",
    "target-alone": "reference_id is not a list; read as a list of one",
    "target-twice": "reference_id names a target utterance more than once; it counts once",
    "target-spelling": "reference_id spells an utterance_id differently; read as the same one",
    "target-blank": "a target utterance is blank; kept",
    "category-spelling": "the category has blanks, unseen characters or capitals; read as the one that is meant",
    "option-blanks": "an option has blanks around it; removed for the model",
    "options-equal": "two wrong options are equal; the right one differs, so it does not matter",
    "label-spelling": "output has blanks, unseen characters or capitals; read as the one that is meant",
    "id-in-two-splits": "the id belongs to another item in another split; splits are never mixed",
    "item-in-two-splits": "the same item is in another split too; an accuracy on it says little",
}
"""Kind → the oddity and how it is handled, as printed after the count."""

FILE_KINDS = ("encoding", "one-object-a-line", "columns", "file-twice")
"""Kinds that are counted in files; all others are counted in items."""


@dataclass(frozen=True)
class Oddity:
    """One thing that is odd. `where`: file and item, as in problems; `found`: the value, or where it stands."""

    kind: str
    where: str
    found: str

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind


@dataclass
class Findings:
    """Findings in one item: `faults` make it unusable; oddities in `odd` (kind, what was found) do not."""

    faults: list[str] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)


def counts(oddities: Iterable[Oddity]) -> dict[str, int]:
    """Kind → how many items (or files) have it, in the order of `KINDS`. An item with two of a kind counts once."""
    places: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for one in oddities:
        places[one.kind].add(one.where)
    return {kind: len(found) for kind, found in places.items() if found}


def oddity_lines(oddities: Sequence[Oddity]) -> list[str]:
    """A line for each kind: its name, how many items have it, what is done, and the first of them."""
    lines = []
    for kind, count in counts(oddities).items():
        first = next(one for one in oddities if one.kind == kind)
        unit = "file" if kind in FILE_KINDS else "item"
        shown = f"{first.where}: {first.found}" if first.found else first.where
        lines.append(f"{kind}: {count} {unit}{'s' if count > 1 else ''}: {KINDS[kind]} (first: {shown})")
    return lines
