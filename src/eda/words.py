"""The content words of a text, read by its morphemes."""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

from src.data import Item
from src.eda.measures import dialogues

if TYPE_CHECKING:
    from kiwipiepy import Kiwi

CONTENT_TAGS = ("NNG", "NNP", "XR", "VV", "VA")
LIGHT_WORDS = frozenset(
    ("하다", "되다", "있다", "없다", "같다", "그렇다", "이렇다", "저렇다", "어떻다", "어쩌다", "그러다")
)
"""Verbs and adjectives that say nothing by themselves and would lead every list."""

read_already: dict[str, tuple[str, ...]] = {}
"""Text → its content words, for all texts that were asked for so far."""


@cache
def _kiwi() -> "Kiwi":
    from kiwipiepy import Kiwi

    return Kiwi(num_workers=1)


def read_words(texts: Iterable[str]) -> None:
    """Finds the content words of many texts at once, which is quicker than one by one."""
    new = [text for text in dict.fromkeys(texts) if text not in read_already]
    # Masked names stay in: Kiwi reads "name1" as foreign letters and a number, which are no content words. Without the
    # name, it would read the particle after it as a noun.
    for text, morphemes in zip(new, _kiwi().tokenize(new), strict=True):
        forms = [
            morpheme.form + ("다" if morpheme.tag.startswith("V") else "")
            for morpheme in morphemes
            if morpheme.tag.split("-")[0] in CONTENT_TAGS
        ]
        read_already[text] = tuple(form for form in forms if form not in LIGHT_WORDS)


def content_words(text: str) -> tuple[str, ...]:
    """Nouns, roots, verbs and adjectives (these two in dictionary form), in order, without `LIGHT_WORDS`."""
    if text not in read_already:
        read_words([text])
    return read_already[text]


def texts_of(items: Iterable[Item]) -> list[str]:
    """Every utterance and option."""
    items = list(items)
    said = [utterance.text for item in dialogues(items) for utterance in item.dialogue]
    return said + [option for item in items for option in item.options]


def spoken_words(items: Iterable[Item]) -> Counter[str]:
    """Content words of the utterances; dialogues count once."""
    lines = [utterance.text for item in dialogues(items) for utterance in item.dialogue]
    read_words(lines)
    return Counter(word for line in lines for word in content_words(line))


def overlap(item: Item, option: str) -> float:
    """The share of the option's content words that the dialogue has as well; 0 for an option without any."""
    own = content_words(option)
    said = {word for utterance in item.dialogue for word in content_words(utterance.text)}
    return sum(word in said for word in own) / len(own) if own else 0.0
