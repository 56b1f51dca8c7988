"""Preference pairs as texts, for other tools and for readers: the right answer of an item against its wrong ones.

Both sides of a pair have the form that the prompt gives answers, or both are the letter alone. The pairs of an item
depend on the recipe alone.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from src import task
from src.data import Item
from src.model.recipes import Recipe
from src.prompt.fewshot import Library
from src.prompt.prompts import Message, Prompt
from src.train.objectives import make_objective

FORMS = ("chat", "merged", "plain")
"""How messages become a prompt's text: by the backbone's chat template; by that template with the system text in front
of the user's; or as bare texts, one below the other.
"""


def text_pairs(
    items: Sequence[Item],
    recipe: Recipe,
    prompt: Prompt,
    render: Callable[[Sequence[Message]], Any],
    end: str,
    library: Library | None = None,
) -> Iterator[dict[str, Any]]:
    """Each pair of the labelled `items` as texts: id, prompt, chosen, rejected, as other tools take them.

    render: messages → the text in front of the answer, or whatever stands for it; end: the text that ends a whole
    answer; library: where a prompt with examples takes them from.
    """
    objective, letters = make_objective(recipe), task.current().letters
    for item in items:
        assert item.label is not None, f"{item.id} has no label"
        rendered = prompt.render(item, examples=library.choose(item) if library else ())
        whole = recipe.orpo_answer == "whole"
        answers = [f"{text}{end}" for text in rendered.answers] if whole else letters
        text = render(rendered.messages)
        for wrong in objective.wrong_options(item):
            yield {"id": item.id, "prompt": text, "chosen": answers[item.label], "rejected": answers[wrong]}


def plainly(messages: Sequence[Message]) -> str:
    """The messages' texts without any template; the answer begins on a new line."""
    return "".join(f"{message['content']}\n\n" for message in messages)
