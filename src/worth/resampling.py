"""Intervals of a mean over items where items of one dialogue are no independent draws."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

RESAMPLES, SEED = 10_000, 0


def mean_interval(values: NDArray[np.float64], keys: Sequence[str] | NDArray[np.str_]) -> tuple[float, float]:
    """The 95 % interval of the mean of `values`, one for each item: a percentile bootstrap that draws dialogues with
    replacement. `keys` has the dialogue of each item. With a single dialogue the interval is the mean itself.
    """
    _, dialogue = np.unique(np.asarray(keys), return_inverse=True)
    sizes = np.bincount(dialogue)
    sums = np.bincount(dialogue, weights=values)
    times = _times_drawn(len(sizes))
    low, high = np.quantile((times @ sums) / (times @ sizes), (0.025, 0.975))
    return float(low), float(high)


@lru_cache(maxsize=2)
def _times_drawn(dialogues: int) -> NDArray[np.float64]:
    """How often each dialogue is drawn, (resamples, dialogues). Intervals of the same items are asked for by the dozen,
    and the draws are the same for each.
    """
    even = np.full(dialogues, 1 / dialogues)
    return np.random.default_rng(SEED).multinomial(dialogues, even, size=RESAMPLES).astype(float)
