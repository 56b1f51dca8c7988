"""What is measured of items and their dialogues: lengths, turns, targets, options, marks of chat.

Dialogues have up to five items, so two counts must not be mixed up: one per item weighs a dialogue by its items, as
training does and as the published figures do; one per dialogue takes each once.
"""

import dataclasses
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from src import task
from src.data import Item
from src.worth.metrics import likeness

if TYPE_CHECKING:
    from src.prompt.encode import Encoder

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
    """How often the text of the files has something that a careless reader trips over. Dialogues count once."""
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


# Tokens


PROMPT_PARTS = ("시스템", "대화", "대상 발화", "질문", "선택지", "틀")
"""틀: everything that the prompt and the chat template put around the others."""
_CLOSE, _FIRST_TURN = "\uf8ff", 0xE100
_OPEN = {"시스템": "\ue000", "질문": "\ue001", "선택지": "\ue002"}


def prompt_parts(encoder: "Encoder", items: Sequence[Item]) -> list[Counter[str]]:
    """The tokens of each item's prompt by `PROMPT_PARTS`; their sum is the length of the prompt.

    The texts are rendered once more between private characters, which tell what each character of the prompt is.
    """
    from src.prompt.encode import Encoder

    prompt = dataclasses.replace(
        encoder.prompt,
        system=_marked(_OPEN["시스템"], encoder.prompt.system) if encoder.prompt.system else "",
        categories={key: _marked(_OPEN["질문"], text) for key, text in encoder.prompt.categories.items()},
    )
    marking = Encoder(
        encoder.tokenizer,
        prompt,
        name=encoder.name,
        chat_template=encoder.template,
        override=True,
        system_turn=encoder.system_turn,
    )
    counts = []
    for item, example in zip(items, encoder.for_scoring(items), strict=True):
        text, parts = _split_prompt(marking.prompt_text(_marked_item(item)))
        assert text == encoder.prompt_text(item), f"{encoder.name}: {item.id}"
        starts = encoder.token_starts(item)
        found = Counter(parts[min(start, len(parts) - 1)] for start in starts)
        found["틀"] += len(example.ids) - len(starts)  # a BOS in front
        counts.append(found)
    return counts


def _marked(opening: str, text: str) -> str:
    return f"{opening}{text}{_CLOSE}"


def _marked_item(item: Item) -> Item:
    first, second, third = (_marked(_OPEN["선택지"], option) for option in item.options)
    turns = tuple(
        dataclasses.replace(utterance, text=_marked(chr(_FIRST_TURN + turn), utterance.text))
        for turn, utterance in enumerate(item.dialogue)
    )
    return dataclasses.replace(item, dialogue=turns, options=(first, second, third))


def _split_prompt(rendered: str) -> tuple[str, list[str]]:
    """The text without its marks, and the part of each of its characters."""
    names = {character: part for part, character in _OPEN.items()}
    part, parts, text = "틀", [], []
    told: set[str] = set()
    for character in rendered:
        if character == _CLOSE:
            part = "틀"
        elif character in names:
            part = names[character]
        elif _FIRST_TURN <= ord(character) < ord(_CLOSE):
            # The prompt quotes the target utterances once more, behind the dialogue.
            part = "대상 발화" if character in told else "대화"
            told.add(character)
        else:
            parts.append(part)
            text.append(character)
    return "".join(text), parts
