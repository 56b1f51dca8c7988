"""Searching for a better prompt with TextGrad (Yuksekgonul et al. 2024, arXiv:2406.07496).

The variable is the system text and, if asked, the category sentences. The model under test is a black box: it is scored
on labelled items, and what it got right and wrong is the loss that a language model, the critic, reads. The critic says
what is amiss (the text's gradient), then writes a new text. A new prompt has to keep the prompt's contract, must not be
worse on the items it learns from, and is kept only if it wins on items held out from the search.
"""

import dataclasses
import importlib
import json
import logging
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2.meta
import jinja2.sandbox
import yaml

from src.console.cli import UserError
from src.console.words import counted
from src.data import CATEGORIES, Item
from src.files.writing import write_json, write_text
from src.files.yaml_files import load_yaml
from src.prompt.prompts import LETTERS, ORDERS, Prompt, make_prompt
from src.score.item_scores import ItemScores
from src.search.critics import Calls, Spent
from src.worth.metrics import mcnemar, wilson

Scorer = Callable[[Prompt, Sequence[Item]], list[ItemScores]]

SYSTEM = (
    "the system text of a prompt for a language model that answers Korean multiple-choice questions about dialogues"
)
TEXTS = {
    "categories": "the question asked for each of the five categories, as YAML, one line a category",
    "guidance": "what to look for in each of the five categories, as YAML, one line a category",
}
PURPOSE = (
    "The prompt is put in front of a dialogue, a question and three options. A language model answers with the most "
    "likely letter. The output lists questions, the right letter, and the probability that the model gave to each "
    "letter. The metric is the share of questions with the right letter most likely."
)


@dataclasses.dataclass(frozen=True)
class Search:
    """What decides a search.

    batch_size      items that the critic reads in a step, missed ones first
    categories      the category sentences are variables, too
    alpha, margin   a prompt is kept when it wins on the held-out items with a two-sided p of McNemar's exact test up to
                    alpha, or, with a margin, when it gets at least this share more of them right
    held_out        share of the dialogues that are held out
    max_calls       of the critic, over all sessions of a search
    max_tokens      of the system text
    """

    steps: int = 10
    batch_size: int = 8
    categories: bool = False
    alpha: float = 0.05
    margin: float | None = None
    held_out: float = 0.5
    max_calls: int = 60
    max_tokens: int = 768
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"--{name}: found {getattr(self, name)}, allowed: {allowed}"
            for name, fine, allowed in (
                ("steps", self.steps >= 1, "1 or more"),
                ("batch_size", self.batch_size >= 1, "1 or more"),
                ("alpha", 0 < self.alpha <= 1, "above 0, up to 1"),
                ("margin", self.margin is None or 0 < self.margin < 1, "between 0 and 1"),
                ("held_out", 0 < self.held_out < 1, "between 0 and 1"),
                ("max_calls", self.max_calls >= 1, "1 or more"),
                ("max_tokens", self.max_tokens >= 1, "1 or more"),
            )
            if not fine
        ]
        if problems:
            raise UserError("; ".join(problems) + ".")


@dataclasses.dataclass(frozen=True)
class Step:
    """One step, as it lies on disk. `right`, for "learn" and "held": 1 for each item that the step's prompt gets right,
    None where it was not scored. `kept`: it is the prompt from here on; `reason` says why, or why not.
    """

    number: int
    kept: bool
    reason: str
    prompt: str
    gradient: str
    right: dict[str, list[int] | None]
    calls: int
    seconds: float

    @property
    def accuracy(self) -> tuple[float, float, float] | None:
        """(share, low, high) of the held-out items, with the 95 % Wilson interval."""
        right = self.right["held"]
        return (sum(right) / len(right), *wilson(sum(right), len(right))) if right else None


def search(
    start: Prompt,
    learn: Sequence[Item],
    held: Sequence[Item],
    scorer: Scorer,
    calls: Calls,
    settings: Search,
    folder: Path,
    tokens: Callable[[str], int],
    tell: Callable[[Step], None] = lambda step: None,
) -> tuple[list[Step], str]:
    """All steps from the start (number 0) on, and why they end. Those in `folder` are read, not made again.

    tokens: counts a text's; tell: gets each new step.
    """
    if (length := tokens(start.system)) > settings.max_tokens:
        raise UserError(f"the system text has {length} tokens; allowed: --max_tokens, now {settings.max_tokens}.")
    steps = read_steps(folder)
    current = start
    for step in steps:
        current = parse(step.prompt) if step.kept else current
    while len(steps) <= settings.steps:
        started, before = time.monotonic(), calls.count
        number = len(steps)
        if not steps:
            rows: dict[str, list[int] | None] = {
                "learn": _right(learn, scorer(start, learn)),
                "held": _right(held, scorer(start, held)),
            }
            step = Step(0, True, "the start", start.text, "", rows, 0, time.monotonic() - started)
        else:
            last = next(one for one in reversed(steps) if one.kept)
            try:
                candidate, gradient, problem = propose(current, last, learn, scorer, calls, settings, number)
            except Spent:
                return steps, f"the cap of {counted(settings.max_calls, 'call')} is reached (--max_calls)"
            tried = {one.prompt: one.number for one in steps}
            right: dict[str, list[int] | None] = {"learn": None, "held": None}
            kept = False
            if candidate is not None and not problem:
                problem = broken(candidate, start, settings, tokens)
            if candidate is not None and not problem and candidate.text in tried:
                problem = f"the same as in step {tried[candidate.text]}"
            if candidate is not None and not problem:
                kept, problem, right = judge(candidate, last, learn, held, scorer, settings)
            text = candidate.text if candidate is not None else ""
            spent = calls.count - before
            step = Step(number, kept, problem, text, gradient, right, spent, time.monotonic() - started)
            if kept and candidate is not None:
                current = candidate
        write_step(folder, step)
        steps.append(step)
        tell(step)
    return steps, f"{counted(settings.steps, 'step')} {'is' if settings.steps == 1 else 'are'} done"


def propose(
    current: Prompt, last: Step, learn: Sequence[Item], scorer: Scorer, calls: Calls, settings: Search, number: int
) -> tuple[Prompt | None, str, str]:
    """(new prompt or None, gradient, what is wrong with the answer) of one TextGrad step on `current`."""
    textgrad = load_textgrad()
    from textgrad.autograd.string_based_ops import StringBasedFunction

    class Whole(textgrad.Variable):  # type: ignore[name-defined]
        """A variable that the critic sees in full; textgrad shows ten words of either end."""

        def get_short_value(self, n_words_offset: int = 10) -> str:
            return str(self.value)

    class Critic(textgrad.EngineLM):  # type: ignore[name-defined]
        model_string = "critic"

        def generate(self, prompt: Any, system_prompt: str | None = None, **keys: Any) -> str:
            return calls(str(prompt), system_prompt or "")

        __call__ = generate

    critic = Critic()
    shown = batch(learn, last.right["learn"] or [], settings, number)
    report = describe(shown, scorer(current, shown))
    variables = {"system": Whole(current.system, role_description=SYSTEM)}
    for key, role in TEXTS.items():
        if settings.categories and getattr(current, key):
            variables[key] = Whole(_lines(getattr(current, key)), role_description=role)
    function = StringBasedFunction(lambda **texts: report, PURPOSE)
    role = "the model's answers to some questions, held against the right ones"
    loss = function(variables, response_role_description=role)
    loss.backward(critic)
    gradient = "\n\n".join(f"[{key}]\n{variable.get_gradient_text()}" for key, variable in variables.items())
    optimizer = textgrad.TGD(list(variables.values()), engine=critic, constraints=constraints(current, settings))
    try:
        optimizer.step()
    except IndexError:  # so textgrad says that an answer has no new text in it
        return None, gradient, "the critic's answer holds no new text between its tags"
    texts = {key: variable.value.strip() for key, variable in variables.items()}
    changes: dict[str, Any] = {"system": texts["system"]}
    for key in TEXTS:
        if key in texts:
            try:
                changes[key] = load_yaml(texts[key], key)
            except UserError:
                return None, gradient, f"the new {key} are no YAML"
    raw = yaml.safe_load(current.text) | changes
    try:
        return make_prompt(raw, "the new prompt"), gradient, ""
    except UserError as error:
        return None, gradient, str(error)


def constraints(prompt: Prompt, settings: Search) -> list[str]:
    names = sorted(placeholders(prompt.system))
    kept = f"Keep the placeholders {', '.join(f'{{{{ {name} }}}}' for name in names)} as they are." if names else ""
    return [
        "The text must work for any dialogue: it names no person, dialogue or option of the examples.",
        "The model answers with one letter and nothing else; the text must not ask for another form of answer.",
        "Write in the languages of the present text.",
        f"The system text has at most {settings.max_tokens} tokens, some {settings.max_tokens * 2} characters.",
        kept or "Use no curly braces.",
        *(["Texts in YAML keep their five keys in Korean, each with one line of text."] if settings.categories else []),
    ]


def broken(candidate: Prompt, start: Prompt, settings: Search, tokens: Callable[[str], int]) -> str:
    """How a prompt breaks the contract of the one the search started with; empty when it does not. That it can be
    filled and loses nothing of an item is checked when it is made.
    """
    now, then = placeholders(candidate.system), placeholders(start.system)
    if now != then:
        told = {"lost the placeholder": sorted(then - now), "a new placeholder": sorted(now - then)}
        return "; ".join(f"{what} {', '.join(names)}" for what, names in told.items() if names)
    if start.system and not candidate.system:
        return "the system text is empty"
    length = tokens(candidate.system)
    return f"the system text has {length} tokens, allowed {settings.max_tokens}" if length > settings.max_tokens else ""


def judge(
    candidate: Prompt,
    last: Step,
    learn: Sequence[Item],
    held: Sequence[Item],
    scorer: Scorer,
    settings: Search,
) -> tuple[bool, str, dict[str, list[int] | None]]:
    """(kept, reason, right answers). The held-out items are looked at only when those learned from speak for it."""
    right: dict[str, list[int] | None] = {"learn": None, "held": None}
    try:
        right["learn"] = _right(learn, scorer(candidate, learn))
        gained, lost = paired(right["learn"], last.right["learn"])
        if gained < lost:
            return False, f"worse on the items it learns from, +{gained} −{lost}", right
        right["held"] = _right(held, scorer(candidate, held))
    except UserError as error:
        return False, str(error), right
    gained, lost = paired(right["held"], last.right["held"])
    won = f"+{gained} −{lost} of {len(held)} held-out items"
    if settings.margin is not None:
        ahead = (gained - lost) / len(held)
        kept = ahead >= settings.margin
        return kept, f"{won}: {ahead:+.3f}, asked for: {settings.margin:+.3f}", right
    p = mcnemar(gained, lost)
    return gained > lost and p <= settings.alpha, f"{won}: p {p:.3f}, asked for: up to {settings.alpha}", right


def paired(new: Sequence[int] | None, old: Sequence[int] | None) -> tuple[int, int]:
    """Items that only the new, only the old one gets right."""
    pairs = list(zip(new or (), old or (), strict=True))
    return pairs.count((1, 0)), pairs.count((0, 1))


def batch(items: Sequence[Item], right: Sequence[int], settings: Search, number: int) -> list[Item]:
    """The items that the critic reads: three missed ones to one that was right, as far as there are."""
    rng = random.Random(f"{settings.seed}-{number}")
    missed = [item for item, hit in zip(items, right, strict=True) if not hit]
    others = [item for item, hit in zip(items, right, strict=True) if hit]
    wanted = min(len(missed), math.ceil(settings.batch_size * 3 / 4))
    chosen = rng.sample(missed, wanted) + rng.sample(others, min(len(others), settings.batch_size - wanted))
    return chosen


def describe(items: Sequence[Item], rows: Sequence[ItemScores]) -> str:
    """What the critic reads of the model's answers, as text."""
    blocks = []
    for item, row in zip(items, rows, strict=True):
        assert item.label is not None
        turns = [f"{one.speaker}: {one.text}" for one in item.dialogue]
        targets = [f"{one.speaker}: {one.text}" for one in item.target_utterances]
        options = [f"{letter}. {text}" for letter, text in zip(LETTERS, item.options, strict=True)]
        shares = ", ".join(
            f"{letter} {math.exp(value):.2f}" for letter, value in zip(LETTERS, row.logprobs, strict=True)
        )
        verdict = "right" if row.prediction == item.label else "WRONG"
        told = f"right letter: {LETTERS[item.label]}; the model's probabilities: {shares}: {verdict}"
        head = [f"Question of the category {item.category}", "Dialogue:", *turns, "Target utterances:", *targets]
        blocks.append("\n".join([*head, "Options:", *options, told]))
    right = sum(row.prediction == item.label for item, row in zip(items, rows, strict=True))
    return "\n\n".join([*blocks, f"Of these {len(items)} questions {right} were answered rightly."])


def split(items: Sequence[Item], settings: Search) -> tuple[list[Item], list[Item]]:
    """(learned from, held out): whole dialogues on either side."""
    dialogues = sorted({item.dialogue_key for item in items})
    random.Random(settings.seed).shuffle(dialogues)
    count = round(len(dialogues) * settings.held_out)
    if not 0 < count < len(dialogues):
        raise UserError(
            f"{len(items)} items of {len(dialogues)} dialogues cannot be parted with --held_out {settings.held_out}: "
            "each part needs a dialogue."
        )
    out = set(dialogues[:count])
    return [one for one in items if one.dialogue_key not in out], [one for one in items if one.dialogue_key in out]


def placeholders(text: str) -> set[str]:
    """The names that a template fills in."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
    return jinja2.meta.find_undeclared_variables(environment.parse(text))


def parse(text: str) -> Prompt:
    return make_prompt(yaml.safe_load(text), "a step's prompt")


# On disk


def step_folder(folder: Path, number: int) -> Path:
    return folder / "steps" / f"{number:03d}"


def write_step(folder: Path, step: Step) -> None:
    """prompt.yaml, gradient.txt, and step.json last: what has it is a whole step."""
    place = step_folder(folder, step.number)
    write_text(place / "prompt.yaml", step.prompt)
    write_text(place / "gradient.txt", step.gradient)
    accuracy = dict(zip(("accuracy", "low", "high"), step.accuracy or (None,) * 3, strict=True))
    told = {key: value for key, value in dataclasses.asdict(step).items() if key not in ("prompt", "gradient")}
    write_json(place / "step.json", {**told, "held_out": accuracy})


def read_steps(folder: Path) -> list[Step]:
    """The steps of an earlier session, up to the first that is not whole."""
    steps: list[Step] = []
    while (file := step_folder(folder, len(steps)) / "step.json").is_file():
        told = json.loads(file.read_text(encoding="utf-8"))
        told.pop("held_out")
        texts: dict[str, Any] = {
            name: (file.parent / f"{name}.{kind}").read_text(encoding="utf-8")
            for name, kind in (("prompt", "yaml"), ("gradient", "txt"))
        }
        steps.append(Step(**told, **texts))
    return steps


def plot(steps: Sequence[Step], path: Path) -> None:
    """Accuracy on the held-out items over the steps, with 95 % intervals; rejected prompts are hollow."""
    from src.figures.canvas import Figure, MaxNLocator

    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    line: list[float] = []
    for step in steps:
        found = step.accuracy
        if found:
            share, low, high = found
            kind: dict[str, Any] = (
                {"color": "tab:blue"} if step.kept else {"color": "tab:gray", "markerfacecolor": "white"}
            )
            axes.errorbar(step.number, share, [[share - low], [high - share]], fmt="o", capsize=3, **kind)
        line.append(found[0] if found and step.kept else line[-1])
    axes.step(range(len(line)), line, where="post", color="tab:blue", label="prompt in use")
    axes.plot([], [], "o", color="tab:gray", markerfacecolor="white", label="refused")
    axes.set(xlabel="step", ylabel="accuracy on held-out items, 95 % interval", ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right")
    figure.tight_layout()
    temporary = path.with_name(f".{path.name}.tmp.png")
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, path)


def load_textgrad() -> Any:
    """textgrad, which at import otherwise writes a log folder here, and whose litellm fetches a list of prices and
    reads keys from `.env`.
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


def _right(items: Sequence[Item], rows: Sequence[ItemScores]) -> list[int]:
    return [int(row.prediction == item.label) for item, row in zip(items, rows, strict=True)]


def _lines(texts: dict[str, str]) -> str:
    ordered = {category: texts[category] for category in CATEGORIES}
    return yaml.safe_dump(ordered, allow_unicode=True, sort_keys=False, width=10_000).strip()


assert ORDERS[0] == "012", "what the critic reads has the options in the file's order"
