"""A classifier that is trained on the options alone: what it reaches, the options give away.

Options are described by how they differ from the others of their item, since what all of them have tells nothing:
groups of characters that an option alone has or alone lacks, its length, its likeness to the others, and its place. A
logistic regression of the differences between the right option and each wrong one (Bradley and Terry 1952) gives an
option its score; the highest is the answer.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.data import Item
from src.worth.floors import likeness

Floats = NDArray[np.float64]

LONGEST_GROUP = 3
"""Characters, the marks of an option's start and end among them."""
FEWEST_ITEMS = 2
"""Items that must have a group: one that a single item has says nothing about others."""
STRENGTH = 1.0
"""scikit-learn's C, the inverse of the penalty's weight."""
START, END = "\x02", "\x03"


def cross_validated_answers(items: Sequence[Item], folds: Sequence[int]) -> list[int]:
    """The answer to each item by a classifier trained on the items of all other folds. All have labels.

    folds: the fold of each item. Items of one dialogue belong in one fold, since their options share words.
    """
    table = _table(items)
    answers = [0] * len(items)
    for fold in sorted(set(folds)):
        weights = table.fitted([place for place, own in enumerate(folds) if own != fold])
        for place, own in enumerate(folds):
            if own == fold:
                answers[place] = table.best(place, weights)
    return answers


def trained_answers(items: Sequence[Item], training: Sequence[Item]) -> list[int]:
    """The answer to each of `items` by a classifier trained on `training`, at least one item, all with labels."""
    table = _table([*training, *items])
    weights = table.fitted(range(len(training)))
    return [table.best(place, weights) for place in range(len(training), len(table.items))]


def describe(options: Sequence[str]) -> list[dict[str, float]]:
    """Name → value of the features of each option. Those of the groups that it alone has are a vector of length one,
    however many they are, and so are those that it alone lacks: an edit of one syllable counts as much as another
    sentence.
    """
    groups = [_groups(option) for option in options]
    counts = Counter(group for own in groups for group in own)
    found: list[dict[str, float]] = []
    for own in groups:
        has = [f"has {group}" for group in own if counts[group] == 1]
        lacks = [f"lacks {group}" for group, count in counts.items() if count == len(options) - 1 and group not in own]
        found.append({name: 1 / math.sqrt(len(names)) for names in (has, lacks) for name in names})
    for name, values in (("length", [math.log(len(option)) for option in options]), ("likeness", likeness(options))):
        for place, value in enumerate(values):
            others = [other for at, other in enumerate(values) if at != place]
            found[place] |= {
                name: value - sum(others) / len(others),
                f"most {name}": float(value > max(others)),
                f"least {name}": float(value < min(others)),
            }
    return [one | {f"place {place}": 1.0} for place, one in enumerate(found)]


def _groups(option: str) -> set[str]:
    text = f"{START}{option}{END}"
    return {text[start : start + size] for size in range(1, LONGEST_GROUP + 1) for start in range(len(text) - size + 1)}


@dataclass(frozen=True)
class _Table:
    """features: sparse; a row for each option of each item, `options` of them for an item, a column for each feature"""

    items: Sequence[Item]
    features: Any
    options: int

    def best(self, place: int, weights: Floats) -> int:
        """The option of the item at `place` with the highest score, the first of those that tie."""
        first = place * self.options
        return int(np.argmax(self.features[first : first + self.options] @ weights))

    def fitted(self, places: Iterable[int]) -> Floats:
        """A weight for each feature, from the labelled items at `places`."""
        from scipy.sparse import vstack
        from sklearn.linear_model import LogisticRegression

        def rank(place: int) -> tuple[str, tuple[str, ...], str]:
            return self.items[place].dialogue_key, self.items[place].options, self.items[place].id

        right, wrong = [], []
        # Sums of floats depend on the order of their terms, and the answers must not depend on that of the items.
        for place in sorted(places, key=rank):
            label, first = self.items[place].label, place * self.options
            assert label is not None, self.items[place].id
            others = [first + option for option in range(self.options) if option != label]
            right += [first + label] * len(others)
            wrong += others
        differences = self.features[right] - self.features[wrong]
        # Both signs, since scikit-learn wants two classes; so each difference counts twice, and by half.
        rows, signs = vstack([differences, -differences], format="csr"), np.repeat([1, -1], len(right))
        model = LogisticRegression(C=STRENGTH / 2, fit_intercept=False, solver="liblinear", random_state=0)
        weights: Floats = model.fit(rows, signs).coef_[0]
        return weights


def _table(items: Sequence[Item]) -> _Table:
    """Features are columns in the order of their names, so they are the same for the items in any order."""
    from scipy.sparse import csr_matrix

    described = [describe(item.options) for item in items]
    items_with = Counter(name for options in described for name in {name for one in options for name in one})
    names = sorted(name for name, count in items_with.items() if count >= FEWEST_ITEMS)
    column = {name: at for at, name in enumerate(names)}
    indices: list[int] = []
    values: list[float] = []
    ends = [0]
    for one in (one for options in described for one in options):
        kept = sorted((column[name], value) for name, value in one.items() if name in column)
        indices += [at for at, _ in kept]
        values += [value for _, value in kept]
        ends.append(len(indices))
    return _Table(items, csr_matrix((values, indices, ends), shape=(len(ends) - 1, len(names))), len(items[0].options))
