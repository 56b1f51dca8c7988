"""Measures of items and their dialogues: lengths, turns, targets, options, marks of chat.

Dialogues have up to five items, so two counts must not be mixed up: one per item weighs a dialogue by its items, as
training does and as the published figures do; one per dialogue takes each once.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from src import task
from src.data import Item
from src.worth.floors import likeness

SEED = 0
SHORT_WINDOW_TURNS = 10


class Summary(NamedTuple):
    """`std` is that of a sample (n - 1), as pandas computes it; 0 for a single value."""

    mean: float
    std: float
    low: float
    high: float


def describe(values: Sequence[float]) -> Summary:
    """Of at least one value."""
    array = np.asarray(values, dtype=float)
    std = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return Summary(float(array.mean()), std, float(array.min()), float(array.max()))


def turn_count(item: Item) -> int:
    return len(item.dialogue)


def character_count(item: Item) -> int:
    """Characters of all utterances, blanks included."""
    return sum(len(utterance.text) for utterance in item.dialogue)


def word_count(item: Item) -> int:
    """Words by blanks (어절) of all utterances."""
    return sum(len(utterance.text.split()) for utterance in item.dialogue)


def length_figures(items: Sequence[Item]) -> dict[str, Summary]:
    """Turns, characters and words by blanks, per item: items of one dialogue count separately."""
    counts: dict[str, Callable[[Item], int]] = {
        "turns": turn_count,
        "characters": character_count,
        "words": word_count,
    }
    return {name: describe([count(item) for item in items]) for name, count in counts.items()}


def dialogues(items: Iterable[Item]) -> list[Item]:
    """One item (the first) for each dialogue, in order."""
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(item.dialogue_key, item)
    return list(first.values())


def items_of_dialogues(items: Iterable[Item]) -> list[int]:
    """The count of items of each dialogue, in order."""
    return list(Counter(item.dialogue_key for item in items).values())


def target_position(item: Item) -> float:
    """Where in the dialogue the target utterances are on average: 0 for the first turn, 1 for the last."""
    places = [place for place, utterance in enumerate(item.dialogue) if utterance.id in item.targets]
    return float(np.mean(places)) / max(1, len(item.dialogue) - 1)


def run_lengths(item: Item) -> list[int]:
    """How many turns a speaker has before the other one speaks, a number for each such run of turns."""
    lengths: list[int] = []
    before: int | None = None
    for utterance in item.dialogue:
        if utterance.speaker == before:
            lengths[-1] += 1
        else:
            lengths.append(1)
        before = utterance.speaker
    return lengths


def option_likeness(item: Item) -> float:
    """Mean Jaccard similarity of two of the options, on pairs of neighbouring characters: 1 for equal ones."""
    count = len(item.options)
    return sum(likeness(item.options)) / (count * (count - 1))


def odd_values(items: Sequence[Item]) -> dict[str, int]:
    """How often the text of the files has irregularities that careless code trips over. Dialogues count once."""
    raw = [turn["utterance"] for item in dialogues(items) for turn in item.source["input"]["conversation"]]
    options = [str(item.source["input"][key]) for item in items for key in task.current().options]
    texts = ["" if text is None else str(text) for text in raw]
    return {
        "빈 발화": sum(not text.strip() for text in texts),
        "문자열이 아니라 숫자인 발화": sum(isinstance(text, int | float) for text in raw),
        "줄바꿈이 있는 발화": sum("\n" in text or "\r" in text for text in texts),
        "앞뒤에 공백이 있는 발화": sum(text != text.strip() and bool(text.strip()) for text in texts),
        "앞뒤에 공백이 있는 선택지": sum(option != option.strip() for option in options),
        "자모가 분리된 문자열(NFD)": sum(unicodedata.normalize("NFC", text) != text for text in [*texts, *options]),
        "마스킹된 이름이 있는 발화(name1 …)": sum(bool(MASKED_NAME.search(text)) for text in texts),
        "정답이 없는 문항": sum(item.label is None for item in items),
    }


MASKED_NAME = re.compile(r"name\d+")
MARKS = {
    "ㅋㅋ": re.compile("ㅋ"),
    "ㅎㅎ": re.compile("ㅎ"),
    "ㅠㅠ, ㅜㅜ": re.compile("[ㅠㅜ]"),
    "^^, 이모지": re.compile(r"\^\^|[☀-➿\U0001F300-\U0001FAFF]"),
    "~": re.compile("[~～]"),
    "!": re.compile("[!！]"),
    "?": re.compile("[?？]"),
    "…, ..": re.compile(r"…|\.\."),
}
FEELINGS = re.compile("|".join(MARKS[mark].pattern for mark in ("ㅋㅋ", "ㅎㅎ", "ㅠㅠ, ㅜㅜ", "^^, 이모지")))


def mark_rates(items: Sequence[Item]) -> dict[str, float]:
    """The share of utterances with each of `MARKS`; dialogues count once."""
    texts = [utterance.text for item in dialogues(items) for utterance in item.dialogue]
    return {name: sum(bool(mark.search(text)) for text in texts) / len(texts) for name, mark in MARKS.items()}


def masked_names(item: Item) -> set[str]:
    """The different masked names of the dialogue."""
    return {name for utterance in item.dialogue for name in MASKED_NAME.findall(utterance.text)}


def seen_in_folds(items: Sequence[Item], folds: int = 5) -> float:
    """The share of items whose dialogue is also in another fold, when items are dealt to `folds` at random."""
    fold = np.random.default_rng(SEED).permutation(len(items)) % folds
    places = defaultdict(set)
    for item, place in zip(items, fold, strict=True):
        places[item.dialogue_key].add(int(place))
    return sum(len(places[item.dialogue_key]) > 1 for item in items) / len(items)


def lost_targets(items: Sequence[Item], turns: int = SHORT_WINDOW_TURNS) -> float:
    """The share of items that lose a target utterance when only the last `turns` turns are kept."""
    kept = [{utterance.id for utterance in item.dialogue[-turns:]} for item in items]
    return sum(not set(item.targets) <= ids for item, ids in zip(items, kept, strict=True)) / len(items)
