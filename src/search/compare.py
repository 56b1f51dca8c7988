"""Prompts side by side: the same items are scored under each of them, and each is compared with the first."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from src.console.cli import UserError
from src.console.progress import stage
from src.data import Item
from src.files.paths import weights_folder
from src.model.recipes import Recipe
from src.plan import lengths
from src.prompt.encode import Encoder
from src.prompt.prompts import Prompt
from src.runs.encoder import find_library, frozen_in, make_encoder
from src.score.letters import LetterScorer
from src.tree.layouts import GPU_SCORING
from src.tree.rows import Layout, sizes
from src.worth.metrics import evaluate, mcnemar


def encoder_for(prompt: Prompt, recipe: Recipe, folder: Path | None, data: Path) -> Encoder:
    """The encoder of a model with another prompt. `folder`: of a trained run; `data`: where examples come from."""
    recipe = recipe.replace(prompt=prompt.name, reasoning=False)
    weights = weights_folder(folder) if folder else None
    return make_encoder(recipe, prompt, weights, find_library(prompt, data), frozen_in(folder))


def refuse_too_long(encoders: Mapping[str, Sequence[Encoder]], items: Sequence[Item], orders: Sequence[str]) -> None:
    """One UserError for all prompts and models for which items are too long. `encoders`: those of each model."""
    long = []
    for model, some in encoders.items():
        for encoder in some:
            tokens = lengths.count(encoder, items, answered=False, orders=orders)
            count = sum(one > encoder.context for one in tokens) if encoder.context else 0
            if count:
                long.append(
                    f"\n  {model} with {encoder.prompt.name}: {count} of {len(items)}, "
                    f"the longest has {max(tokens):,} tokens of {encoder.context:,}"
                )
    if long:
        raise UserError(
            f"--compare: items are too long for the context, and nothing is cut:{''.join(long)}\n"
            "Leave these out, or take fewer examples. "
            "Lengths in all splits: python -m run.prompts PROMPT --lengths"
        )


def score_prompt(
    scorers: Callable[[Sequence[int], int], LetterScorer],
    encoder: Encoder,
    items: Sequence[Item],
    orders: Sequence[str],
) -> dict[str, Any]:
    """The answers to labelled items under the encoder's prompt, and their cost in tokens. `scorers` returns the scorer
    for letter ids and a padding id.

    tokens   of an item, on average
    shared   the share of them that is saved by common prefixes
    right    for each item whether its answer is right
    """
    started = time.monotonic()
    examples = encoder.for_scoring(items, orders)
    with stage(encoder.prompt.name, len(examples)) as bar:
        scorer = scorers(encoder.letter_ids or (), encoder.pad_id)
        found = scorer.score(examples, update=bar.update).items
    seconds = time.monotonic() - started
    answers = [one.prediction for one in found]
    worth = evaluate(items, answers)
    ids = [one.ids for one in examples]
    tokens = sum(map(len, ids))
    unique = sum(sizes(ids, Layout("tree", GPU_SCORING, encoder.pad_id)))
    return {
        "prompt": encoder.prompt.name,
        "sha256": encoder.prompt.sha256,
        "correct": worth.correct,
        "accuracy": worth.accuracy,
        "interval": worth.interval,
        "tokens": tokens / len(examples),
        "shared": 1 - unique / tokens,
        "seconds": seconds,
        "answers": answers,
        "right": [item.label == answer for item, answer in zip(items, answers, strict=True)],
    }


def compare_with_first(results: Sequence[dict[str, Any]]) -> None:
    """Adds to each of `score_prompt`'s results how many items it alone (`gained`) and the first alone (`lost`) gets
    right, and McNemar's exact `p`.
    """
    first = results[0]["right"]
    for one in results:
        pairs = list(zip(one["right"], first, strict=True))
        one["gained"], one["lost"] = pairs.count((True, False)), pairs.count((False, True))
        one["p"] = mcnemar(one["gained"], one["lost"])
