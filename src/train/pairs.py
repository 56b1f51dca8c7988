"""Preference pairs: the right answer of an item against its wrong ones, all in the form that the prompt gives answers.

A pair differs in what it says and in nothing else: both sides are "letter. text", or both the letter alone, so that
neither length nor punctuation tells them apart. Which pairs an item gives depends on the recipe and on nothing else.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from src.data import Item
from src.model.recipes import ORPO, Recipe
from src.prompt.prompts import LETTERS, Message, Prompt

FORMS = ("chat", "merged", "plain")
"""How the text of a prompt is put together: by the backbone's chat template; by it, with the system's text in front of
the user's; or the bare texts, one below the other."""


def wrong_options(item: Item, recipe: Recipe) -> tuple[int, ...]:
    """Places of the options that the right one of `item` is preferred to: both, or one drawn by seed and item id.

    None where the recipe's objective knows no wrong answers.
    """
    if recipe.objective != ORPO:
        return ()
    others = tuple(place for place in range(len(item.options)) if place != item.label)
    return others if recipe.orpo_pairs == "both" else (random.Random(f"{recipe.seed} {item.id}").choice(others),)


def text_pairs(
    items: Sequence[Item], recipe: Recipe, prompt: Prompt, render: Callable[[Sequence[Message]], str], end: str
) -> Iterator[dict[str, Any]]:
    """Each pair of the labelled `items` as texts: id, prompt, chosen, rejected, as other tools take them.

    render: messages → the text in front of the answer; end: what closes a whole answer.
    """
    for item in items:
        assert item.label is not None, f"{item.id} has no label"
        rendered = prompt.render(item)
        whole = recipe.orpo_answer == "whole"
        answers = [f"{text}{end}" for text in rendered.answers] if whole else LETTERS
        text = render(rendered.messages)
        for place in wrong_options(item, recipe):
            yield {"id": item.id, "prompt": text, "chosen": answers[item.label], "rejected": answers[place]}


def plainly(messages: Sequence[Message]) -> str:
    """The messages' texts without any template; the answer begins a line of its own."""
    return "".join(f"{message['content']}\n\n" for message in messages)
