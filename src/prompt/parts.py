"""Which token of a prompt belongs to which of its parts: the system text, the dialogue, the options, …

The user's message is rendered once more with a private character before and after each text of the item. They tell
which part each character of the message belongs to. A token belongs to the part in which it starts.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from src.data import Item
from src.prompt.messages import PARTS, Prompt

if TYPE_CHECKING:
    from src.prompt.encode import Encoder

REST = "chat template"
"""The part of all text that belongs to no other part."""
ALL_PARTS = ("system", "examples", *PARTS, "bridge", REST)
PRIVATE_USE = range(0xE000, 0xF900)
"""Unicode's private characters, one of which begins each part and one of which ends it."""

IN_KOREAN = {"system": "시스템", "dialogue": "대화", "targets": "대상 발화", "question": "질문", "options": "선택지"}
PROMPT_PARTS = (*IN_KOREAN.values(), "틀")
"""The parts as figures name them. 틀: all that the prompt and the chat template put around the others."""


def pieces(prompt: Prompt, item: Item, order: str | None = None, *, reasoning: bool = False) -> list[tuple[str, str]]:
    """The user's message in pieces: (part, text) for a text of one of `PARTS`, ("", text) for the text between them."""
    plain = prompt.user_text(item, order, reasoning)
    free = [mark for mark in map(chr, PRIVATE_USE) if mark not in plain]  # an utterance may hold some of them
    end, *begins = free[: len(PARTS) + 1]
    begin = dict(zip(PARTS, begins, strict=True))
    text = prompt.user_text(item, order, reasoning, lambda part, words: f"{begin[part]}{words}{end}")
    part_of = {mark: part for part, mark in begin.items()} | {end: ""}
    # The text of the first piece, then the mark and the text of each that follows.
    first, *others = re.split(f"([{''.join(part_of)}])", text)
    marked = [("", first), *((part_of[mark], words) for mark, words in zip(others[::2], others[1::2], strict=True))]
    return [(part, words) for part, words in marked if part or words]


def message_parts(
    prompt: Prompt, item: Item, order: str | None = None, *, reasoning: bool = False
) -> list[tuple[str, str]]:
    """The user's message cut where another part begins: (part, text), in the order in which parts first appear.

    A part begins with the lines that head it: at the first line break after the part before it.
    """
    found: dict[str, str] = {}
    last = between = ""
    for part, words in pieces(prompt, item, order, reasoning=reasoning):
        if not part:
            between = words
            continue
        if part not in found:
            if found:
                line = between.find("\n") + 1 or len(between)
                found[last] += between[:line]
                between = between[line:]
            found[part], last = "", part
        found[last] += between + words
        between = ""
    if found:
        found[last] += between
    return list(found.items())


def token_parts(encoder: "Encoder", items: Sequence[Item], headings: bool = True) -> list[Counter[str]]:
    """For each item how many tokens its prompt has in each part, in the order of `ALL_PARTS`.

    headings: whether a part's heading in the user's message counts as that part, not as `REST`. The sum is the length
    of the prompt.
    """
    counts = []
    for item, example in zip(items, encoder.for_scoring(items), strict=True):
        parts = _parts_of_characters(encoder, item, headings)
        found = Counter(parts[min(start, len(parts) - 1)] for start in encoder.token_starts(item))
        found[REST] += len(example.ids) - found.total()  # a BOS that the tokenizer puts in front
        counts.append(Counter({part: found[part] for part in ALL_PARTS if found[part]}))
    return counts


def _parts_of_characters(encoder: "Encoder", item: Item, headings: bool) -> list[str]:
    """The part of each character of the prompt up to the letter; blanks at the edges of a part are of `REST`."""
    prompt, reasoning = encoder.prompt, encoder.reasoning
    text = encoder.prompt_text(item)
    bridge = prompt.reasoned("") if reasoning else ""
    parts = [REST] * len(text) + ["bridge"] * len(bridge)

    def name(words: str, part: str, start: int) -> int:
        """Assigns the part to `words`, searched for from `start`. Returns where they end."""
        words = words.strip()
        position = text.find(words, start)
        if position < 0:  # a chat template may move blanks
            return start
        parts[position : position + len(words)] = [part or REST] * len(words)
        return position + len(words)

    messages = prompt.render(item, reasoning=reasoning).messages
    own = max(text.rfind(messages[-1]["content"]), 0)
    if messages[0]["role"] == "system":
        name(messages[0]["content"], "system", 0)
    if encoder.library:
        example = prompt.render(encoder.library.choose(item)[0], reasoning=reasoning).messages[-1]
        start = max(text.find(example["content"]), 0)
        parts[start:own] = ["examples"] * (own - start)
    position = own
    for part, words in (message_parts if headings else pieces)(prompt, item, reasoning=reasoning):
        position = name(words, part, position)
    return parts


def prompt_parts(encoder: "Encoder", items: Sequence[Item]) -> list[Counter[str]]:
    """The tokens of each item's prompt by `PROMPT_PARTS`, headings not counted as part of what they head."""
    counts = []
    for found in token_parts(encoder, items, headings=False):
        told: Counter[str] = Counter()
        for part, count in found.items():
            told[IN_KOREAN.get(part, "틀")] += count
        counts.append(told)
    return counts
