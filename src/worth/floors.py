"""Rules that answer without understanding: some never read the dialogue, some count characters that it shares with an
option. What they reach, a run has to beat.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from src.data import Item


def floor_answers(items: Sequence[Item]) -> dict[str, list[int]]:
    """Name → answers of each rule that never reads the dialogue. Of options that tie, a rule takes the first.

    The most alike option has most in common with the others: the right one, where distractors are edits of it.
    """
    return {
        "longest option": [_first_best([len(option) for option in item.options]) for item in items],
        "shortest option": [_first_best([-len(option) for option in item.options]) for item in items],
        "most alike option": [_first_best(likeness(item.options)) for item in items],
    }


def overlap_answers(items: Sequence[Item]) -> dict[str, list[int]]:
    """Name → answers of two rules: the option of which the dialogue, or the target utterances, say the largest share.
    Of options that tie, a rule takes the first.

    The share is that of an option's pairs of neighbouring characters, each weighed by its inverse document frequency,
    ln((1 + N) / (1 + n)) + 1 for a pair that n of the N dialogues of `items` say: what all of them say tells little.
    """
    dialogues = {item.dialogue_key: _pairs_of(turn.text for turn in item.dialogue) for item in items}
    said = Counter(pair for pairs in dialogues.values() for pair in pairs)
    total = 1 + len(dialogues)

    def best(item: Item, heard: set[str]) -> int:
        shares = []
        for option in item.options:
            # Sorted: sums of floats depend on the order, and that of a set is another in each process.
            weights = {pair: math.log(total / (1 + said[pair])) + 1 for pair in sorted(_pairs(option))}
            known = sum(weight for pair, weight in weights.items() if pair in heard)
            shares.append(known / sum(weights.values()))
        return _first_best(shares)

    return {
        "overlap with dialogue": [best(item, dialogues[item.dialogue_key]) for item in items],
        "overlap with targets": [best(item, _pairs_of(turn.text for turn in item.target_utterances)) for item in items],
    }


def likeness(options: Sequence[str]) -> list[float]:
    """For each option the sum of its Jaccard similarities with the others, on pairs of neighbouring characters."""
    pairs = [_pairs(option) for option in options]
    return [
        sum(len(one & other) / len(one | other) for place, other in enumerate(pairs) if place != own)
        for own, one in enumerate(pairs)
    ]


def _pairs_of(texts: Iterable[str]) -> set[str]:
    """The pairs of neighbouring characters of several texts, none of two texts."""
    return {pair for text in texts for pair in _pairs(text)}


def _pairs(text: str) -> set[str]:
    """Of a single character, that character; of none, the empty text."""
    return {text[start : start + 2] for start in range(max(1, len(text) - 1))}


def _first_best(values: Sequence[float]) -> int:
    return values.index(max(values))
