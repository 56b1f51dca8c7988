from statistics import stdev

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ttest_ind

from src.worth.metrics import holm
from src.worth.seeds import compare_recipes, spread

SIZES = np.array([1] * 27 + [4] + [5] * 24)
"""Items of each dialogue of the official dev split."""
KEYS = np.repeat([f"{number:02}" for number in range(52)], SIZES)


def test_spread_by_hand() -> None:
    found = spread([0.8, 0.9, 0.7])
    assert (found.seeds, found.mean, found.least, found.most) == (3, pytest.approx(0.8), 0.7, 0.9)
    assert found.sd == pytest.approx(0.1) == pytest.approx(stdev([0.8, 0.9, 0.7]))
    assert spread([0.8]).sd is None and spread([0.5, 0.5]).sd == 0


def made_runs(
    rng: np.random.Generator, accuracy: float, runs: int, of_seeds: float, of_dialogues: float = 0.08
) -> NDArray[np.float64]:
    """(runs, items): right or wrong. A seed moves the accuracy of its whole run, a dialogue that of its items, each
    with this standard deviation; two thirds of the items have the same luck in all runs.
    """
    shares = accuracy + rng.normal(0, of_seeds, runs)[:, None] + np.repeat(rng.normal(0, of_dialogues, 52), SIZES)
    own, same = rng.random((runs, 151)), rng.random(151)
    luck = np.where(rng.random(151) < 2 / 3, same, own)
    return (luck < shares).astype(float)


@pytest.mark.slow
@pytest.mark.parametrize("runs", [2, *(pytest.param(runs, marks=pytest.mark.thorough) for runs in (3, 5))])
@pytest.mark.parametrize("of_seeds", [0.0, pytest.param(0.03, marks=pytest.mark.thorough), 0.06])
def test_the_interval_covers_other_seeds_and_other_dialogues(runs: int, of_seeds: float) -> None:
    rng, covered = np.random.default_rng(8), 0
    for _ in range(1_000):
        right = {"one": made_runs(rng, 0.75, runs, of_seeds), "other": made_runs(rng, 0.7, runs, of_seeds)}
        (pair,) = compare_recipes(right, KEYS)
        assert pair.interval is not None and pair.p is not None
        low, high = pair.interval
        true = 0.05 if pair.one == "one" else -0.05
        covered += low <= true <= high
        assert (pair.p <= 0.05) == (low > 0 or high < 0)
    assert 930 <= covered <= 980


def test_where_seeds_decide_it_is_welch_s_test() -> None:
    """So many dialogues, each of one item, that nearly all of the variance is due to the seeds."""
    counts = {"a": (8_600, 8_900, 9_200), "b": (7_000, 7_900)}
    right = {name: np.array([np.arange(10_000) < count for count in own], float) for name, own in counts.items()}
    (pair,) = compare_recipes(right, [f"{number:05}" for number in range(10_000)])
    theirs = ttest_ind(counts["a"], counts["b"], equal_var=False)
    assert pair.seeds_share is not None and pair.seeds_share > 0.99
    assert pair.p == pytest.approx(theirs.pvalue, rel=0.02)
    low, high = theirs.confidence_interval()
    assert pair.interval == pytest.approx((max(-1, low / 10_000), min(1, high / 10_000)), rel=0.03)


def test_a_single_seed_tells_nothing_of_the_recipe() -> None:
    rng = np.random.default_rng(9)
    right = {"a": made_runs(rng, 0.9, 1, 0), "b": made_runs(rng, 0.6, 3, 0), "c": made_runs(rng, 0.3, 3, 0)}
    pairs = compare_recipes(right, KEYS)
    assert [(pair.one, pair.other) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    for pair in pairs[:2]:
        assert (pair.interval, pair.p, pair.corrected_p, pair.seeds_share, pair.better) == (None,) * 5
        assert pair.difference == pytest.approx(right["a"].mean() - right[pair.other].mean())
    assert pairs[2].better == "b" and pairs[2].p is not None
    assert [pairs[2].corrected_p] == holm([pairs[2].p])


def test_p_is_corrected_for_all_recipes() -> None:
    rng = np.random.default_rng(10)
    right = {name: made_runs(rng, share, 3, 0.01) for name, share in (("a", 0.9), ("b", 0.85), ("c", 0.6))}
    pairs = compare_recipes(right, KEYS)
    assert [pair.corrected_p for pair in pairs] == holm([pair.p for pair in pairs if pair.p is not None])


def test_a_single_dialogue_says_nothing_and_equal_runs_are_not_told_apart() -> None:
    right = {"a": np.ones((2, 6)), "b": np.zeros((2, 6))}
    (pair,) = compare_recipes(right, ["one"] * 6)
    assert (pair.interval, pair.p, pair.better) == ((-1.0, 1.0), 1.0, None)
    (pair,) = compare_recipes({"a": np.ones((2, 6)), "b": np.ones((2, 6))}, list("abcdef"))
    assert (pair.difference, pair.p, pair.seeds_share) == (0, 1, 0)
    assert pair.interval is not None and pair.interval[1] == -pair.interval[0] > 0
    assert compare_recipes({"a": np.ones((2, 6))}, list("abcdef")) == []


def test_the_order_of_items_and_recipes_changes_nothing() -> None:
    rng = np.random.default_rng(11)
    one, other = made_runs(rng, 0.8, 3, 0.02), made_runs(rng, 0.7, 2, 0.02)
    (pair,) = compare_recipes({"a": one, "b": other}, KEYS)
    turned = rng.permutation(151)
    (again,) = compare_recipes({"b": other[::-1][:, turned], "a": one[:, turned]}, KEYS[turned])
    assert (again.one, again.other) == (pair.one, pair.other)
    assert again.interval == pytest.approx(pair.interval, abs=1e-12) and again.p == pytest.approx(pair.p)
