"""Runs of one recipe under several seeds: their mean and spread, and the difference between two recipes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev

import numpy as np

from src.worth.metrics import SIGNIFICANT, holm
from src.worth.paired import ADDED, Floats, Keys, dialogue_sums


@dataclass(frozen=True)
class Spread:
    """Accuracies of runs that differ in their seed alone. sd: with n − 1, None for a single run."""

    seeds: int
    mean: float
    sd: float | None
    least: float
    most: float


def spread(accuracies: Sequence[float]) -> Spread:
    sd = stdev(accuracies) if len(accuracies) > 1 else None
    return Spread(len(accuracies), fmean(accuracies), sd, min(accuracies), max(accuracies))


@dataclass(frozen=True, kw_only=True)
class RecipePair:
    """Two recipes, each by the mean accuracy of its runs. Where one has a single run, all but the first three are None,
    since nothing is known of the luck of its seed.

    difference   one's mean minus other's, a share
    interval     95 %, for other dialogues and other seeds than these
    seeds_share  of the difference's variance, the share that is due to the seeds; the rest is due to the dialogues
    corrected_p  after Holm for all pairs that have a p
    """

    one: str
    other: str
    difference: float
    interval: tuple[float, float] | None = None
    seeds_share: float | None = None
    p: float | None = None
    corrected_p: float | None = None

    @property
    def better(self) -> str | None:
        if self.corrected_p is None or self.corrected_p > SIGNIFICANT:
            return None
        return self.one if self.difference > 0 else self.other


def compare_recipes(right: Mapping[str, Floats], keys: Keys) -> list[RecipePair]:
    """Every two of several recipes; `right` says for each which items its runs get right, (runs, items) of 0 and 1, all
    in the same order of items, and `keys` of which dialogue each item is. The more accurate of two comes first.
    """
    ranked = sorted(right, key=lambda name: -right[name].mean())  # stable: equal ones as they were given
    names = list(combinations(ranked, 2))
    found = [_interval(right[one], right[other], keys) for one, other in names]
    corrected = iter(holm([three[2] for three in found if three]))
    pairs = []
    for (one, other), three in zip(names, found, strict=True):
        difference = float(right[one].mean() - right[other].mean())
        if three is None:
            pairs.append(RecipePair(one=one, other=other, difference=difference))
            continue
        interval, share, p = three
        pairs.append(
            RecipePair(
                one=one,
                other=other,
                difference=difference,
                interval=interval,
                seeds_share=share,
                p=p,
                corrected_p=next(corrected),
            )
        )
    return pairs


def _interval(one: Floats, other: Floats, keys: Keys) -> tuple[tuple[float, float], float, float] | None:
    """(interval, the seeds' share of the variance, p); None where a recipe has one run.

    There are too few seeds to draw them with replacement. So the variance of the difference of means is a sum: of the
    differences by dialogue (a ratio of sums over clusters, with the discordant items that `by_dialogue` adds), and of
    each recipe's accuracies over its runs. Student's t with the degrees of freedom of Welch and Satterthwaite takes
    into account how few each part rests on. Since what a seed changes in single items is in both parts, the interval
    is rather too wide than too narrow. From a single dialogue nothing is known of others: −1 to 1, and p 1.
    """
    from scipy.stats import t

    if min(len(one), len(other)) < 2:
        return None
    (sums,), sizes = dialogue_sums([one.mean(axis=0) - other.mean(axis=0)], keys)
    dialogues, items = len(sizes), sizes.sum()
    if dialogues == 1:
        return (-1.0, 1.0), 0.0, 1.0
    difference = sums.sum() / items
    squares = dialogues / (dialogues - 1) * ((sums - difference * sizes) ** 2).sum()
    parts = [((squares + ADDED) / items**2, dialogues - 1)]
    parts += [(runs.mean(axis=1).var(ddof=1) / len(runs), len(runs) - 1) for runs in (one, other)]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / own for part, own in parts)
    error = np.sqrt(variance)
    reach = t.ppf(0.975, freedom) * error
    interval = max(-1.0, float(difference - reach)), min(1.0, float(difference + reach))
    return interval, float(1 - parts[0][0] / variance), float(2 * t.sf(abs(difference) / error, freedom))
