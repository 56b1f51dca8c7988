import numpy as np
import pytest
from scipy.stats import bootstrap

from src.worth import resampling
from src.worth.resampling import mean_interval


def test_dialogues_of_one_item_are_drawn_as_scipy_draws_items() -> None:
    values = np.random.default_rng(0).exponential(1, 120)
    found = mean_interval(values, [str(number) for number in range(120)])
    wanted = bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(1))
    assert found == pytest.approx(tuple(wanted.confidence_interval), abs=0.02)


def test_a_dialogue_is_drawn_whole() -> None:
    """Two dialogues, of one and of three items: drawn are the first twice, both, or the second twice."""
    low, high = mean_interval(np.array([4.0, 0.0, 0.0, 0.0]), list("abbb"))
    assert (low, high) == (0.0, 4.0)
    assert mean_interval(np.array([1.0, 2.0]), list("aa")) == (1.5, 1.5)


@pytest.mark.slow
def test_the_interval_of_a_mean_covers_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 draws of 60 dialogues with one to five items each, whose values depend on the dialogue."""
    monkeypatch.setattr(resampling, "RESAMPLES", 1_000)
    rng, covered = np.random.default_rng(2), 0
    for _ in range(1_000):
        keys = np.repeat(np.arange(60), rng.integers(1, 6, 60))
        low, high = mean_interval(rng.normal(0, 1, 60)[keys] + rng.normal(0.5, 1, len(keys)), keys.astype(str))
        covered += low <= 0.5 <= high
    assert 930 <= covered <= 970
