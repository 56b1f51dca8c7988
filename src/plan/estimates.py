"""Estimates, before anything is downloaded, of memory, time and disk that runs need.

What fits follows from the shape of a model (src/model/memory.py) and from how many tokens its kind of tokenizer makes
of an item (src/plan/kinds.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from src import task
from src.model.devices import REFERENCE, Gpu, relative_speed
from src.model.disk import download_bytes
from src.model.memory import (
    ANSWER_TOKENS,
    MemoryPlan,
    Workload,
    choose_memory_plan,
    run_folder_bytes,
    scoring_memory,
)
from src.model.recipes import Recipe
from src.model.shapes import GIB
from src.plan.kinds import item_tokens, kind_of
from src.plan.known import known_base
from src.plan.times import scoring_seconds, training_seconds
from src.train.objectives import make_objective

CARDS = (24, 48, 80, 141)
"""GiB of the usual cards, the columns of the table where there is no GPU."""


@dataclass(frozen=True)
class Estimate:
    """What one run needs, estimated before it starts. None: cannot be known yet."""

    run: str
    model_id: str
    licence: str | None
    commercial: bool | None
    gated: bool | None
    method: str
    method_words: str
    """The method as the table shows it."""
    tokens: int | None
    """Assumed mean tokens of a training item; None for a miniature, whose tokenizer is unlike all others."""
    download: int | None
    """Bytes."""
    weights: int | None
    """Bytes of the base model as it is loaded for scoring, which needs little more."""
    training: MemoryPlan | None
    """The memory plan on the GPU at hand, or on one H200 where there is none."""
    cards: Mapping[str, MemoryPlan]
    """Name of a card → the memory plan on it."""
    disk: int | None
    """Bytes of the run folder at most."""
    seconds: float | None
    """Training, an evaluation on dev after each epoch, and scoring the test set once."""
    note: str
    miniature: bool


def estimate_runs(recipes: Sequence[Recipe], items: Mapping[str, int], gpu: Gpu | None = None) -> list[Estimate]:
    """Estimates of each recipe for `items` items of each split, on `gpu`; without one, on an H200 and by size of card.
    Items are taken to be as long as the official corpus's are for the kind of tokenizer.
    """
    here = gpu or REFERENCE
    sizes = {here.name: here.free_bytes} if gpu else {str(size): size * GIB for size in CARDS}
    return [_estimate(recipe, items, here, sizes) for recipe in recipes]


def _estimate(recipe: Recipe, items: Mapping[str, int], here: Gpu, sizes: Mapping[str, int]) -> Estimate:
    base = known_base(recipe)
    shape, facts, miniature = base.shape, base.facts, base.place == "miniature"
    kind = kind_of(recipe, shape)
    mean_tokens, longest = item_tokens(kind, recipe.prompt)
    # Preference pairs also have wrong answers; the prompt counts once.
    wrong = make_objective(recipe).wrong_answers(len(task.current().options))
    trained = mean_tokens + wrong * ANSWER_TOKENS
    longest += wrong * ANSWER_TOKENS
    training = weights = disk = seconds = None
    cards: dict[str, MemoryPlan] = {}
    if shape is not None:
        # The least that training takes: one item a row. Where there is more memory, rows are longer.
        dropout = recipe.lora_dropout > 0
        work = Workload(recipe.method, recipe.lora_r, longest, 1 + wrong, attention="tree", dropout=dropout)
        switches = recipe.optimizer, recipe.gradient_checkpointing
        training = choose_memory_plan(shape, work, *switches, here.free_bytes)
        cards = {name: choose_memory_plan(shape, work, *switches, size) for name, size in sizes.items()}
        weights = scoring_memory(shape, recipe.method, longest).weights
        disk = run_folder_bytes(shape, recipe.method, training.optimizer, recipe.lora_r)
        speed = relative_speed(here.name)
        # A miniature spends its time launching kernels, which this arithmetic does not cover.
        if "train" in items and speed is not None and not miniature:
            seconds = training_seconds(shape, recipe, items["train"], trained, training.checkpointing, speed)
            scored = items.get("dev", 0) * recipe.epoch + items.get("test", 0)
            seconds += scoring_seconds(shape, scored, mean_tokens / kind.scoring_ratio, speed)
    return Estimate(
        run=recipe.name,
        model_id=recipe.model_id,
        licence=recipe.licence or (facts.licence if facts else None),
        commercial=facts.commercial if facts else None,
        gated=facts.gated if facts else None,
        method=recipe.method,
        method_words=recipe.method_words,
        tokens=None if shape is None or miniature else mean_tokens,
        download=download_bytes(recipe),
        weights=weights,
        training=training,
        cards=cards,
        disk=disk,
        seconds=seconds,
        note="; ".join(text for text in (base.place, facts.note if facts else "") if text),
        miniature=miniature,
    )
