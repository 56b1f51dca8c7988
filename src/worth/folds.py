"""Labelled items divided into folds: by whole dialogues, each category spread evenly."""

import warnings
from collections import Counter
from collections.abc import Sequence

from src.console.cli import UserError
from src.console.words import counted
from src.data import Item


def divide(items: Sequence[Item], count: int) -> list[int]:
    """The fold of each item, 1 to `count`. Items of one dialogue are in the same fold, and each category is spread as
    evenly as scikit-learn's StratifiedGroupKFold finds: dialogue after dialogue goes where it evens most.

    Nothing is drawn, and the order of the items changes nothing. UserError when there are too few dialogues, or too few
    items of each category.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    keys, categories = [item.dialogue_key for item in items], [item.category for item in items]
    dialogues, largest = len(set(keys)), max(Counter(categories).values())
    if not 2 <= count <= min(dialogues, largest):
        raise UserError(_refusal(count, len(items), dialogues, largest))
    places = [0] * len(items)
    with warnings.catch_warnings():
        # Of a rare category, some folds have nothing: no reason not to divide the others.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for fold, (_, held) in enumerate(StratifiedGroupKFold(count).split(items, categories, keys), start=1):
            for place in held:
                places[place] = fold
    if empty := count - len(set(places)):
        raise UserError(f"--folds {count}: {counted(empty, 'fold')} would have no item. Give fewer folds.")
    return places


def _refusal(count: int, items: int, dialogues: int, largest: int) -> str:
    most = min(dialogues, largest)
    found = f"--folds {count}: the {counted(items, 'labelled item')} are of {counted(dialogues, 'dialogue')}, "
    found += f"at most {largest} of a category. "
    return found + (
        f"Allowed: 2 to {most}." if most >= 2 else "They cannot be divided; allowed: two of each, at least."
    )
