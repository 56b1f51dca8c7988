"""Worked examples for a few-shot prompt: labelled items of the same category, never of the item's own dialogue."""

import random
from collections.abc import Sequence

from src.console.cli import UserError
from src.data import Item
from src.prompt.messages import Examples, reasoning_of


class Library:
    """Chooses `examples.count` of `items` for each item that is asked about.

    By seed, all items of a category get the same examples, which are then computed once. By nearness (cosine of TF-IDF
    weights over groups of two and three characters in target utterances and options) each item gets its own; the
    nearest comes last, next to the question. reasoning: choose only items that carry some.
    """

    def __init__(self, items: Sequence[Item], examples: Examples, reasoning: bool = False) -> None:
        self.examples = examples
        usable = [item for item in items if item.label is not None and (reasoning_of(item) or not reasoning)]
        if not usable:
            raise UserError(f"no item of the training split has a label{' and reasoning' if reasoning else ''}.")
        self._by_category: dict[str, list[Item]] = {}
        for item in usable:
            self._by_category.setdefault(item.category, []).append(item)
        for category, pool in self._by_category.items():
            random.Random(f"{examples.seed}-{category}").shuffle(pool)
        self._chosen: dict[Item, tuple[Item, ...]] = {}
        if examples.choose == "near":
            from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to import

            self._vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3), sublinear_tf=True)
            self._vectorizer.fit([_said(item) for item in usable])
            self._vectors = {
                category: self._vectorizer.transform([_said(item) for item in pool])
                for category, pool in self._by_category.items()
            }

    def choose(self, item: Item) -> tuple[Item, ...]:
        """The examples of `item`, each of another dialogue, in the order in which they are shown."""
        if item not in self._chosen:
            self._chosen[item] = self._choose(item)
        return self._chosen[item]

    def _choose(self, item: Item) -> tuple[Item, ...]:
        pool = self._by_category.get(item.category, [])
        ranked = list(range(len(pool)))
        if pool and self.examples.choose == "near":
            likeness = (self._vectors[item.category] @ self._vectorizer.transform([_said(item)]).T).toarray()[:, 0]
            ranked.sort(key=lambda index: (-likeness[index], index))
        found: list[Item] = []
        seen = {item.dialogue_key}
        for index in ranked:  # one from each dialogue, since two would be much alike
            if pool[index].dialogue_key not in seen:
                seen.add(pool[index].dialogue_key)
                found.append(pool[index])
            if len(found) == self.examples.count:
                return tuple(found if self.examples.choose == "seed" else reversed(found))
        raise UserError(
            f"item {item.id}: {self.examples.count} examples of {item.category} are asked for, "
            f"and the training split has {len(found)} from other dialogues."
        )


def _said(item: Item) -> str:
    return "\n".join([*(turn.text for turn in item.target_utterances), *sorted(item.options)])
