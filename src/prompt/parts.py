"""Which token of a prompt belongs to which of its parts."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from src.data import Item

if TYPE_CHECKING:
    from src.prompt.encode import Encoder

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
