"""Prompt files: how an item becomes chat messages and an answer.

A prompt is one YAML file in `resource/prompts/`. Its texts are Jinja2 templates, as chat templates are, over

    dialogue    the utterances, each with .speaker (1 or 2), .text and .target (true for a target utterance)
    targets     the target utterances alone, in dialogue order
    category    원인, 후행사건, 전제, 동기 or 반응
    question    the sentence that the prompt's `categories` gives for it
    options     the shown options, each with .letter and .text

and, in `answer`, `letter` and `option` of the option that is answered. Everything that changes between items
belongs into `user`, behind what they share: items that begin alike are computed once.
"""

import dataclasses
import functools
import hashlib
import itertools
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import yaml

from src.cli import UserError, nearest
from src.data import CATEGORIES, Item, Utterance

PROMPTS = Path("resource/prompts")
LETTERS = ("A", "B", "C")
ORDERS = ("012", "021", "102", "120", "201", "210")
"""All orders of the options: in "201", A shows option 2, B option 0 and C option 1. The first is the file's own."""

Message = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Rendered:
    """One item as chat messages, and for each letter the text that would answer it."""

    messages: tuple[Message, ...]
    answers: tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The texts of one prompt file; `system` may be empty. See the module's docstring for what the templates may
    use.
    """

    name: str
    system: str
    user: str
    categories: dict[str, str]
    answer: str
    description: str = ""

    @property
    def text(self) -> str:
        """The prompt as YAML, for a run's record: the run can be scored with it when the file has changed or gone."""
        return yaml.safe_dump(dataclasses.asdict(self), allow_unicode=True, sort_keys=False, width=120)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def render(self, item: Item, order: str = ORDERS[0]) -> Rendered:
        """`item` with its options shown in `order` (one of `ORDERS`)."""
        assert order in ORDERS, order
        shown = [
            {"letter": letter, "text": item.options[int(index)]} for letter, index in zip(LETTERS, order, strict=True)
        ]
        dialogue = [
            {"speaker": utterance.speaker, "text": utterance.text, "target": utterance.id in item.targets}
            for utterance in item.dialogue
        ]
        values = {
            "dialogue": dialogue,
            "targets": [utterance for utterance in dialogue if utterance["target"]],
            "category": item.category,
            "question": self.categories[item.category],
            "options": shown,
        }
        system = _fill(self.system, values)
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": _fill(self.user, values)})
        a, b, c = (_fill(self.answer, {**values, "letter": one["letter"], "option": one["text"]}) for one in shown)
        return Rendered(tuple(messages), (a, b, c))


@functools.cache
def _template(text: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False
    )
    return environment.from_string(text)


def _fill(text: str, values: dict[str, Any]) -> str:
    return _template(text).render(values).strip()


def available() -> list[str]:
    """Names of the prompts in `resource/prompts/`."""
    return sorted(path.stem for path in PROMPTS.glob("*.yaml"))


def load_prompt(name: str | Path) -> Prompt:
    """The prompt called `name` in `resource/prompts/`, or the YAML file at that path, checked by rendering an item
    of every category.
    """
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else PROMPTS / f"{name}.yaml"
    if not path.is_file():
        known = available()
        raise UserError(
            f"there is no prompt {str(name)!r} (looked for {path}). Known: "
            f"{', '.join(known)}.{nearest(str(name), known)}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: this is not UTF-8: {error}. Save it as UTF-8.") from error
    return parse_prompt(text, str(path), path.stem)


def parse_prompt(text: str, where: str, name: str = "") -> Prompt:
    """A prompt from YAML `text`; `where` names it in error messages."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: this is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(
            f"{where}: a prompt is a mapping with system, user, categories and answer; found {type(raw).__name__}."
        )
    raw = {"name": name, "system": "", **raw}
    fields = [field.name for field in dataclasses.fields(Prompt)]
    problems = [f"unknown key {key!r}.{nearest(str(key), fields)}" for key in raw if key not in fields]
    problems += [f"{key!r} is missing" for key in ("user", "categories", "answer") if key not in raw]
    problems += [
        f"{key!r} must be text, found {type(raw[key]).__name__}"
        for key in ("name", "system", "user", "answer", "description")
        if not isinstance(raw.get(key, ""), str)
    ]
    categories = raw.get("categories")
    if categories is not None and not (
        isinstance(categories, dict)
        and set(categories) == set(CATEGORIES)
        and all(isinstance(sentence, str) for sentence in categories.values())
    ):
        problems.append(f"'categories' needs one sentence for each of {', '.join(CATEGORIES)}")
    if problems:
        raise UserError(f"{where}: " + "; ".join(problems) + f". Allowed keys: {', '.join(fields)}.")
    prompt = Prompt(**raw)
    _check(prompt, where)
    return prompt


def _check(prompt: Prompt, where: str) -> None:
    """Renders a probe of every category and target: nothing may be lost, and each answer starts with its letter."""
    asked: dict[str, str] = {}
    for category, target in itertools.product(CATEGORIES, ("1", "2")):
        utterances = (Utterance("1", 1, "probe-first"), Utterance("2", 2, "probe-second"))
        probe = Item("probe", utterances, (target,), category, ("probe-0", "probe-1", "probe-2"), 0, {})
        try:
            rendered = prompt.render(probe)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise UserError(
                f"{where}: the template cannot be filled ({error}). "
                "It may use dialogue, targets, category, question, options, and in the answer letter and option."
            ) from error
        text = "\n".join(message["content"] for message in rendered.messages)
        lost = [word for word in ("probe-first", "probe-second", *probe.options) if word not in text]
        if lost:
            raise UserError(f"{where}: the prompt leaves out part of the item: {', '.join(lost)} ({category}).")
        if text in asked:
            raise UserError(
                f"{where}: the prompt is the same for {asked[text]} and for {category} about utterance {target}; "
                "it must show which utterances are the target (targets, turn.target) and what is asked (question)."
            )
        asked[text] = f"{category} about utterance {target}"
        for letter, answer in zip(LETTERS, rendered.answers, strict=True):
            if not answer.startswith(letter):
                raise UserError(
                    f"{where}: the answer must start with the option's letter, since the letter is what is read; "
                    f"for {letter} it is {answer!r}."
                )
