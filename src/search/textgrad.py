"""One step of TextGrad (Yuksekgonul et al. 2024, arXiv:2406.07496) on a prompt.

The variable is the system text and, if asked, the category sentences. The loss is a text on what the model under test
got right and wrong. A language model, the critic, reads it, criticises the variable (the text's gradient), then writes
a new text.
"""

import importlib
import logging
import math
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jinja2.meta
import jinja2.sandbox
import yaml

from src import task
from src.console.cli import UserError
from src.data import Item
from src.files.yaml_files import load_yaml
from src.prompt.prompts import Prompt, make_prompt
from src.score.item_scores import ItemScores
from src.search.calls import Calls
from src.search.settings import Search, SearchSettings

SYSTEM = (
    "the system text of a prompt for a language model that answers Korean multiple-choice questions about dialogues"
)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Proposal:
    """A new prompt, None where the critic's answer held none, the gradient, and what is wrong with the answer."""

    prompt: Prompt | None
    gradient: str
    problem: str = ""


def propose(search: Search, current: Prompt, right: Sequence[int], number: int) -> Proposal:
    """One step on `current`. right: for each item learned from, whether it is answered rightly; number: of the step."""
    textgrad = load_textgrad()
    from textgrad.autograd.string_based_ops import StringBasedFunction

    settings = search.settings
    critic = _make_critic(textgrad, search.calls)
    variables = _make_variables(textgrad, current, settings)
    shown = batch(search.learn, right, settings, number)
    report = describe(shown, search.score(current, shown))
    function = StringBasedFunction(lambda **texts: report, purpose())
    role = "the model's answers to some questions, held against the right ones"
    loss = function(variables, response_role_description=role)
    loss.backward(critic)
    gradient = "\n\n".join(f"[{key}]\n{variable.get_gradient_text()}" for key, variable in variables.items())
    optimizer = textgrad.TGD(list(variables.values()), engine=critic, constraints=constraints(current, settings))
    try:
        optimizer.step()
    except IndexError:  # textgrad's, where an answer has no new text in it
        return Proposal(None, gradient, "the critic's answer holds no new text between its tags")
    texts = {key: variable.value.strip() for key, variable in variables.items()}
    return _new_prompt(current, texts, gradient)


def _new_prompt(current: Prompt, texts: Mapping[str, str], gradient: str) -> Proposal:
    """`current` with new texts."""
    changes: dict[str, Any] = {"system": texts["system"]}
    for key in [key for key in texts if key != "system"]:
        try:
            changes[key] = load_yaml(texts[key], key)
        except UserError:
            return Proposal(None, gradient, f"the new {key} are no YAML")
    try:
        return Proposal(make_prompt(yaml.safe_load(current.text) | changes, "the new prompt"), gradient)
    except UserError as error:
        return Proposal(None, gradient, str(error))


def _make_critic(textgrad: Any, calls: Calls) -> Any:
    class Critic(textgrad.EngineLM):
        model_string = "critic"

        def generate(self, prompt: Any, system_prompt: str | None = None, **keys: Any) -> str:
            return calls(str(prompt), system_prompt or "")

        __call__ = generate

    return Critic()


def _make_variables(textgrad: Any, prompt: Prompt, settings: SearchSettings) -> dict[str, Any]:
    """The texts that may change, by their key in the prompt."""

    class Whole(textgrad.Variable):
        """A variable that the critic sees in full; textgrad shows ten words of either end."""

        def get_short_value(self, n_words_offset: int = 10) -> str:
            return str(self.value)

    variables = {"system": Whole(prompt.system, role_description=SYSTEM)}
    for key, role in text_roles().items():
        texts = getattr(prompt, key)
        if settings.categories and texts:
            ordered = {category: texts[category] for category in task.current().categories}
            lines = yaml.safe_dump(ordered, allow_unicode=True, sort_keys=False, width=10_000).strip()
            variables[key] = Whole(lines, role_description=role)
    return variables


# Texts for the critic. Its answers are kept under the hash of these texts, so that a search can resume.


def text_roles() -> dict[str, str]:
    categories = f"each of the {_number(len(task.current().categories))} categories, as YAML, one line a category"
    return {
        "categories": f"the question asked for {categories}",
        "guidance": f"what to look for in {categories}",
    }


def purpose() -> str:
    return (
        f"The prompt is put in front of a dialogue, a question and {_number(len(task.current().options))} options. "
        "A language model answers with the most likely letter. "
        "The output lists questions, the right letter, and the probability that the model gave to each letter. "
        "The metric is the share of questions with the right letter most likely."
    )


def constraints(prompt: Prompt, settings: SearchSettings) -> list[str]:
    names = sorted(placeholders(prompt.system))
    kept = f"Keep the placeholders {', '.join(f'{{{{ {name} }}}}' for name in names)} as they are." if names else ""
    categories = task.current().categories
    korean = " in Korean" if any("가" <= sign <= "힣" for name in categories for sign in name) else ""
    keys = f"Texts in YAML keep their {_number(len(categories))} keys{korean}, each with one line of text."
    return [
        "The text must work for any dialogue: it names no person, dialogue or option of the examples.",
        "The model answers with one letter and nothing else; the text must not ask for another form of answer.",
        "Write in the languages of the present text.",
        f"The system text has at most {settings.max_tokens} tokens, some {settings.max_tokens * 2} characters.",
        kept or "Use no curly braces.",
        *([keys] if settings.categories else []),
    ]


def batch(items: Sequence[Item], right: Sequence[int], settings: SearchSettings, number: int) -> list[Item]:
    """The items that the critic reads: three missed ones for each right one, as far as there are enough."""
    rng = random.Random(f"{settings.seed}-{number}")
    missed = [item for item, hit in zip(items, right, strict=True) if not hit]
    others = [item for item, hit in zip(items, right, strict=True) if hit]
    wanted = min(len(missed), math.ceil(settings.batch_size * 3 / 4))
    return rng.sample(missed, wanted) + rng.sample(others, min(len(others), settings.batch_size - wanted))


def describe(items: Sequence[Item], scores: Sequence[ItemScores]) -> str:
    """The model's answers, as text."""
    letters = task.current().letters
    blocks = []
    for item, one in zip(items, scores, strict=True):
        assert item.label is not None
        turns = [f"{turn.speaker}: {turn.text}" for turn in item.dialogue]
        targets = [f"{turn.speaker}: {turn.text}" for turn in item.target_utterances]
        options = [f"{letter}. {text}" for letter, text in zip(letters, item.options, strict=True)]
        shares = ", ".join(
            f"{letter} {math.exp(value):.2f}" for letter, value in zip(letters, one.logprobs, strict=True)
        )
        verdict = "right" if one.prediction == item.label else "WRONG"
        told = f"right letter: {letters[item.label]}; the model's probabilities: {shares}: {verdict}"
        head = [f"Question of the category {item.category}", "Dialogue:", *turns, "Target utterances:", *targets]
        blocks.append("\n".join([*head, "Options:", *options, told]))
    right = sum(one.prediction == item.label for item, one in zip(items, scores, strict=True))
    return "\n\n".join([*blocks, f"Of these {len(items)} questions {right} were answered rightly."])


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def placeholders(text: str) -> set[str]:
    """The names that a template fills in."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
    return jinja2.meta.find_undeclared_variables(environment.parse(text))


def load_textgrad() -> ModuleType:
    """Imports textgrad without what its import otherwise does: it writes a log folder here, and its litellm fetches a
    list of prices and reads keys from `.env`.
    """
    if "textgrad" not in sys.modules:
        log = tempfile.mkdtemp()
        values = {"TEXTGRAD_LOG_DIR": log, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
        before = {name: os.environ.get(name) for name in values}
        os.environ |= values
        try:
            importlib.import_module("textgrad")
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        logger = logging.getLogger("textgrad")
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = False  # every call is in our own file
        shutil.rmtree(log, ignore_errors=True)
    return sys.modules["textgrad"]
