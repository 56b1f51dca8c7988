"""Numbers, sizes and lists in a sentence."""

from collections.abc import Sequence

IDS_SHOWN = 5


def counted(count: int, noun: str) -> str:
    """`1 step`, `2 steps`: for nouns whose plural ends with s."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def some(ids: Sequence[str]) -> str:
    """The first few of `ids`, with … where there are more."""
    return ", ".join(ids[:IDS_SHOWN]) + (" …" if len(ids) > IDS_SHOWN else "")


def size_text(size: float) -> str:
    """Bytes in the unit that shows them: `480 bytes`, `22.4 MB`, `1.3 GB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return counted(max(0, int(size)), "byte")


def p_text(p: float) -> str:
    """The p of a test with three digits."""
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def points_range(interval: tuple[float, float]) -> str:
    """An interval of shares in percentage points: `-1.9 to +14.0`."""
    return " to ".join(f"{100 * end:+.1f}" for end in interval)
