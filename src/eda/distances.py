"""Distances of two splits, measure by measure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.data import Item
from src.eda.measures import (
    FEELINGS,
    SEED,
    character_count,
    dialogues,
    items_of_dialogues,
    masked_names,
    option_likeness,
    run_lengths,
    target_position,
    turn_count,
    word_count,
)
from src.eda.words import overlap, spoken_words

SHUFFLES = 300

Value = float | Mapping[str, int]
"""A number, or how often each of several things comes up."""


@dataclass(frozen=True)
class Measure:
    """A quantity in which two splits are compared.

    of            the items of a split → a value for each of its samples, in order
    per_dialogue  whether a sample is a dialogue instead of an item
    """

    of: Callable[[Sequence[Item]], Sequence[Value]]
    per_dialogue: bool = False

    def samples(self, items: Sequence[Item]) -> list[Item]:
        """The item of each sample; for a dialogue its first one."""
        return dialogues(items) if self.per_dialogue else list(items)


def by_item(of: Callable[[Item], Value]) -> Measure:
    return Measure(lambda items: [of(item) for item in items])


def by_dialogue(of: Callable[[Item], Value]) -> Measure:
    return Measure(lambda items: [of(item) for item in dialogues(items)], per_dialogue=True)


MEASURES = {
    "대화당 문항 수": Measure(items_of_dialogues, per_dialogue=True),
    "턴 수": by_item(turn_count),
    "글자 수": by_item(character_count),
    "어절 수": by_item(word_count),
    "발화 길이": by_dialogue(lambda item: character_count(item) / turn_count(item)),
    "연달아 말하기": by_dialogue(lambda item: 1 - len(run_lengths(item)) / turn_count(item)),
    "대상 발화 수": by_item(lambda item: len(item.targets)),
    "대상 발화 위치": by_item(target_position),
    "유형": by_item(lambda item: {item.category: 1}),
    "선택지 길이": by_item(lambda item: sum(map(len, item.options)) / len(item.options)),
    "선택지 유사도": by_item(option_likeness),
    "대화와의 겹침": by_item(lambda item: sum(overlap(item, option) for option in item.options) / len(item.options)),
    "내용어": by_dialogue(lambda item: spoken_words([item])),
    "웃음과 울음": by_dialogue(
        lambda item: sum(bool(FEELINGS.search(one.text)) for one in item.dialogue) / turn_count(item)
    ),
    "마스킹된 이름": by_dialogue(lambda item: len(masked_names(item))),
}


class Distance(NamedTuple):
    """`value`: 0 for equal splits, 1 for splits that share nothing. `luck`: 95 % of random splits stay below it."""

    value: float
    luck: float

    @property
    def text(self) -> str:
        return f"{self.value:.2f}(우연 {self.luck:.2f})"


def compare(measure: Measure, first: Sequence[Item], second: Sequence[Item]) -> Distance:
    """The distance of two splits: Kolmogorov-Smirnov's for numbers, total variation for counts.

    Items of one dialogue are not independent. So luck is measured with whole dialogues, dealt at random to two splits
    of the same sizes.
    """
    samples = [measure.samples(items) for items in (first, second)]
    values = [*measure.of(first), *measure.of(second)]
    # A dialogue in both splits counts as two, one in each.
    keys = [(side, item.dialogue_key) for side, part in enumerate(samples) for item in part]
    numbered = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    dialogue_of = np.array([numbered[key] for key in keys])
    in_first = np.arange(len(keys)) < len(samples[0])
    dialogues_in_first = len(set(keys[: len(samples[0])]))

    rng = np.random.default_rng(SEED)
    dealt = np.argsort(rng.random((SHUFFLES, len(numbered))), axis=1) < dialogues_in_first
    sides = np.vstack([in_first, dealt[:, dialogue_of]])
    counts = [value for value in values if isinstance(value, Mapping)]
    numbers = [value for value in values if not isinstance(value, Mapping)]
    found = _total_variation(counts, sides) if counts else _kolmogorov_smirnov(numbers, sides)
    return Distance(float(found[0]), float(np.quantile(found[1:], 0.95)))


def _kolmogorov_smirnov(values: Sequence[float], sides: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(deals,): the largest gap between the cumulated shares of the two splits.

    sides: (deals, values), true where a value is in the first split.
    """
    order = np.argsort(values, kind="stable")
    ordered = np.asarray(values, dtype=float)[order]
    sides = sides[:, order]
    first = np.cumsum(sides, axis=1) / sides.sum(axis=1, keepdims=True)
    second = np.cumsum(~sides, axis=1) / (~sides).sum(axis=1, keepdims=True)
    last_of_its_value = np.append(ordered[1:] != ordered[:-1], True)
    return np.abs(first - second)[:, last_of_its_value].max(axis=1)


def _total_variation(values: Sequence[Mapping[str, int]], sides: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(deals,): half the sum of the differences between the shares of the two splits. sides: (deals, values)."""
    columns = {name: column for column, name in enumerate(dict.fromkeys(name for value in values for name in value))}
    counts = np.zeros((len(values), len(columns)))
    for place, value in enumerate(values):
        for name, count in value.items():
            counts[place, columns[name]] = count
    first, second = sides.astype(float) @ counts, (~sides).astype(float) @ counts
    shares = [side / side.sum(axis=1, keepdims=True) for side in (first, second)]
    return np.abs(shares[0] - shares[1]).sum(axis=1) / 2
