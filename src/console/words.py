"""Numbers and lists in a sentence."""

from collections.abc import Sequence

IDS_SHOWN = 5


def counted(count: int, noun: str) -> str:
    """`1 step`, `2 steps`: for nouns whose plural ends with s."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def some(ids: Sequence[str]) -> str:
    """The first few of `ids`, with … where there are more."""
    return ", ".join(ids[:IDS_SHOWN]) + (" …" if len(ids) > IDS_SHOWN else "")
