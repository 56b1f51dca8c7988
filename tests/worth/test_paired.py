"""Paired differences: known cases, simulated coverage, level and power."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, t

from src.worth import paired
from src.worth.metrics import SIGNIFICANT, holm, mcnemar, wilson
from src.worth.paired import by_dialogue, compare_pairs, difference, differences, items_needed, more_items

OFFICIAL_DEV = np.array([1] * 27 + [4] + [5] * 24)
"""Items of each dialogue of the official dev split, 151 in all; most of the next are single, as in a mixed corpus."""
MIXED = np.array([1] * 67 + [2] * 22 + [3] * 7 + [4] * 2 + [5] * 2)
SINGLE = np.ones(150, dtype=int)


def alone(count: int) -> list[str]:
    """Each item a dialogue of its own."""
    return [f"{number:05}" for number in range(count)]


# Pairs


def test_pairs_are_told_apart_by_the_items_that_one_alone_gets_right() -> None:
    """Intervals that overlap: 60 to 50 of 100 items, each with a 95 % interval of some ten points to either side."""
    right = {
        "worse": [True] * 50 + [False] * 50,
        "better": [True] * 60 + [False] * 40,
        "other": [False] * 45 + [True] * 55,
    }
    assert wilson(50, 100)[1] > wilson(60, 100)[0]
    pairs = compare_pairs(right, alone(100))
    assert [(pair.one, pair.other, pair.only_one, pair.only_other) for pair in pairs] == [
        ("better", "other", 45, 40),
        ("better", "worse", 10, 0),
        ("other", "worse", 50, 45),
    ]
    assert [pair.p for pair in pairs] == [mcnemar(45, 40), mcnemar(10, 0), mcnemar(50, 45)]
    assert [pair.corrected_p for pair in pairs] == holm([pair.p for pair in pairs])
    assert [pair.corrected_by_dialogue for pair in pairs] == holm([pair.p_by_dialogue for pair in pairs])
    assert [pair.better for pair in pairs] == [None, "better", None]
    assert pairs[1].difference == pytest.approx(0.1) and pairs[1].more_items is None
    # Two pairs are left, so Holm tests the first of them at half the level.
    for pair, discordant in ((pairs[0], 0.85), (pairs[2], 0.95)):
        assert pair.design_effect == pytest.approx(1, abs=0.02)
        assert pair.more_items == more_items(pair, 100, 100, SIGNIFICANT / 2)
        assert pair.more_items == pytest.approx(items_needed(discordant, 0.05, 0.025) - 100, rel=0.02)


def test_pairs_with_one_answer_are_corrected_for_those_alone() -> None:
    right = {"a": [True] * 8 + [False] * 2, "b": [False] * 8 + [True] * 2, "c": [True] * 10}
    (first, second) = compare_pairs(right, alone(10), against="b")
    assert {first.one, first.other, second.one, second.other} == {"a", "b", "c"}
    assert first.other == second.other == "b" and second.p == mcnemar(8, 2)
    assert [first.corrected_p, second.corrected_p] == holm([first.p, second.p])
    assert compare_pairs({"a": [True]}, alone(1)) == []


def test_equal_answers_are_not_told_apart_by_any_number_of_items() -> None:
    (pair,) = compare_pairs({"a": [True, False], "b": [True, False]}, alone(2))
    assert (pair.p, pair.corrected_p, pair.better, pair.difference) == (1.0, 1.0, None, 0.0)
    assert (pair.more_items, pair.p_by_dialogue, pair.only_by_items) == (None, 1.0, False)
    # Others at 1 and 1 do not differ either.
    (pair,) = compare_pairs({"a": [True, False, True], "b": [True, True, False]}, alone(3))
    assert (pair.only_one, pair.only_other, pair.better, pair.more_items) == (1, 1, None, None)


def test_what_only_whole_dialogues_show_is_not_called_better() -> None:
    """Ten items more right, all of two dialogues: as items that is p = .002, as dialogues nothing."""
    right = {"a": [True] * 30, "b": [False] * 10 + [True] * 20}
    (pair,) = compare_pairs(right, [f"{number // 5}" for number in range(30)])
    assert pair.corrected_p == mcnemar(10, 0) < 0.01 and pair.corrected_by_dialogue > 0.1
    assert pair.better is None and pair.only_by_items and pair.design_effect > 4
    low, high = pair.interval
    assert low < 0 < high
    (pair,) = compare_pairs(right, alone(30))
    assert pair.better == "a" and not pair.only_by_items


# The interval


def test_the_interval_is_mirrored_and_does_not_depend_on_the_order_of_items() -> None:
    """Three of 30 dialogues are right in one alone: of such the bootstrap knows more than Student's t."""
    rng = np.random.default_rng(1)
    keys = np.repeat(alone(30), 5)
    one, other = np.arange(150) < 140, (np.arange(150) >= 15) & (np.arange(150) < 142)
    found = difference(one, other, keys)
    assert difference(one, other, keys) == found
    sums = np.array([5, 5, 5, *[0] * 25, -2, 0])
    error = (30 / 29 * ((sums - 13 / 150 * 5) ** 2).sum() + 2) ** 0.5 / 150
    assert found.interval[1] > 13 / 150 + 1.05 * t.ppf(0.975, 29) * error
    mirrored = difference(other, one, keys)
    assert mirrored.interval == (-found.interval[1], -found.interval[0]) and mirrored.difference == -found.difference
    assert (mirrored.p, mirrored.p_by_dialogue) == (found.p, found.p_by_dialogue)
    order = rng.permutation(150)
    assert difference(one[order], other[order], keys[order]) == found


def test_many_dialogues_or_pairs_are_drawn_in_parts_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    one, other = rng.random(60) < 0.8, rng.random(60) < 0.6
    whole = difference(one, other, alone(60))
    monkeypatch.setattr(paired, "AT_ONCE", 7_000)
    monkeypatch.setattr(paired, "PAIRS_AT_ONCE", 2)
    assert differences([one] * 5, [other] * 5, alone(60)) == [whole] * 5


def test_with_much_data_the_interval_is_that_of_the_textbook() -> None:
    """Of independent items, Wald's: (b − c ± 1.96 √(b + c − (b − c)²/n)) / n."""
    one = np.array([True] * 240 + [False] * 160 + [True] * 1600)
    other = np.array([False] * 240 + [True] * 160 + [True] * 1600)
    half = 1.96 * (400 - 80**2 / 2000) ** 0.5 / 2000
    low, high = difference(one, other, alone(2000)).interval
    assert (low, high) == pytest.approx((0.04 - half, 0.04 + half), abs=0.0008)


def test_without_discordant_items_the_interval_is_near_the_rule_of_three() -> None:
    same = np.array([True] * 100 + [False] * 50)
    found = difference(same, same, alone(150))
    low, high = found.interval
    assert -low == high == pytest.approx(3 / 150, rel=0.1)
    assert (found.difference, found.p, found.p_by_dialogue, found.design_effect) == (0, 1, 1, 1)


def test_few_dialogues_say_little_and_one_says_nothing() -> None:
    one, other = np.array([True] * 10), np.array([False] * 10)
    assert difference(one, other, ["a"] * 10).interval == (-1.0, 1.0)
    assert difference(one, other, ["a"] * 10).p_by_dialogue == 1.0
    assert difference(one[:1], other[:1], ["a"]).interval == (-1.0, 1.0)
    two = difference(one, one, ["a"] * 5 + ["b"] * 5).interval
    assert two[1] == -two[0] == pytest.approx(min(1, t.ppf(0.975, 1) * 2**0.5 / 10))


def test_items_of_one_dialogue_do_not_count_as_many() -> None:
    """The same answers, once each item a dialogue of its own, once ten items a dialogue that are all alike."""
    rng = np.random.default_rng(15)
    one, other = np.repeat(rng.random(30) < 0.7, 10), np.repeat(rng.random(30) < 0.5, 10)
    found, together = difference(one, other, alone(300)), difference(one, other, np.repeat(alone(30), 10))
    assert together.interval[1] - together.interval[0] > 2.5 * (found.interval[1] - found.interval[0])
    assert together.design_effect == pytest.approx(10, rel=0.05) and found.design_effect < 1.01
    few, many = (more_items(one, 300, count, 0.05) for one, count in ((found, 300), (together, 30)))
    assert few is not None and many is not None and many + 300 == pytest.approx(10 * (few + 300), rel=0.05)


def drawn(
    seed: int, sizes: NDArray[np.int_], only_one: float, only_other: float, alike: float, draws: int = 1_000
) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """(draws, dialogues): items that only one, and only the other, gets right. Each dialogue has shares of its own
    around `only_one` and `only_other` (a Dirichlet distribution); `alike` is the correlation of two of its items.
    """
    rng = np.random.default_rng(seed)
    shares = np.broadcast_to([only_one, only_other, 1 - only_one - only_other], (draws, len(sizes), 3))
    if alike:
        shares = rng.dirichlet(shares[0, 0] * (1 / alike - 1), size=(draws, len(sizes)))
    first = rng.binomial(sizes, shares[..., 0])
    second = rng.binomial(sizes - first, shares[..., 1] / (1 - shares[..., 0]))
    return first, second


def mcnemar_ps(only_one: NDArray[np.int_], only_other: NDArray[np.int_]) -> NDArray[np.float64]:
    """`mcnemar` of many at once; 1 where both are 0."""
    return np.minimum(1, 2 * binom.cdf(np.minimum(only_one, only_other), only_one + only_other, 0.5))


def test_the_tests_own_mcnemar() -> None:
    counts = [(0, 0), (3, 3), (6, 0), (0, 1), (29, 7)]
    assert mcnemar_ps(*np.array(counts).T) == pytest.approx([mcnemar(*two) for two in counts])
    assert mcnemar(29, 7) == binomtest(7, 36).pvalue


@pytest.mark.slow
@pytest.mark.parametrize(
    "alike", [pytest.param(0.0, marks=pytest.mark.thorough), 0.1, pytest.param(0.3, marks=pytest.mark.thorough)]
)
@pytest.mark.parametrize("shares", [(0.2, 0.1), (0.15, 0.15), pytest.param((0.1, 0.07), marks=pytest.mark.thorough)])
@pytest.mark.parametrize("sizes", [OFFICIAL_DEV, MIXED, SINGLE], ids=["dev", "mixed", "single"])
def test_the_interval_covers_as_often_as_it_says(
    monkeypatch: pytest.MonkeyPatch, sizes: NDArray[np.int_], shares: tuple[float, float], alike: float
) -> None:
    monkeypatch.setattr(paired, "RESAMPLES", 2_000)
    first, second = drawn(3, sizes, *shares, alike)
    found = by_dialogue((first - second).astype(float), sizes.astype(float))
    covered = sum(low <= shares[0] - shares[1] <= high for (low, high), _ in found)
    assert 930 <= covered <= 970
    # The test that belongs to it calls different what the interval does.
    assert all((p <= 0.05) == (low > 0 or high < 0) for (low, high), p in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shares",
    [
        (0.03, 0.01),
        *(pytest.param(shares, marks=pytest.mark.thorough) for shares in ((0.03, 0.03), (0.01, 0.01), (0.02, 0.0))),
    ],
)
def test_with_few_discordant_items_the_interval_is_rather_too_wide(
    monkeypatch: pytest.MonkeyPatch, shares: tuple[float, float]
) -> None:
    monkeypatch.setattr(paired, "RESAMPLES", 2_000)
    for sizes in (OFFICIAL_DEV, MIXED, SINGLE):
        first, second = drawn(4, sizes, *shares, 0.0)
        found = by_dialogue((first - second).astype(float), sizes.astype(float))
        assert sum(low <= shares[0] - shares[1] <= high for (low, high), _ in found) >= 930


@pytest.mark.slow
@pytest.mark.parametrize("alike", [0.0, pytest.param(0.3, marks=pytest.mark.thorough)])
def test_the_test_by_dialogue_keeps_the_levels_that_holm_asks_for(
    monkeypatch: pytest.MonkeyPatch, alike: float
) -> None:
    """Equal answers: of 10,000 draws at most the share `level`, with room for 2.5 standard errors."""
    monkeypatch.setattr(paired, "RESAMPLES", 2_000)
    first, second = drawn(12, OFFICIAL_DEV, 0.12, 0.12, alike, draws=10_000)
    ps = np.array([p for _, p in by_dialogue((first - second).astype(float), OFFICIAL_DEV.astype(float))])
    for level in (0.05, 0.01, 0.005):
        assert (ps <= level).mean() <= level + 2.5 * (level / 10_000) ** 0.5


@pytest.mark.slow
def test_equal_answers_are_called_different_in_at_most_one_of_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """McNemar's test alone calls twice as many different where items of one dialogue are alike."""
    monkeypatch.setattr(paired, "RESAMPLES", 2_000)
    first, second = drawn(5, OFFICIAL_DEV, 0.12, 0.12, 0.3)
    by_items = mcnemar_ps(first.sum(axis=1), second.sum(axis=1)) <= 0.05
    whole = [p <= 0.05 for _, p in by_dialogue((first - second).astype(float), OFFICIAL_DEV.astype(float))]
    assert by_items.mean() > 0.1
    assert (by_items & np.array(whole)).mean() <= 0.065


# Items still needed


def test_items_needed_by_hand() -> None:
    # (1.959964 √.3 + .841621 √(.3 − .01))² / .01
    assert items_needed(0.3, 0.1, 0.05) == pytest.approx(233.1, abs=0.1)
    assert items_needed(0.3, 0.1, 0.01) > items_needed(0.3, -0.1, 0.05) == items_needed(0.3, 0.1, 0.05)
    assert items_needed(0.3, 0.1, 0.05, power=0.9) > items_needed(0.3, 0.1, 0.05)


@pytest.mark.parametrize(("shares", "level"), [((0.2, 0.1), 0.05), ((0.06, 0.03), 0.05), ((0.1, 0.06), 0.01)])
def test_the_items_needed_give_the_power(shares: tuple[float, float], level: float) -> None:
    count = items_needed(sum(shares), shares[0] - shares[1], level)
    first, second = drawn(6, np.array([round(count)]), *shares, 0.0, draws=20_000)
    assert (mcnemar_ps(first[:, 0], second[:, 0]) <= level).mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.slow
def test_the_design_effect_makes_up_for_dialogues(monkeypatch: pytest.MonkeyPatch) -> None:
    """With items alike in a dialogue of five (design effect 1 + 4 · 0.2), both tests together have the power."""
    monkeypatch.setattr(paired, "RESAMPLES", 2_000)
    count = items_needed(0.3, 0.1, 0.05) * 1.8
    sizes = np.full(round(count / 5), 5)
    first, second = drawn(7, sizes, 0.2, 0.1, 0.2)
    by_items = mcnemar_ps(first.sum(axis=1), second.sum(axis=1)) <= 0.05
    whole = [p <= 0.05 for _, p in by_dialogue((first - second).astype(float), sizes.astype(float))]
    assert (by_items & np.array(whole)).mean() == pytest.approx(0.8, abs=0.04)


def test_more_items_are_enough_for_the_exact_test() -> None:
    """All right against all wrong: by the formula four items suffice, and five have a p of .06."""
    for count, more in ((1, None), (2, 4), (5, 1)):
        found = difference(np.array([True] * count), np.array([False] * count), alone(count))
        assert found.p > 0.05 and more_items(found, count, count, 0.05) == more
    assert mcnemar(6, 0) <= 0.05


def test_more_items_are_at_least_those_of_a_dialogue() -> None:
    """Only one is right on every other item of two dialogues. For items alone there are enough, for dialogues not."""
    found = difference(np.array([True] * 20), np.array([True, False] * 10), ["a"] * 10 + ["b"] * 10)
    assert found.p < 0.01 and found.p_by_dialogue > 0.05
    assert more_items(found, 20, 2, 0.05) == 10
