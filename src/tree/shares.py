"""How ranks share items: whole dialogues, whose items have a prefix in common, with about as many tokens for each.

Every rank computes all shares, and comes to the same ones. Only where there are fewer dialogues than ranks are the
items of one split.
"""

import bisect
import itertools
from collections.abc import Sequence

from src.prompt.encode import Example


def shares(examples: Sequence[Example], count: int) -> list[list[int]]:
    """Indices of the examples of each of `count` ranks, ascending; some have none where there are too few examples.

    The largest dialogue goes first, always to the rank with the fewest tokens so far (longest processing time first,
    Graham 1969: the most that a rank gets is at most 4/3 of the least possible).
    """
    if count == 1:
        return [list(range(len(examples)))]
    dialogues: dict[str, dict[str, list[int]]] = {}
    for number, one in enumerate(examples):
        dialogues.setdefault(one.dialogue, {}).setdefault(one.id, []).append(number)
    groups = [list(items.values()) for items in dialogues.values()]  # an item may come in several orders of its options
    while len(groups) < count and max(map(len, groups), default=0) > 1:
        largest = max(groups, key=len)
        groups.remove(largest)
        groups += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    units = [[number for item in group for number in item] for group in groups]
    costs = [computed_tokens([ids for number in unit for ids in examples[number].sequences]) for unit in units]
    found: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for cost, unit in sorted(zip(costs, units, strict=True), key=lambda one: (-one[0], one[1])):
        place = loads.index(min(loads))
        found[place] += unit
        loads[place] += cost
    return [sorted(numbers) for numbers in found]


def computed_tokens(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens of the sequences when those that they begin with in common count once."""
    ordered = sorted(map(tuple, sequences))
    return sum(map(len, ordered)) - sum(itertools.starmap(_in_common, itertools.pairwise(ordered)))


def _in_common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens both begin with. Slices are compared, since a loop over tokens takes long in Python."""
    return bisect.bisect_left(range(1, min(len(one), len(other)) + 1), True, key=lambda n: one[:n] != other[:n])
