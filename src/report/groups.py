"""Which items are missed: by how many runs, and in which groups of items."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from src import task
from src.data import Item
from src.report.findings import Findings
from src.report.item_data import flips, missed
from src.worth.resampling import mean_interval

MISSED_BY = ("all", "most", "some", "one", "none")
MARGINS = (0.0, 0.5, 1.0, 2.0, 4.0)
"""The least margin (nats) of each group."""
TARGETS = ("0", "1", "2", "3+")
LENGTHS = 4
"""Groups by length of the dialogue, about equally large."""


@dataclass(frozen=True)
class Group:
    """Items that have something in common.

    mean       share of right answers over items and runs, votes left out, and its 95 % interval by dialogue
    missed_by  for each of `MISSED_BY` how many of the items are missed by so many runs
    """

    name: str
    items: int
    mean: float
    interval: tuple[float, float]
    missed_by: tuple[int, ...]


def missed_by(count: int, runs: int) -> int:
    """The place in `MISSED_BY` of an item that `count` of the `runs` miss. Most: more than half, and not all."""
    if count == runs:
        return 0
    if count == 0:
        return 4
    return 1 if 2 * count > runs else 3 if count == 1 else 2


def error_groups(found: Findings) -> dict[str, list[Group]]:
    """Key of the words that name a division of the items → its groups, those without items left out. The items have
    labels, and there is a run at least.
    """
    wrong, runs = missed(found), len(found.runs)
    assert wrong is not None and runs

    def grouped(labels: Sequence[str], of: Sequence[int]) -> list[Group]:
        groups = []
        for place, label in enumerate(labels):
            places = [item for item, own in enumerate(of) if own == place]
            if places:
                groups.append(_group(label, [found.items[one] for one in places], [wrong[one] for one in places], runs))
        return groups

    categories = task.current().categories
    divisions = {
        "group_all": grouped([""], [0] * len(found.items)),
        "by_category": grouped(categories, [categories.index(item.category) for item in found.items]),
        "by_turns": grouped(*by_length(found.items)),
        "by_targets": grouped(TARGETS, [min(len(item.targets), 3) for item in found.items]),
    }
    if found.scores:
        margins = [median(scores[item.id].margin for scores in found.scores.values()) for item in found.items]
        names = [f"{low:g}–{high:g}" for low, high in pairwise(MARGINS)] + [f"{MARGINS[-1]:g}+"]
        divisions["by_margin"] = grouped(names, [sum(margin >= low for low in MARGINS) - 1 for margin in margins])
    several = [scores for scores in found.scores.values() if len(scores[found.items[0].id].orders) > 1]
    if several:
        changing = [sum(flips(scores[item.id]) > 0 for scores in several) for item in found.items]
        divisions["by_flips"] = grouped(("0", "1", "2", "3+"), [min(count, 3) for count in changing])
    return divisions


def by_length(items: Sequence[Item]) -> tuple[list[str], list[int]]:
    """Names of groups by the number of utterances, about equally large, and the group of each item."""
    lengths = [len(item.dialogue) for item in items]
    ends = sorted({int(end) for end in np.quantile(lengths, np.linspace(0, 1, LENGTHS + 1)[1:], method="lower")})
    starts = [min(lengths), *(end + 1 for end in ends[:-1])]
    names = [f"{start}–{end}" if start < end else f"{end}" for start, end in zip(starts, ends, strict=True)]
    return names, [sum(length > end for end in ends) for length in lengths]


def _group(name: str, items: Sequence[Item], wrong: Sequence[int], runs: int) -> Group:
    right = 1 - np.array(wrong) / runs
    found = [missed_by(count, runs) for count in wrong]
    counts = tuple(found.count(place) for place in range(len(MISSED_BY)))
    interval = mean_interval(right, [item.dialogue_key for item in items])
    return Group(name, len(items), float(right.mean()), interval, counts)
