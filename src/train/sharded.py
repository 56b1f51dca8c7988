"""One optimizer step, and evaluations, with parameters that are sharded over the ranks (src/model/shards.py).

A rank computes its share of a step's items as with whole parameters (src/train/ranks.py). But every pass through the
model is a collective one, so all ranks have to make as many of them:

    training   ranks agree on the most rows that one of them has in a step; the others compute rows whose terms weigh
               nothing besides. Gradients are scattered after each row, or, where whole ones have room, after the last
    scoring    each rank reads its share of the prompts, and announces each pass; a rank that is done makes short passes
               of its own for as long as another one announces any

What fails on one rank alone, such as compiling or a full memory, ends all: the others are within a collective, and what
was gathered cannot be taken back.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from src.console import launch
from src.console.cli import UserError
from src.model import ranks, shards
from src.model.causal import causal_of
from src.model.memory import SHARDED, MemoryPlan, whole_gradients_fit
from src.model.shapes import Shape
from src.prompt.encode import Example
from src.train.ranks import seed_step
from src.tree.compiled import standard_attention
from src.tree.layouts import TrainingLayout, TrainingSteps, training_layout
from src.tree.rows import Row, to_device

T = TypeVar("T")
WEIGHTS = ("weight", "pair_weight")
"""What a row's terms and pairs count in the loss."""
IDLE_TOKENS = 8
"""Of a pass that is made only because another rank makes one."""


def choose_layout(training: TrainingSteps, device: torch.device, compiled: bool) -> TrainingLayout:
    """The layout with whole parameters on each rank, or with sharded ones: where the recipe or accelerate's settings
    ask for it, or where one card does not hold the run.
    """
    recipe, world = training.recipe, ranks.world()
    if recipe.method != "full" or world == 1 or recipe.fsdp == "off":
        if launch.current().fsdp and recipe.method != "full":
            print(f"method {recipe.method}: weights are whole on each rank; FSDP is for method full")
        return training_layout(training, device, compiled)
    if not (recipe.fsdp == "on" or launch.current().fsdp):
        whole = training_layout(training, device, compiled)
        if ranks.all_true(whole.memory.fits):
            return whole
    if recipe.optimizer not in ("auto", *SHARDED):
        raise UserError(
            f"{recipe.name}: optimizer {recipe.optimizer} cannot be sharded over several GPUs, since its kernels "
            f"(bitsandbytes) take whole tensors; allowed there: {', '.join(SHARDED)}. "
            "With --fsdp off each GPU has whole weights, where they fit."
        )
    chosen = training_layout(dataclasses.replace(training, cards=world), device, compiled)
    print(f"all parameters are sharded over {world} ranks (FSDP2)")
    return chosen


class ShardedSteps:
    """Steps of a trainer whose network is sharded. trainer: a `LetterTrainer`."""

    def __init__(self, trainer: Any, memory: MemoryPlan | None) -> None:
        self.trainer = trainer
        shape = Shape.of_config(trainer.network.config)
        free = _free_bytes(trainer.device) if memory is not None else 0
        fits = memory is not None and whole_gradients_fit(shape, memory, free)
        self.scatters_once = ranks.all_true(fits)
        """Whether gradients are scattered once a step, rather than after each row."""
        self._idle: Row | None = None

    def step(self, model: Any, rows: Sequence[Row], totals: torch.Tensor) -> torch.Tensor:
        """Adds the gradients of this rank's rows to those of the others; returns the loss of the whole step."""
        trainer = self.trainer
        seed, number = trainer.recipe.seed, trainer.state.global_step
        seed_step(seed, number, ranks.rank())
        most = _most(len(rows))
        rows = [*rows, *(self._idle_row(rows) for _ in range(most - len(rows)))]
        losses = []
        for place, row in enumerate(rows, 1):
            shards.sum_without_scatter(model, place == most or not self.scatters_once)
            loss, _ = trainer.row_loss(model, to_device(row, trainer.device), totals)
            loss.backward()
            losses.append(loss.detach())
        whole = torch.stack(losses).sum()
        dist.all_reduce(whole)
        seed_step(seed, number, ranks.ALL)
        return whole

    def _idle_row(self, rows: Sequence[Row]) -> Row:
        if rows:
            return emptied(min(rows, key=lambda row: row["input_ids"].numel()))
        if self._idle is None:
            trainer = self.trainer
            shortest: Example = min(trainer.examples, key=lambda one: one.tokens)
            self._idle = emptied(trainer.objective.collate([shortest], trainer.layout)[0])
        return self._idle

    def record(self, device: torch.device) -> dict[str, Any]:
        """The record's entry on the ranks."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        scattered = "once a step" if self.scatters_once else "after each row"
        return {"world": ranks.world(), "devices": ranks.gathered(name), "sharded": "FSDP2", "scattered": scattered}


def emptied(row: Row) -> Row:
    """`row` with terms that weigh nothing: its loss and gradients are 0."""
    return {**row, **{name: torch.zeros_like(row[name]) for name in WEIGHTS if name in row}}


def in_step(model: Any, work: Callable[[], T]) -> T:
    """What `work` returns, which passes through the sharded `model` without gradients as often as it likes. All ranks
    have to call this.
    """
    causal = causal_of(model)

    def before(module: Any, inputs: Any) -> None:
        _announce(True)

    hook = causal.register_forward_pre_hook(before, prepend=True)
    try:
        found = work()
    finally:
        hook.remove()
    ids = torch.zeros((1, IDLE_TOKENS), dtype=torch.long, device=causal.device)
    with torch.no_grad(), standard_attention(model):
        while _announce(False):
            causal(input_ids=ids, use_cache=False, logits_to_keep=1)
    shards.reshard(model)
    return found


def _announce(passes: bool) -> bool:
    """Whether any rank makes a pass now. passes: whether this one does."""
    count = torch.tensor([int(passes)])
    dist.all_reduce(count)
    return bool(count.item())


def _most(count: int) -> int:
    found = torch.tensor([count])
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found.item())


def _free_bytes(device: torch.device) -> int | None:
    """Of the whole card, before the model was loaded; None on a CPU."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else None
