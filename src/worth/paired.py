"""Whether one answer is better than another to the same items: paired differences, tests, and items still needed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from src.worth.metrics import SIGNIFICANT, holm, mcnemar

Floats = NDArray[np.float64]
Hits = NDArray[np.bool_]
"""Which items are answered rightly."""
Keys = Sequence[str] | NDArray[np.str_]

RESAMPLES, SEED = 10_000, 0
AT_ONCE = 4_000_000
"""Numbers (resamples times dialogues or pairs, whichever are more) that are held at once in an array: 32 MB."""
PAIRS_AT_ONCE = 200
ADDED = 2.0
"""Discordant items that are added to the variance, one for each side. See `by_dialogue`."""
POWER = 0.8


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two answers to the same items.

    only_one       items that only the one gets right; only_other: that only the other does
    difference     of the accuracies, one's minus other's, a share
    interval       95 %, by dialogue
    p              of McNemar's exact test, to which items are independent draws
    p_by_dialogue  of the test that belongs to the interval: up to .05 where it leaves out 0
    design_effect  how many times as large the difference's variance is as with independent items; 1 or more
    """

    only_one: int
    only_other: int
    difference: float
    interval: tuple[float, float]
    p: float
    p_by_dialogue: float
    design_effect: float


@dataclass(frozen=True, kw_only=True)
class Pair(Difference):
    """A difference between two answers by name.

    corrected_p           after Holm for all pairs
    corrected_by_dialogue the same of p_by_dialogue
    more_items            where the two are not told apart: how many items more would be needed, if that can be said
    """

    one: str
    other: str
    corrected_p: float
    corrected_by_dialogue: float
    more_items: int | None

    @property
    def better(self) -> str | None:
        """The one that both tests call better, None where that cannot be told. Where items of one dialogue go together,
        McNemar's test alone would call too many equal ones different.
        """
        if max(self.corrected_p, self.corrected_by_dialogue) > SIGNIFICANT:
            return None
        return self.one if self.only_one > self.only_other else self.other

    @property
    def only_by_items(self) -> bool:
        """Whether McNemar's test alone calls one better."""
        return self.better is None and self.corrected_p <= SIGNIFICANT


def compare_pairs(right: Mapping[str, Sequence[bool]], keys: Keys, against: str | None = None) -> list[Pair]:
    """Every two of several answers, or each with `against`; `right` says for each answer which items it gets right,
    all in the same order, and `keys` of which dialogue each item is. The more accurate of two comes first.

    p is corrected for these pairs. Picking the best of several on the same items amounts to looking at all pairs.
    """
    assert len({len(keys), *(len(hits) for hits in right.values())}) == 1, "answers to the same items"
    ranked = sorted(right, key=lambda name: -sum(right[name]))  # stable: equal ones as they were given
    names = [two for two in combinations(ranked, 2) if against is None or against in two]
    hits = {name: np.array(right[name], dtype=bool) for name in ranked}
    found = differences([hits[one] for one, _ in names], [hits[other] for _, other in names], keys)
    corrected = corrected_ps(found)
    undecided = [max(two) > SIGNIFICANT for two in corrected]
    # What Holm asks of the first of the pairs that are left when those told apart are out.
    level = SIGNIFICANT / max(1, sum(undecided))
    return [
        Pair(
            **vars(one),
            one=names[place][0],
            other=names[place][1],
            corrected_p=corrected[place][0],
            corrected_by_dialogue=corrected[place][1],
            more_items=more_items(one, len(keys), len(set(keys)), level) if undecided[place] else None,
        )
        for place, one in enumerate(found)
    ]


def corrected_ps(found: Sequence[Difference]) -> list[tuple[float, float]]:
    """(p, p_by_dialogue) of each, corrected after Holm for all of them."""
    both = holm([one.p for one in found]), holm([one.p_by_dialogue for one in found])
    return list(zip(*both, strict=True))


def differences(ones: Sequence[Hits], others: Sequence[Hits], keys: Keys) -> list[Difference]:
    """Of each two answers, `ones[i]` and `others[i]`. `keys` has the dialogue of each item."""
    if not ones:
        return []
    signed = [one.astype(float) - other.astype(float) for one, other in zip(ones, others, strict=True)]
    sums, sizes = dialogue_sums(signed, keys)
    bootstrapped = by_dialogue(sums, sizes)
    found = []
    for one, other, own, (interval, p) in zip(ones, others, sums, bootstrapped, strict=True):
        gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
        found.append(
            Difference(
                only_one=gained,
                only_other=lost,
                difference=(gained - lost) / len(one),
                interval=interval,
                p=mcnemar(gained, lost),
                p_by_dialogue=p,
                design_effect=_design_effect(own, sizes, gained + lost),
            )
        )
    return found


def difference(one: Hits, other: Hits, keys: Keys) -> Difference:
    (found,) = differences([one], [other], keys)
    return found


def dialogue_sums(values: Sequence[Floats], keys: Keys) -> tuple[Floats, Floats]:
    """(sums of each of `values` over a dialogue's items, its number of items), in the order of the dialogues' keys, so
    that the order of the items changes nothing.
    """
    _, dialogue = np.unique(np.asarray(keys), return_inverse=True)
    return np.array([np.bincount(dialogue, weights=own) for own in values]), np.bincount(dialogue).astype(float)


def by_dialogue(sums: Floats, sizes: Floats) -> list[tuple[tuple[float, float], float]]:
    """(95 % interval of a difference of accuracies, p of the test that it is 0) of each pair.

    sums   (pairs, dialogues): how many items of a dialogue the one gets right more than the other
    sizes  (dialogues,): its items

    Dialogues are drawn with replacement, since items of one dialogue are no independent draws. The bootstrap is
    studentised and symmetric (Hall 1988, JRSS B 50): its quantile is that of |d* − d| / se*, with the standard error
    of a ratio of sums over clusters. The percentiles of d* and BCa's are too narrow for 50 dialogues. Two changes are
    for few discordant items, of which draws know too little: ADDED to the variance are two such items, one for each
    side, in dialogues of their own (Agresti and Min 2005, Statistics in Medicine 24, add one); and the quantile is
    never below Student's t. Without discordant items the interval is then nearly ±3/items, the rule of three. From a
    single dialogue nothing is known of others: −1 to 1, and p 1.
    """
    from scipy.stats import t

    dialogues, items = len(sizes), sizes.sum()
    if dialogues == 1:
        return [((-1.0, 1.0), 1.0)] * len(sums)
    if len(sums) > PAIRS_AT_ONCE:
        return by_dialogue(sums[:PAIRS_AT_ONCE], sizes) + by_dialogue(sums[PAIRS_AT_ONCE:], sizes)
    small = dialogues / (dialogues - 1)
    seen = sums.sum(axis=1) / items
    errors = np.sqrt(small * ((sums - seen[:, None] * sizes) ** 2).sum(axis=1) + ADDED) / items

    rng, studentised = np.random.default_rng(SEED), []
    at_once = max(1, AT_ONCE // max(dialogues, len(sums)))
    for start in range(0, RESAMPLES, at_once):
        count = min(at_once, RESAMPLES - start)
        times = rng.multinomial(dialogues, np.full(dialogues, 1 / dialogues), size=count).astype(float)
        drawn = (times @ sizes)[:, None]
        found = (times @ sums.T) / drawn
        squares = times @ (sums**2).T - 2 * found * (times @ (sums * sizes).T) + found**2 * (times @ sizes**2)[:, None]
        own_errors = np.sqrt(np.maximum(small * squares, 0) + ADDED) / drawn
        studentised.append(np.abs(found - seen) / own_errors)
    quantiles = np.quantile(np.concatenate(studentised), 0.95, axis=0)
    # Student's t, made wider where the draws are: so p is up to .05 where the interval leaves out 0, and may be smaller
    # than one in RESAMPLES.
    wider = np.maximum(1, quantiles / t.ppf(0.975, dialogues - 1))
    reach = wider * t.ppf(0.975, dialogues - 1) * errors
    p = 2 * t.sf(np.abs(seen) / errors / wider, dialogues - 1)
    low, high = np.maximum(-1, seen - reach).tolist(), np.minimum(1, seen + reach).tolist()
    return list(zip(zip(low, high, strict=True), p.tolist(), strict=True))


def items_needed(discordant: float, difference: float, level: float, power: float = POWER) -> float:
    """Items with which McNemar's test at the two-sided `level` has this power, where two answers differ on the share
    `discordant` of the items and their accuracies by `difference` (not 0), both as shares of all items; items are
    independent. Connor 1987 (Biometrics 43), the formula with variances under both hypotheses; and so many that the
    exact p can come down to the level at all, for which the discordant ones, all for one side, have to suffice.
    """
    normal = NormalDist()
    at_zero = normal.inv_cdf(1 - level / 2) * math.sqrt(discordant)
    at_difference = normal.inv_cdf(power) * math.sqrt(max(0.0, discordant - difference**2))
    least = math.ceil(1 - math.log2(level)) / discordant  # p of k to 0 is 2^(1 - k)
    return max(least, ((at_zero + at_difference) / difference) ** 2)


def more_items(found: Difference, items: int, dialogues: int, level: float) -> int | None:
    """Items that would have to be added to `items`, of other dialogues like these, to tell the two apart with `POWER`
    if they differ as they do here; a dialogue's at least. None where they do not differ, and where there is a single
    dialogue, which does not show how alike its items are.
    """
    if found.only_one == found.only_other or dialogues == 1:
        return None
    discordant = (found.only_one + found.only_other) / items
    needed = items_needed(discordant, found.difference, level) * found.design_effect
    return max(math.ceil(items / dialogues), math.ceil(needed) - items)


def _design_effect(sums: Floats, sizes: Floats, discordant: int) -> float:
    """Kish's design effect of a difference: its variance by dialogue over that of independent items, at least 1."""
    dialogues, items = len(sizes), sizes.sum()
    seen = sums.sum() / items
    independent = discordant - items * seen**2
    if dialogues == 1 or independent <= 0:
        return 1.0
    clustered = dialogues / (dialogues - 1) * ((sums - seen * sizes) ** 2).sum()
    return max(1.0, float(clustered / independent))
