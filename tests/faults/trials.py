"""What a trial is, and how it failed."""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterable

PROBLEMS = ("mismatch", "traceback", "silent", "message", "leftover", "hang")
"""Kinds of failure.

mismatch    in the end there is another result than without the fault, or the command ends otherwise than it may
traceback   an exception that is not the user's message
silent      another result, or old and new side by side, with exit code 0 and without a word
message     a refusal that does not say what, where, or what to do
leftover    temporary files stay
hang        a command did not end
"""


@dataclasses.dataclass(frozen=True)
class Problem:
    kind: str
    words: str


@dataclasses.dataclass(frozen=True)
class Trial:
    """One fault. kind, scenario: its row in the table; key: what is needed to repeat it."""

    kind: str
    scenario: str
    key: str

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.scenario}:{self.key}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """problems: none when all is well. untried: the fault never happened, so that the trial does not count."""

    trial: Trial
    problems: tuple[Problem, ...] = ()
    untried: str = ""


Check = Callable[[Trial], Outcome]


def spread(groups: dict[str, list[str]], count: int) -> list[str]:
    """`count` of all entries: one of each group in turn, so that none is left out. The same ones each time."""
    names = sorted(groups)
    # Multiples of the golden ratio are spread evenly however few of them are taken.
    order = sorted(range(len(names)), key=lambda place: place * 0.6180339887498949 % 1)
    shuffled = [random.Random(names[place]).sample(groups[names[place]], len(groups[names[place]])) for place in order]
    turns = itertools.zip_longest(*shuffled)
    return [entry for turn in turns for entry in turn if entry is not None][:count]


def shares(weights: dict[str, int], count: int) -> dict[str, int]:
    """`count` shared out by the weights; what rounding leaves goes to the first."""
    total = sum(weights.values())
    found = {name: count * weight // total for name, weight in weights.items()}
    first = next(iter(found))
    return {**found, first: found[first] + count - sum(found.values())}


def joined(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    return tuple(dict.fromkeys(problems))
