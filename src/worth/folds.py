"""Folds of items by dialogue: what is fitted on some dialogues is tried on others."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FOLDS = 5


def dialogue_folds(keys: Sequence[str], count: int = FOLDS) -> NDArray[np.intp]:
    """The fold (0, 1, …) of each item: items of one dialogue, which have the same key, are in the same one. There are
    as many folds as dialogues where these are fewer than `count`; at least two dialogues are needed. The order of the
    items changes nothing.
    """
    from sklearn.model_selection import GroupKFold

    dialogues = len(set(keys))
    assert dialogues > 1, "one dialogue cannot be divided"
    folds = np.empty(len(keys), dtype=np.intp)
    split = GroupKFold(min(count, dialogues)).split(np.zeros(len(keys)), groups=np.array(keys))
    for fold, (_, held) in enumerate(split):
        folds[held] = fold
    return folds
