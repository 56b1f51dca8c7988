"""Accuracy with its interval and parts, tests of two answers, and what chance reaches."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

from src import task
from src.data import Item

SIGNIFICANT = 0.05
"""The corrected p up to which a test tells one answer from another."""


class Share(NamedTuple):
    """`correct` of `total` (at least one) items; `accuracy` and the 95 % Wilson `interval` are shares, 0..1."""

    correct: int
    total: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Evaluation:
    """Answers compared with labels.

    `per_category` and `per_label` have an entry for each category and label (an option's index) that occurs.
    `category_balanced` is the mean accuracy of these categories: it does not move with their mix, as `accuracy` does.
    `confusion[label][answer]` counts items. `missed`: ids, in the order of the items.
    """

    items: int
    correct: int
    accuracy: float
    interval: tuple[float, float]
    per_category: dict[str, Share]
    category_balanced: float
    per_label: dict[int, Share]
    confusion: tuple[tuple[int, ...], ...]
    missed: list[str]

    def as_json(self) -> dict[str, Any]:
        """All fields, shares as objects and labels by the names that the files have for them."""
        names = task.current().options
        return asdict(self) | {
            "per_category": {category: share._asdict() for category, share in self.per_category.items()},
            "per_label": {names[label]: share._asdict() for label, share in self.per_label.items()},
        }


def evaluate(items: Sequence[Item], answers: Sequence[int]) -> Evaluation:
    """`items` (at least one, each with a label) against `answers` (options' indices, in the same order)."""
    assert items and len(items) == len(answers), (len(items), len(answers))
    labels = [item.label for item in items if item.label is not None]
    assert len(labels) == len(items), "accuracy needs a label for every item"
    right = [label == answer for label, answer in zip(labels, answers, strict=True)]
    per_category = {
        category: _share([hit for item, hit in zip(items, right, strict=True) if item.category == category])
        for category in task.current().categories
        if any(item.category == category for item in items)
    }
    pairs, options = list(zip(labels, answers, strict=True)), range(len(task.current().options))
    total = _share(right)
    return Evaluation(
        items=total.total,
        correct=total.correct,
        accuracy=total.accuracy,
        interval=total.interval,
        per_category=per_category,
        category_balanced=sum(share.accuracy for share in per_category.values()) / len(per_category),
        per_label={
            label: _share([hit for other, hit in zip(labels, right, strict=True) if other == label])
            for label in sorted(set(labels))
        },
        confusion=tuple(tuple(pairs.count((label, answer)) for answer in options) for label in options),
        missed=[item.id for item, hit in zip(items, right, strict=True) if not hit],
    )


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927, no continuity correction); never beyond 0..1."""
    # scipy.stats has it, too, and takes a second to import, in every command that shows an accuracy.
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, shrunk = correct / total, 1 + z * z / total
    centre = (share + z * z / (2 * total)) / shrunk
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / shrunk
    return max(0.0, centre - half) if correct else 0.0, min(1.0, centre + half) if correct < total else 1.0


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p of McNemar's test: of the items that only one of two answers gets right, `gained` are one's
    and `lost` the other's. 1.0 without any.
    """
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def holm(found: Sequence[float]) -> list[float]:
    """The p values corrected for their number (Holm 1979), in the given order. If all those below .05 are taken as
    differences, at most one in twenty such families of tests has a wrong one.
    """
    corrected = [0.0] * len(found)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(found)), key=lambda place: found[place])):
        highest = max(highest, min(1.0, (len(found) - rank) * found[place]))
        corrected[place] = highest
    return corrected


def chance_range(total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The accuracies between which guessing among the options ends on `total` items, with this confidence."""
    from scipy.stats import binom

    low, high = binom.interval(confidence, total, 1 / len(task.current().options))
    return float(low) / total, float(high) / total


def _share(hits: Sequence[bool]) -> Share:
    return Share(sum(hits), len(hits), sum(hits) / len(hits), wilson(sum(hits), len(hits)))
