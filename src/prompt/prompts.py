"""Prompt files: finding one by name, reading it, checking it.

A prompt is one YAML file in `resource/prompts/`; `src/prompt/messages.py` says what its texts may use. A file may name
`strategies`, each a few keys that it adds or replaces; they are chosen by name: `korean+persona+cot`. Worked examples
go in front of the item as turns of the same chat: `korean+3shots`, or `korean+3near` for the nearest.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from src import task
from src.console.cli import UserError, nearest
from src.console.start import find, ours
from src.data import Item, Utterance
from src.files.paths import is_file
from src.files.reading import read_text, shortened
from src.files.templates import bounded, why
from src.files.yaml_files import MOST_BYTES, load_yaml
from src.prompt.messages import Examples, Message, Prompt, Rendered, Unfillable, reasoning_of

__all__ = [
    "PROMPTS",
    "Examples",
    "Message",
    "Prompt",
    "Rendered",
    "available",
    "combinations",
    "load_prompt",
    "make_prompt",
    "parse_prompt",
    "reasoning_of",
]

PROMPTS = ours("resource/prompts")

MOST_STRATEGIES = 10
"""In one file, since every set of them is a prompt."""
CHOOSE = ("seed", "near")
EXAMPLES = "'examples' needs a count of 1 or more, and may have choose (seed or near) and a whole seed"
SHOTS = re.compile(r"(\d{1,6})(shots|near)")


def available() -> list[str]:
    """Names of the prompts in `resource/prompts/`, without their strategies."""
    return sorted(path.stem for path in PROMPTS.glob("*.yaml"))


def combinations(name: str | Path) -> list[str]:
    """All prompts that a file makes: itself, then with each set of its strategies, small sets first."""
    path, _, _ = _find(name)
    strategies = list(_strategies(_read(path), str(path)))
    sets = [some for size in range(len(strategies) + 1) for some in itertools.combinations(strategies, size)]
    return ["+".join([str(name), *some]) for some in sets]


def load_prompt(name: str | Path) -> Prompt:
    """The prompt called `name` in `resource/prompts/`, or the YAML file at that path, each with the strategies named
    after it (`+persona`). It is checked by rendering an item of every category.
    """
    path, strategies, shots = _find(name)
    now = task.current()
    text = read_text(path, MOST_BYTES)
    known = _loaded(text, path, tuple(strategies), shots, (now.name, now.categories, now.options, now.letters))
    return dataclasses.replace(known, categories=dict(known.categories), guidance=dict(known.guidance))


@lru_cache(maxsize=64)
def _loaded(
    text: str, path: Path, strategies: tuple[str, ...], shots: tuple[str, str] | None, current: tuple[Any, ...]
) -> Prompt:
    """The prompt that the `text` of a file makes under the current task: a plan of many runs asks for it again and
    again, and to read YAML and to check takes most of its time.
    """
    raw = _mapping(text, str(path))
    known = _strategies(raw, str(path))
    raw = _combined(raw, known, strategies, str(path))
    chosen = [one for one in known if one in strategies]
    if shots:
        raw["examples"] = {"count": int(shots[0]), "choose": "near" if shots[1] == "near" else "seed"}
    full = "+".join([path.stem, *chosen, *(["".join(shots)] if shots else [])])
    return make_prompt(raw, str(path), full)


def parse_prompt(text: str, where: str, name: str = "") -> Prompt:
    """A prompt from YAML `text`; `where` names it in error messages."""
    raw = _mapping(text, where)
    raw.pop("strategies", None)
    return make_prompt(raw, where, name)


def make_prompt(raw: Mapping[str, Any], where: str, name: str = "") -> Prompt:
    """A checked prompt from the keys of its file; `where` names it in error messages."""
    raw = {"name": name, "system": "", **raw}
    if raw.get("guidance", ...) is None:  # a key with nothing behind it
        del raw["guidance"]
    fields = [field.name for field in dataclasses.fields(Prompt)]
    keys = [f"unknown key {key!r}.{nearest(str(key), fields)}" for key in raw if key not in fields]
    keys += [f"{key!r} is missing" for key in ("user", "categories", "answer") if key not in raw]
    texts = [
        f"{key!r} must be text, found {type(raw[key]).__name__}"
        for key in ("name", "system", "user", "answer", "description", "bridge")
        if not isinstance(raw.get(key, ""), str)
    ]
    sentences = [_unlike_the_task("categories", raw["categories"])] if "categories" in raw else []
    sentences += [_unlike_the_task("guidance", raw["guidance"])] if raw.get("guidance", {}) != {} else []
    examples = raw.get("examples")
    counts = [] if examples is None or _are_examples(examples) else [EXAMPLES]
    if problems := [*keys, *texts, *filter(None, sentences), *counts]:
        allowed = f" Allowed keys: {', '.join(fields)}." if keys else ""
        raise UserError(f"{where}: " + "; ".join(problems) + f".{allowed}")
    prompt = Prompt(**{**raw, "examples": Examples(**examples) if examples else None})
    _check(prompt, where)
    return prompt


def _unlike_the_task(key: str, texts: Any) -> str:
    """Why `texts` are not a sentence for each of the task's categories; empty if they are."""
    current = task.current()
    problem = f"{key!r} needs one sentence for each of {', '.join(current.categories)}"
    if not isinstance(texts, dict) or not all(isinstance(one, str) for one in (*texts, *texts.values())):
        return problem
    if set(texts) == set(current.categories):
        return ""
    return (
        f"{problem}, the categories of the task {current.name}; found {', '.join(texts)}. "
        "If this prompt is for another task, write one for this task: "
        f"copy the file, and put a sentence for each of the task's categories under {key!r}"
    )


def _are_examples(examples: Any) -> bool:
    return (
        isinstance(examples, dict)
        and set(examples) <= {"count", "choose", "seed"}
        and isinstance(examples.get("count"), int)
        and examples["count"] > 0
        and examples.get("choose", "seed") in CHOOSE
        and isinstance(examples.get("seed", 0), int)
    )


def _find(name: str | Path) -> tuple[Path, list[str], tuple[str, str] | None]:
    """(file, strategies, examples) of a prompt's name. examples: their number, and "shots" or "near"."""
    words = [str(name)] if is_file(name) else str(name).split("+")
    base, strategies = words[0], words[1:]
    path = Path(find(base)) if base.endswith((".yaml", ".yml")) else PROMPTS / f"{base}.yaml"
    if not is_file(path):
        known = available()
        raise UserError(
            f"there is no prompt {base!r} (looked for {path}). Known: {', '.join(known)}.{nearest(base, known)}"
        )
    shots = [found for word in strategies if (found := SHOTS.fullmatch(word))]
    if len(shots) > 1 or any(int(found[1]) == 0 for found in shots):
        raise UserError(f"prompt {str(name)!r}: found {strategies}, allowed: one +Nshots or +Nnear, N above 0.")
    examples = (shots[0][1], shots[0][2]) if shots else None
    return path, [word for word in strategies if not SHOTS.fullmatch(word)], examples


def _read(path: Path) -> dict[str, Any]:
    return _mapping(read_text(path, MOST_BYTES), str(path))


def _mapping(text: str, where: str) -> dict[str, Any]:
    raw = load_yaml(text, where)
    if raw is None:
        raise UserError(f"{where} is empty. A prompt has user, categories and answer, and may have system.")
    if not isinstance(raw, dict):
        raise UserError(
            f"{where}: a prompt is a mapping with system, user, categories and answer; found {type(raw).__name__}."
        )
    return raw


def _strategies(raw: dict[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """What a file says of its strategies, which is taken out of `raw`."""
    known = raw.pop("strategies", None) or {}
    if not isinstance(known, dict) or not all(
        isinstance(name, str) and isinstance(keys, dict) for name, keys in known.items()
    ):
        raise UserError(f"{where}: 'strategies' is a mapping of names, each to the keys it adds or replaces.")
    if len(known) > MOST_STRATEGIES:
        raise UserError(f"{where}: found {len(known)} strategies; allowed: {MOST_STRATEGIES}.")
    return known


def _combined(
    raw: dict[str, Any], known: dict[str, dict[str, Any]], chosen: Sequence[str], where: str
) -> dict[str, Any]:
    """`raw` with what the chosen strategies add (`before` and `after` the system text) or replace, in the file's
    order.
    """
    allowed = ("before", "after", *(field.name for field in dataclasses.fields(Prompt) if field.name != "name"))
    for name, keys in known.items():
        for key in keys:
            if key not in allowed:
                raise UserError(
                    f"{where}: strategy {name!r}: unknown key {key!r}.{nearest(str(key), allowed)} "
                    f"Allowed keys: {', '.join(allowed)}."
                )
            if key in ("before", "after", "description") and not isinstance(keys[key], str):
                raise UserError(f"{where}: strategy {name!r}: {key!r} must be text, found {type(keys[key]).__name__}.")
    for name in chosen:
        if name not in known or chosen.count(name) > 1:
            fault, hint = ("given twice", "") if name in known else ("not there", nearest(name, known))
            raise UserError(
                f"{where}: strategy {name!r} is {fault}. "
                f"Known: {', '.join(known) or 'none'}, and Nshots or Nnear for N examples.{hint}"
            )
    some = [known[name] for name in known if name in chosen]
    replaced = [key for keys in some for key in keys if key not in ("before", "after", "description")]
    if len(set(replaced)) < len(replaced):
        raise UserError(f"{where}: {'+'.join(chosen)}: two strategies replace the same key.")
    merged = dict(raw)
    for keys in some:
        merged |= {key: value for key, value in keys.items() if key not in ("before", "after", "description")}
    lines = [*(keys.get("before") for keys in some), merged.get("system"), *(keys.get("after") for keys in some)]
    merged["system"] = "\n".join(str(line).strip() for line in lines if line)
    told = [raw.get("description"), *(keys.get("description") for keys in some)]
    merged["description"] = " ".join(str(line) for line in told if line)
    return merged


def _check(prompt: Prompt, where: str) -> None:
    """Renders a probe of every category and target. Nothing may be lost, and each answer must begin with its letter."""
    try:
        with bounded():
            for reasoning in (False, True) if prompt.bridge else (False,):
                _check_rendering(prompt, where, reasoning)
    except (TimeoutError, MemoryError) as error:
        raise Unfillable(why(error), where) from error


def _check_rendering(prompt: Prompt, where: str, reasoning: bool) -> None:
    current = task.current()
    utterances = (Utterance("1", 1, "probe-first"), Utterance("2", 2, "probe-second"))
    options = tuple(f"probe-{place}" for place in range(len(current.options)))
    asked: dict[str, str] = {}
    for category, target in itertools.product(current.categories, ("1", "2")):
        probe = Item("probe", utterances, (target,), category, options, 0, {})
        try:
            rendered = prompt.render(probe, reasoning=reasoning)
        except Unfillable as error:
            raise Unfillable(error.why, where) from error
        text = "\n".join(message["content"] for message in rendered.messages)
        lost = [word for word in ("probe-first", "probe-second", *options) if word not in text]
        if lost:
            raise UserError(f"{where}: the prompt leaves out part of the item: {', '.join(lost)} ({category}).")
        if text in asked:
            raise UserError(
                f"{where}: the prompt is the same for {asked[text]} and for {category} about utterance {target}; "
                "it must show which utterances are the target (targets, turn.target) and what is asked (question)."
            )
        asked[text] = f"{category} about utterance {target}"
        for letter, answer in zip(current.letters, rendered.answers, strict=True):
            if not answer.startswith(letter):
                raise UserError(
                    f"{where}: the answer must start with the option's letter, since the letter is what is read; "
                    f"for {letter} it is {shortened(answer)!r}."
                )
