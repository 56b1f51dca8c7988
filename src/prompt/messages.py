"""Item → chat messages: a prompt's texts, filled for one item.

A prompt's texts are Jinja2 templates, as chat templates are. They may use

    dialogue    the utterances, each with .speaker (1, 2, …), .text and .target (true for a target utterance)
    targets     the target utterances alone, in dialogue order
    category    one of the task's categories
    question    the sentence that the prompt's `categories` gives for it
    guidance    what the prompt's `guidance` says about it, empty without one
    reasoning   true when reasoning is generated before the letter is read
    options     the options as shown, each with .letter and .text

and, in `answer`, `letter` and `option` of the option that is answered. Put everything that differs between items into
`user`, after what they share: a common prefix of items is computed only once.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jinja2

from src import task
from src.console.cli import UserError
from src.data import Item
from src.files.templates import BoundedEnvironment, bounded, why
from src.files.yaml_files import dump_yaml
from src.items.item import HALF, regular

Message = dict[str, str]

PARTS = ("dialogue", "targets", "question", "options")
"""Parts of the user's message, by the names that `Prompt.user_text` gives to `mark`."""
BRIDGE = "\n\n{}\n"
"""How a prompt's `bridge` follows generated reasoning. The line break at its end makes the letter after it a token of
its own in every tokenizer.
"""
OPTIONAL = ("guidance", "bridge", "examples")
"""Keys that were added later. They are left out where unset, so older prompts keep their text and sha256."""


@dataclasses.dataclass(frozen=True)
class Rendered:
    """One item as chat messages, and for each letter the text that would answer it."""

    messages: tuple[Message, ...]
    answers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Examples:
    """Few-shot: `count` worked examples of the item's category, from the training split (`src/prompt/fewshot.py`).

    choose      "seed": the same for all items of a category, drawn by `seed`; "near": those nearest to the item
    """

    count: int
    choose: str = "seed"
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The texts of one prompt file; `system` may be empty.

    categories  for each category the sentence that asks for it
    guidance    for each category what to look for, or empty
    bridge      the words between generated reasoning and the letter; empty if the prompt is not for reasoning
    """

    name: str
    system: str
    user: str
    categories: dict[str, str]
    answer: str
    description: str = ""
    guidance: dict[str, str] = dataclasses.field(default_factory=dict)
    bridge: str = ""
    examples: Examples | None = None

    @property
    def text(self) -> str:
        """The prompt as YAML, for a run's record: the run can be scored even if the file has changed or is gone."""
        raw = dataclasses.asdict(self)
        kept = {key: value for key, value in raw.items() if value or key not in OPTIONAL}
        return dump_yaml(kept)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def render(
        self, item: Item, order: str | None = None, *, reasoning: bool = False, examples: Sequence[Item] = ()
    ) -> Rendered:
        """`item` as messages, after labelled `examples`. With `reasoning` it asks for reasoning.

        order  which option is shown under which letter: in "201" A shows option 2, B option 0 and C option 1. None
               stands for the file's own order, in which examples are always shown.

        Unfillable, a UserError, names the item that the templates cannot be filled for.
        """
        try:
            with bounded():
                return self._rendered(item, order, reasoning, examples)
        except Unfillable as error:
            raise error if error.where else Unfillable(error.why, f"prompt {self.name}, item {item.id}") from error
        except (TimeoutError, MemoryError) as error:
            raise Unfillable(why(error), f"prompt {self.name}, item {item.id}") from error

    def _rendered(self, item: Item, order: str | None, reasoning: bool, examples: Sequence[Item]) -> Rendered:
        values = self._values(item, order, reasoning)
        system = _fill(self.system, values)
        messages = [{"role": "system", "content": system}] if system else []
        for example in examples:
            assert example.label is not None, f"{example.id} has no label"
            worked = self.render(example, reasoning=reasoning)
            answer = worked.answers[example.label]
            if reasoning:
                answer = self.reasoned(reasoning_of(example) or "") + answer
            messages += [worked.messages[-1], {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": _fill(self.user, values)})
        answers = [
            _fill(self.answer, {**values, "letter": one["letter"], "option": one["text"]}) for one in values["options"]
        ]
        return Rendered(tuple(messages), tuple(answers))

    def user_text(
        self, item: Item, order: str | None, reasoning: bool, mark: Callable[[str, str], str] | None = None
    ) -> str:
        """The user's message about `item`. mark: (part, text) → the text to put in its place."""
        with bounded():
            return _fill(self.user, self._values(item, order, reasoning, mark))

    def reasoned(self, text: str) -> str:
        """`text` and the words that lead to the letter, so that the answer can follow at once."""
        bridge = BRIDGE.format(self.bridge)
        return text.strip() + bridge if text.strip() else bridge.lstrip()

    def _values(
        self, item: Item, order: str | None, reasoning: bool, mark: Callable[[str, str], str] | None = None
    ) -> dict[str, Any]:
        """The variables of the templates for `item`."""
        current = task.current()
        order = current.file_order if order is None else order
        assert sorted(order) == list(current.file_order), order

        def marked(part: str, text: str) -> str:
            return mark(part, text) if mark else text

        def turns(part: str) -> list[dict[str, Any]]:
            return [
                {"speaker": one.speaker, "text": marked(part, one.text), "target": one.id in item.targets}
                for one in item.dialogue
            ]

        guidance = self.guidance.get(item.category)
        return {
            "dialogue": turns("dialogue"),
            "targets": [turn for turn in turns("targets") if turn["target"]],
            "category": item.category,
            "question": marked("question", self.categories[item.category]),
            "guidance": marked("question", guidance) if guidance else "",
            "reasoning": reasoning,
            "options": [
                {"letter": letter, "text": marked("options", item.options[int(index)])}
                for letter, index in zip(current.letters, order, strict=True)
            ],
        }


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """`messages` with a system text put before the user's, for chat templates that take no system turn."""
    if messages[0]["role"] != "system":
        return list(messages)
    system, user, *rest = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]


def reasoning_of(item: Item) -> str | None:
    """The reasoning that a data file has for an item, under the key `reasoning` of its object; official files have
    none.
    """
    text = item.source.get("reasoning")
    return regular(text) if isinstance(text, str) and text.strip() else None


class Unfillable(UserError):
    """A template fails, or does not end. `where` names the file, or the prompt and the item, once they are known."""

    def __init__(self, why: str, where: str = "") -> None:
        self.why, self.where = why, where
        super().__init__(
            f"{where}{': ' if where else ''}the template cannot be filled ({why}). "
            "It may use dialogue, targets, category, question, guidance, reasoning, options, "
            "and in the answer letter and option."
        )


@functools.lru_cache(64)
def _template(text: str) -> jinja2.Template:
    environment = BoundedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False
    )
    return environment.from_string(text)


def _fill(text: str, values: dict[str, Any]) -> str:
    try:
        filled = _template(text).render(values).strip()
    except Exception as error:  # a template can raise anything that Python can
        raise Unfillable(str(error) if isinstance(error, jinja2.TemplateError) else why(error)) from error
    if HALF.search(filled):
        raise Unfillable("it makes half a character")
    return filled
