"""Searching for a better prompt, step by step.

The model under test is a black box: it is scored on labelled items. In a step TextGrad (src/search/textgrad.py)
proposes a new prompt. It has to keep the contract of the prompt that the search started with, must not be worse on the
items it learns from, and is kept only if it wins on items held out from the search.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from src.console.cli import UserError
from src.console.words import counted
from src.data import Item
from src.prompt.prompts import Prompt
from src.score.item_scores import ItemScores
from src.search.calls import CallsUsedUp
from src.search.folder import Right, Step, last_kept, parse, read_steps, write_step
from src.search.settings import Search, SearchSettings
from src.search.textgrad import Proposal, placeholders, propose
from src.worth.metrics import mcnemar


@dataclass(frozen=True)
class Verdict:
    """Whether a proposed prompt is kept, why or why not, and what it got right."""

    kept: bool
    reason: str
    right: Right = field(default_factory=lambda: {"learn": None, "held": None})


def split(items: Sequence[Item], settings: SearchSettings) -> tuple[list[Item], list[Item]]:
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


def run_search(search: Search, report: Callable[[Step], None] = lambda step: None) -> tuple[list[Step], str]:
    """All steps from the start (number 0) on, and why they end. Steps already in the folder are read, not repeated.

    report: gets each new step.
    """
    settings = search.settings
    if (length := search.count_tokens(search.start.system)) > settings.max_tokens:
        raise UserError(f"the system text has {length} tokens; allowed: --max_tokens, now {settings.max_tokens}.")
    steps = read_steps(search.folder)
    while len(steps) <= settings.steps:
        try:
            step = _next_step(search, steps) if steps else _first_step(search)
        except CallsUsedUp:
            return steps, f"the cap of {counted(settings.max_calls, 'call')} is reached (--max_calls)"
        write_step(search.folder, step)
        steps.append(step)
        report(step)
    return steps, f"{counted(settings.steps, 'step')} {'is' if settings.steps == 1 else 'are'} done"


def _first_step(search: Search) -> Step:
    started = time.monotonic()
    right: Right = {
        "learn": _right(search.learn, search.score(search.start, search.learn)),
        "held": _right(search.held, search.score(search.start, search.held)),
    }
    return Step(0, True, "the start", search.start.text, "", right, 0, time.monotonic() - started)


def _next_step(search: Search, steps: Sequence[Step]) -> Step:
    started, calls_before = time.monotonic(), search.calls.count
    last, number = last_kept(steps), len(steps)
    proposal = propose(search, parse(last.prompt), last.right["learn"] or [], number)
    verdict = _judge(search, proposal, steps)
    return Step(
        number=number,
        kept=verdict.kept,
        reason=verdict.reason,
        prompt=proposal.prompt.text if proposal.prompt is not None else "",
        gradient=proposal.gradient,
        right=verdict.right,
        calls=search.calls.count - calls_before,
        seconds=time.monotonic() - started,
    )


def _judge(search: Search, proposal: Proposal, steps: Sequence[Step]) -> Verdict:
    candidate = proposal.prompt
    if candidate is None or proposal.problem:
        return Verdict(False, proposal.problem)
    if problem := broken_contract(search, candidate):
        return Verdict(False, problem)
    tried = {step.prompt: step.number for step in steps}
    if candidate.text in tried:
        return Verdict(False, f"the same as in step {tried[candidate.text]}")
    return _compare(search, candidate, last_kept(steps))


def broken_contract(search: Search, candidate: Prompt) -> str:
    """How a prompt breaks the contract of the one the search started with; "" when it does not. Whether it can be
    filled and loses nothing of an item is checked when it is made.
    """
    now, then = placeholders(candidate.system), placeholders(search.start.system)
    if now != then:
        told = {"lost the placeholder": sorted(then - now), "a new placeholder": sorted(now - then)}
        return "; ".join(f"{what} {', '.join(names)}" for what, names in told.items() if names)
    if search.start.system and not candidate.system:
        return "the system text is empty"
    length, most = search.count_tokens(candidate.system), search.settings.max_tokens
    return f"the system text has {length} tokens, allowed {most}" if length > most else ""


def _compare(search: Search, candidate: Prompt, last: Step) -> Verdict:
    """Scores the candidate. The held-out items are scored only when those learned from speak for it."""
    right: Right = {"learn": None, "held": None}
    try:
        right["learn"] = _right(search.learn, search.score(candidate, search.learn))
        gained, lost = _gained_and_lost(right["learn"], last.right["learn"])
        if gained < lost:
            return Verdict(False, f"worse on the items it learns from, +{gained} −{lost}", right)
        right["held"] = _right(search.held, search.score(candidate, search.held))
    except UserError as error:
        return Verdict(False, str(error), right)
    gained, lost = _gained_and_lost(right["held"], last.right["held"])
    won, settings = f"+{gained} −{lost} of {len(search.held)} held-out items", search.settings
    if settings.margin is not None:
        ahead = (gained - lost) / len(search.held)
        return Verdict(ahead >= settings.margin, f"{won}: {ahead:+.3f}, asked for: {settings.margin:+.3f}", right)
    p = mcnemar(gained, lost)
    kept = gained > lost and p <= settings.alpha
    return Verdict(kept, f"{won}: p {p:.3f}, asked for: up to {settings.alpha}", right)


def _gained_and_lost(new: Sequence[int] | None, old: Sequence[int] | None) -> tuple[int, int]:
    """Items that only the new prompt gets right, and items that only the old one does."""
    pairs = list(zip(new or (), old or (), strict=True))
    return pairs.count((1, 0)), pairs.count((0, 1))


def _right(items: Sequence[Item], scores: Sequence[ItemScores]) -> list[int]:
    return [int(one.prediction == item.label) for item, one in zip(items, scores, strict=True)]
