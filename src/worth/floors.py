"""Rules that never read the dialogue. What they reach, a run has to beat."""

from collections.abc import Sequence

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


def _first_best(values: Sequence[float]) -> int:
    return values.index(max(values))


def likeness(options: Sequence[str]) -> list[float]:
    """For each option the sum of its Jaccard similarities with the others, on pairs of neighbouring characters."""
    bigrams = [{option[start : start + 2] for start in range(max(1, len(option) - 1))} for option in options]
    return [
        sum(len(one & other) / len(one | other) for place, other in enumerate(bigrams) if place != own)
        for own, one in enumerate(bigrams)
    ]
