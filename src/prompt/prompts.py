"""Prompt files: how an item becomes chat messages and an answer.

A prompt is one YAML file in `resource/prompts/`. Its texts are Jinja2 templates, as chat templates are, over

    dialogue    the utterances, each with .speaker (1, 2, …), .text and .target (true for a target utterance)
    targets     the target utterances alone, in dialogue order
    category    원인, 후행사건, 전제, 동기 or 반응
    question    the sentence that the prompt's `categories` gives for it
    guidance    what the prompt's `guidance` says about it, empty without one
    reasoning   true when reasoning is generated before the letter is read
    options     the shown options, each with .letter and .text

and, in `answer`, `letter` and `option` of the option that is answered. Everything that changes between items
belongs into `user`, behind what they share: items that begin alike are computed once.

A file may name `strategies`, each a few keys that it adds or replaces; they are chosen by name: `korean+persona+cot`.
Worked examples go in front of the item as turns of the same chat: `korean+3shots`, or `korean+3near` for the nearest.
"""

import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import yaml

from src.console.cli import UserError, nearest
from src.console.start import find, ours
from src.data import CATEGORIES, Item, Utterance
from src.files.limits import memory_limit, time_limit
from src.files.yaml_files import load_yaml
from src.items.item import regular

PROMPTS = ours("resource/prompts")
LETTERS = ("A", "B", "C")
ORDERS = ("012", "021", "102", "120", "201", "210")
"""All orders of the options: in "201", A shows option 2, B option 0 and C option 1. The first is the file's own."""

Message = dict[str, str]

BRIDGE = "\n\n{}\n"
"""How a prompt's `bridge` stands behind generated reasoning. The line break at its end keeps the letter behind it a
token of its own in every tokenizer.
"""
CHOOSE = ("seed", "near")
SHOTS = re.compile(r"(\d+)(shots|near)")


@dataclasses.dataclass(frozen=True)
class Rendered:
    """One item as chat messages, and for each letter the text that would answer it."""

    messages: tuple[Message, ...]
    answers: tuple[str, str, str]


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
    """The texts of one prompt file; `system` may be empty. See the module's docstring for what the templates may
    use.

    guidance    for each category what to look for, or empty
    bridge      the words between generated reasoning and the letter; empty where no reasoning is meant
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
        """The prompt as YAML, for a run's record: the run can be scored with it when the file has changed or gone."""
        raw = dataclasses.asdict(self)
        kept = {key: value for key, value in raw.items() if value or key not in OPTIONAL}
        return yaml.safe_dump(kept, allow_unicode=True, sort_keys=False, width=120)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def render(
        self, item: Item, order: str = ORDERS[0], *, reasoning: bool = False, examples: Sequence[Item] = ()
    ) -> Rendered:
        """`item` with its options shown in `order` (one of `ORDERS`), behind labelled `examples`, which stand in their
        own order. With `reasoning` it asks for reasoning, and the answers are those behind it.

        UserError names the item that the templates cannot be filled for.
        """
        try:
            return self._rendered(item, order, reasoning, examples)
        except Unfillable as error:
            raise UserError(f"prompt {self.name}, item {item.id}: {error}") from error

    def _rendered(self, item: Item, order: str, reasoning: bool, examples: Sequence[Item]) -> Rendered:
        assert order in ORDERS, order
        values = self._values(item, order, reasoning)
        shown = values["options"]
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
        a, b, c = (_fill(self.answer, {**values, "letter": one["letter"], "option": one["text"]}) for one in shown)
        return Rendered(tuple(messages), (a, b, c))

    def reasoned(self, text: str) -> str:
        """`text`, then the words that lead to the letter; an answer can follow at once."""
        bridge = BRIDGE.format(self.bridge)
        return text.strip() + bridge if text.strip() else bridge.lstrip()

    def parts(self, item: Item, order: str = ORDERS[0], *, reasoning: bool = False) -> list[tuple[str, str]]:
        """The user's message cut where another part (one of `MARKS`) begins: (part, text), as they first come up.
        What heads a part belongs to it.
        """
        plain = _fill(self.user, self._values(item, order, reasoning))
        free = (mark for mark in map(chr, PRIVATE_USE) if mark not in plain)  # an utterance may hold some of them
        marks = dict(zip((*MARKS, END), free, strict=False))
        text = _fill(self.user, self._values(item, order, reasoning, marks))
        cuts: list[tuple[int, str]] = []
        for start, part in sorted((text.find(marks[part]), part) for part in MARKS if marks[part] in text):
            behind = text.rfind(marks[END], 0, start)
            line = text.find("\n", behind, start) + 1
            cuts.append((0 if behind < 0 else line or start, part))
        bare = str.maketrans("", "", "".join(marks.values()))
        ends = [start for start, _ in cuts[1:]] + [len(text)]
        return [(part, text[start:end].translate(bare)) for (start, part), end in zip(cuts, ends, strict=True)]

    def _values(
        self, item: Item, order: str, reasoning: bool, marks: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        def marked(part: str, text: str) -> str:
            return f"{marks[part]}{text}{marks[END]}" if marks else text

        def turns(part: str) -> list[dict[str, Any]]:
            return [
                {"speaker": one.speaker, "text": marked(part, one.text), "target": one.id in item.targets}
                for one in item.dialogue
            ]

        return {
            "dialogue": turns("dialogue"),
            "targets": [turn for turn in turns("targets") if turn["target"]],
            "category": item.category,
            "question": marked("question", self.categories[item.category]),
            "guidance": marked("question", guidance) if (guidance := self.guidance.get(item.category)) else "",
            "reasoning": reasoning,
            "options": [
                {"letter": letter, "text": marked("options", item.options[int(index)])}
                for letter, index in zip(LETTERS, order, strict=True)
            ],
        }


SECONDS, MEMORY = 5.0, 2**30
"""How long a template may compute for an item, and how much memory the first items may take."""
OPTIONAL = ("guidance", "bridge", "examples")
MARKS = ("dialogue", "targets", "question", "options")
END = "end"
PRIVATE_USE = range(0xE000, 0xF900)
"""`Prompt.parts` puts characters of these in front of an item's texts, one for each of `MARKS`, and one behind them."""


def reasoning_of(item: Item) -> str | None:
    """The reasoning that a data file carries for an item, in the key `reasoning` of its object (no official one)."""
    text = item.source.get("reasoning")
    return regular(text) if isinstance(text, str) and text.strip() else None


@functools.cache
def _template(text: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False
    )
    return environment.from_string(text)


class Unfillable(UserError):
    """A template fails, or has no end."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the template cannot be filled ({why}). "
            "It may use dialogue, targets, category, question, guidance, reasoning, options, and in the answer "
            "letter and option."
        )


def _fill(text: str, values: dict[str, Any]) -> str:
    try:
        with time_limit(SECONDS):
            return _template(text).render(values).strip()
    except TimeoutError as error:
        raise Unfillable(f"it has not ended after {SECONDS:g} s") from error
    except MemoryError as error:
        raise Unfillable(f"it takes more than {MEMORY / 2**30:g} GiB of memory") from error
    except Exception as error:  # a template can raise whatever Python can
        kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
        raise Unfillable(f"{kind}{error}") from error


def available() -> list[str]:
    """Names of the prompts in `resource/prompts/`, without their strategies."""
    return sorted(path.stem for path in PROMPTS.glob("*.yaml"))


def combinations(name: str | Path) -> list[str]:
    """All prompts that a file makes: itself, then with each set of its strategies, small sets first."""
    path, _, _ = _find(name)
    strategies = list(_read(path).get("strategies") or {})
    return ["+".join([str(name), *some]) for size in range(len(strategies) + 1) for some in _sets(strategies, size)]


def load_prompt(name: str | Path) -> Prompt:
    """The prompt called `name` in `resource/prompts/`, or the YAML file at that path, each with the strategies named
    behind it (`+persona`), checked by rendering an item of every category.
    """
    path, strategies, shots = _find(name)
    raw = _read(path)
    known = raw.pop("strategies", None) or {}
    raw = _combined(raw, known, strategies, str(path))
    chosen = [one for one in known if one in strategies]
    if shots:
        raw["examples"] = {"count": int(shots[1]), "choose": "near" if shots[2] == "near" else "seed"}
    full = "+".join([path.stem, *chosen, *([shots[0]] if shots else [])])
    return make_prompt(raw, str(path), full)


def parse_prompt(text: str, where: str, name: str = "") -> Prompt:
    """A prompt from YAML `text`; `where` names it in error messages."""
    raw = _mapping(text, where)
    raw.pop("strategies", None)
    return make_prompt(raw, where, name)


def make_prompt(raw: Mapping[str, Any], where: str, name: str = "") -> Prompt:
    """A checked prompt from the keys of its file; `where` names it in error messages."""
    raw = {"name": name, "system": "", **raw}
    fields = [field.name for field in dataclasses.fields(Prompt)]
    problems = [f"unknown key {key!r}.{nearest(str(key), fields)}" for key in raw if key not in fields]
    problems += [f"{key!r} is missing" for key in ("user", "categories", "answer") if key not in raw]
    problems += [
        f"{key!r} must be text, found {type(raw[key]).__name__}"
        for key in ("name", "system", "user", "answer", "description", "bridge")
        if not isinstance(raw.get(key, ""), str)
    ]
    for key in ("categories", "guidance"):
        texts = raw.get(key)
        if (texts or (key == "categories" and texts is not None)) and not (
            isinstance(texts, dict)
            and set(texts) == set(CATEGORIES)
            and all(isinstance(sentence, str) for sentence in texts.values())
        ):
            problems.append(f"{key!r} needs one sentence for each of {', '.join(CATEGORIES)}")
    examples = raw.get("examples")
    if examples is not None and not (
        isinstance(examples, dict)
        and set(examples) <= {"count", "choose", "seed"}
        and isinstance(examples.get("count"), int)
        and examples["count"] > 0
        and examples.get("choose", "seed") in CHOOSE
        and isinstance(examples.get("seed", 0), int)
    ):
        problems.append("'examples' needs a count of 1 or more, and may have choose (seed or near) and a whole seed")
    if problems:
        raise UserError(f"{where}: " + "; ".join(problems) + f". Allowed keys: {', '.join(fields)}.")
    prompt = Prompt(**{**raw, "examples": Examples(**examples) if examples else None})
    _check(prompt, where)
    return prompt


def _find(name: str | Path) -> tuple[Path, list[str], re.Match[str] | None]:
    """(file, strategies, examples) of a prompt's name."""
    words = [str(name)] if Path(name).is_file() else str(name).split("+")
    base, strategies = words[0], words[1:]
    path = Path(find(base)) if base.endswith((".yaml", ".yml")) else PROMPTS / f"{base}.yaml"
    if not path.is_file():
        known = available()
        raise UserError(
            f"there is no prompt {base!r} (looked for {path}). Known: {', '.join(known)}.{nearest(base, known)}"
        )
    shots = [found for word in strategies if (found := SHOTS.fullmatch(word))]
    if len(shots) > 1 or any(int(found[1]) == 0 for found in shots):
        raise UserError(f"prompt {str(name)!r}: found {strategies}, allowed: one +Nshots or +Nnear, N above 0.")
    return path, [word for word in strategies if not SHOTS.fullmatch(word)], shots[0] if shots else None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: this is not UTF-8: {error}. Save it as UTF-8.") from error
    return _mapping(text, str(path))


def _mapping(text: str, where: str) -> dict[str, Any]:
    raw = load_yaml(text, where)
    if raw is None:
        raise UserError(f"{where} is empty. A prompt has user, categories and answer, and may have system.")
    if not isinstance(raw, dict):
        raise UserError(
            f"{where}: a prompt is a mapping with system, user, categories and answer; found {type(raw).__name__}."
        )
    return raw


def _combined(raw: dict[str, Any], known: Any, chosen: Sequence[str], where: str) -> dict[str, Any]:
    """`raw` with what the chosen strategies add (`before` and `after` the system text) or replace, in the file's
    order.
    """
    allowed = ("before", "after", *(field.name for field in dataclasses.fields(Prompt) if field.name != "name"))
    if not isinstance(known, dict) or not all(isinstance(one, dict) for one in known.values()):
        raise UserError(f"{where}: 'strategies' is a mapping of names, each to the keys it adds or replaces.")
    for name, keys in known.items():
        for key in keys:
            if key not in allowed:
                raise UserError(
                    f"{where}: strategy {name!r}: unknown key {key!r}.{nearest(str(key), allowed)} Allowed keys: "
                    f"{', '.join(allowed)}."
                )
    for name in chosen:
        if name not in known or chosen.count(name) > 1:
            fault, hint = ("given twice", "") if name in known else ("not there", nearest(name, known))
            raise UserError(
                f"{where}: strategy {name!r} is {fault}. Known: {', '.join(known) or 'none'}, and Nshots or Nnear for "
                f"N examples.{hint}"
            )
    some = [known[name] for name in known if name in chosen]
    replaced = [key for keys in some for key in keys if key not in ("before", "after", "description")]
    if len(set(replaced)) < len(replaced):
        raise UserError(f"{where}: {'+'.join(chosen)}: two of the strategies replace the same key.")
    merged = dict(raw)
    for keys in some:
        merged |= {key: value for key, value in keys.items() if key not in ("before", "after", "description")}
    lines = [*(keys.get("before") for keys in some), merged.get("system"), *(keys.get("after") for keys in some)]
    merged["system"] = "\n".join(str(line).strip() for line in lines if line)
    told = [raw.get("description"), *(keys.get("description") for keys in some)]
    merged["description"] = " ".join(str(line) for line in told if line)
    return merged


def _sets(strategies: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return list(itertools.combinations(strategies, size))


def _check(prompt: Prompt, where: str) -> None:
    """Renders a probe of every category and target: nothing may be lost, and each answer starts with its letter."""
    for reasoning in (False, True) if prompt.bridge else (False,):
        _check_rendering(prompt, where, reasoning)


def _check_rendering(prompt: Prompt, where: str, reasoning: bool) -> None:
    asked: dict[str, str] = {}
    for category, target in itertools.product(CATEGORIES, ("1", "2")):
        utterances = (Utterance("1", 1, "probe-first"), Utterance("2", 2, "probe-second"))
        probe = Item("probe", utterances, (target,), category, ("probe-0", "probe-1", "probe-2"), 0, {})
        try:
            with memory_limit(MEMORY):
                rendered = prompt._rendered(probe, ORDERS[0], reasoning, ())
        except Unfillable as error:
            raise UserError(f"{where}: {error}") from error
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
