import numpy as np
import pytest

from src.worth.folds import dialogue_folds


def test_no_dialogue_is_in_two_folds() -> None:
    rng = np.random.default_rng(9)
    keys = [f"dialogue {number}" for number in rng.integers(0, 40, 151)]
    folds = dialogue_folds(keys)
    places = {key: {int(fold) for fold, own in zip(folds, keys, strict=True) if own == key} for key in keys}
    assert {len(one) for one in places.values()} == {1}
    assert len(set(folds.tolist())) == 5 and np.bincount(folds).min() > 25
    shuffled = rng.permutation(151)
    again = dialogue_folds([keys[place] for place in shuffled])
    assert again.tolist() == folds[shuffled].tolist()
    assert len(set(dialogue_folds(list("abbc")).tolist())) == 3, "no more folds than dialogues"
    with pytest.raises(AssertionError):
        dialogue_folds(["a", "a"])
