"""Items without what their dialogue tells: blanked, its utterances in random order, or another dialogue in its place.

What a run still gets right on them, it does not get from reading the dialogue. Category, options, label and the object
of the file stay as they are. The changes are the same for the same items, whatever their order.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from src.console.cli import UserError
from src.items.item import Item, Utterance

SEED = 0
"""Of all draws. Scores of runs can be compared only on items that were changed alike."""


def change_dialogues(items: Sequence[Item], how: str) -> list[Item]:
    """`items`, of one split, in their order; how: one of `CHANGES`. UserError where that cannot be done."""
    if how not in CHANGES:
        raise UserError(f"a dialogue cannot be {how!r}; allowed: {', '.join(CHANGES)}")
    return CHANGES[how](items)


def _blanked(items: Sequence[Item]) -> list[Item]:
    """Speakers and targets stay, so every prompt can be filled; files, too, have blank utterances."""
    return [replace(item, dialogue=tuple(replace(turn, text="") for turn in item.dialogue)) for item in items]


def _shuffled(items: Sequence[Item]) -> list[Item]:
    """An utterance keeps its speaker and id, so targets stay the same. Items of one dialogue are shuffled alike."""
    return [replace(item, dialogue=tuple(_other_order(item))) for item in items]


def _other_order(item: Item) -> list[Utterance]:
    """Any order but the dialogue's own. A dialogue of a single utterance, or of equal ones, has no other."""
    turns, rng = list(item.dialogue), random.Random(f"{SEED} {item.dialogue_key}")
    own = [(turn.speaker, turn.text) for turn in turns]
    while len(set(own)) > 1 and [(turn.speaker, turn.text) for turn in turns] == own:
        rng.shuffle(turns)
    return turns


def _swapped(items: Sequence[Item]) -> list[Item]:
    """Each dialogue takes the place of one other. Target utterances come with it: those of its item of the same
    category, where it has one. So they are true ones, however long the dialogue is.
    """
    by_dialogue: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda item: item.id):
        by_dialogue.setdefault(item.dialogue_key, []).append(item)
    keys = sorted(by_dialogue)
    if len(keys) < 2:
        raise UserError(
            "swapped: the items are of one dialogue, and there is none to swap it with. "
            "Allowed: items of two dialogues or more."
        )
    random.Random(SEED).shuffle(keys)
    # In a circle, so that each dialogue is used once and none in its own place.
    follower = dict(zip(keys, [*keys[1:], keys[0]], strict=True))

    def giver(item: Item) -> Item:
        there = by_dialogue[follower[item.dialogue_key]]
        return next((other for other in there if other.category == item.category), there[0])

    return [replace(item, dialogue=(other := giver(item)).dialogue, targets=other.targets) for item in items]


CHANGES: dict[str, Callable[[Sequence[Item]], list[Item]]] = {
    "blanked": _blanked,
    "shuffled": _shuffled,
    "swapped": _swapped,
}
