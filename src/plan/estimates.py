"""Estimates, before anything is downloaded, of memory, time and disk that runs need.

What fits follows from the shape of a model (src/model/memory.py) and from how many tokens its kind of tokenizer makes
of an item (src/plan/kinds.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from src import task
from src.model.devices import REFERENCE, Gpu
from src.model.disk import download_bytes
from src.model.memory import (
    ANSWER_TOKENS,
    MemoryPlan,
    Workload,
    best_weights_bytes,
    choose_memory_plan,
    run_folder_bytes,
    scoring_memory,
    training_memory,
)
from src.model.recipes import Recipe
from src.model.shapes import GIB, Shape
from src.plan.communication import COUNTS, LINKS, step_seconds
from src.plan.kinds import item_tokens, kind_of
from src.plan.known import known_base
from src.plan.times import scoring_seconds, training_seconds
from src.train.objectives import make_objective

CARDS = (24, 48, 80, 141)
"""GiB of the usual cards, the columns of the table where there is no GPU."""
SEVERAL, EACH = 2, 80
TOGETHER = f"{SEVERAL}×{EACH}"
"""The column after them: two such cards with one run, all parameters of which are sharded over both."""
USUAL = {"RTX 3090": 24, "RTX 4090": 24, "RTX A6000": 48, "L40S": 48, "A100": 80, "H100": 80}
"""Cards whose hours are told where there is no GPU, and their GiB."""
ROOM = 0.6
"""As in src/tree/layouts.py, which takes torch to import: NF4 weights are unpacked once where that takes so much of the
free memory at most.
"""


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
    """Name of a card → the memory plan on it; `TOGETHER` → that of each of several cards that share the run."""
    communication: Mapping[str, Sequence[float]]
    """Link between cards → seconds that a step of one row a card communicates on `COUNTS` of them, by bytes alone."""
    disk: int | None
    """Bytes of the run folder at most."""
    kept: int | None
    """Bytes of the run folder without its checkpoints."""
    seconds: float | None
    """Training, an evaluation on dev after each epoch, and scoring the test set once."""
    elsewhere: Mapping[str, float]
    """Name of a usual card that the run fits on → seconds there, where they can be known."""
    note: str
    miniature: bool
    gpus: int = 1
    """How many share the run."""


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
    mean_tokens, _ = item_tokens(kind, recipe.prompt)
    trained = mean_tokens + _wrong_answers(recipe) * ANSWER_TOKENS
    training = weights = disk = kept = seconds = None
    cards: dict[str, MemoryPlan] = {}
    communication: dict[str, list[float]] = {}
    elsewhere: dict[str, float] = {}
    if shape is not None:
        work = workload(recipe, shape)
        training = _memory_plan(shape, recipe, work, here.free_bytes)
        cards = {name: _memory_plan(shape, recipe, work, size) for name, size in sizes.items()}
        if len(sizes) > 1:  # no GPU here
            shared = replace(work, cards=SEVERAL) if recipe.method == "full" else work
            cards[TOGETHER] = _memory_plan(shape, recipe, shared, EACH * GIB)
            communication = {
                link: [step_seconds(shape, recipe.method, recipe.lora_r, count, link) for count in COUNTS]
                for link in LINKS
            }
        weights = scoring_memory(shape, recipe.method, work.tokens).weights
        disk = run_folder_bytes(shape, recipe.method, training.optimizer, recipe.lora_r)
        kept = best_weights_bytes(shape, recipe.method, recipe.lora_r)
        # A miniature spends its time launching kernels, which this arithmetic does not cover.
        if "train" in items and not miniature:
            tokens = trained, mean_tokens / kind.scoring_ratio
            seconds = _seconds(shape, recipe, items, tokens, training, here.name)
            for name, size in USUAL.items():
                memory = _memory_plan(shape, recipe, work, size * GIB)
                there = _seconds(shape, recipe, items, tokens, memory, name)
                elsewhere |= {name: there} if memory.fits and there is not None else {}
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
        communication=communication,
        disk=disk,
        kept=kept,
        seconds=seconds,
        elsewhere=elsewhere,
        note="; ".join(text for text in (base.place, facts.note if facts else "") if text),
        miniature=miniature,
    )


def workload(recipe: Recipe, shape: Shape) -> Workload:
    """The least that training takes: one item a row. Where there is more memory, rows are longer."""
    _, longest = item_tokens(kind_of(recipe, shape), recipe.prompt)
    wrong, dropout = _wrong_answers(recipe), recipe.lora_dropout > 0
    tokens = longest + wrong * ANSWER_TOKENS
    return Workload(recipe.method, recipe.lora_r, tokens, 1 + wrong, attention="tree", dropout=dropout)


def _wrong_answers(recipe: Recipe) -> int:
    """Of a preference pair, beside the right one; the prompt counts once."""
    return make_objective(recipe).wrong_answers(len(task.current().options))


def _seconds(
    shape: Shape, recipe: Recipe, items: Mapping[str, int], tokens: tuple[float, float], memory: MemoryPlan, card: str
) -> float | None:
    """Seconds of the whole run on the GPU called `card`, if its speed is known. tokens: of an item, in training and to
    compute in scoring.
    """
    trained, computed = tokens
    scored = items.get("dev", 0) * recipe.epoch + items.get("test", 0)
    training = training_seconds(shape, recipe, memory, items["train"], trained, card)
    scoring = scoring_seconds(shape, scored, computed, card)
    return None if training is None or scoring is None else training + scoring


def _memory_plan(shape: Shape, recipe: Recipe, work: Workload, free: int) -> MemoryPlan:
    """The memory plan on a GPU with so many bytes free, and whether NF4 weights are unpacked once there. The memory is
    that of weights which stay packed.
    """
    plan = choose_memory_plan(shape, work, recipe.optimizer, recipe.gradient_checkpointing, free)
    if work.method != "qlora" or not plan.fits:
        return plan
    unpacked = training_memory(shape, replace(work, method="lora"), plan.optimizer, plan.checkpointing)
    return replace(plan, dequantised=unpacked.total <= ROOM * free)
