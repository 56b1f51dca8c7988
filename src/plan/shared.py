"""How many GPUs a run gets: one, but several for a run of all parameters that no single one holds.

This is chosen by the plan before anything starts. The ranks themselves then go by the memory that is really free
(src/train/sharded.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from src.console.words import counted
from src.model.devices import Gpu
from src.model.memory import SHARDED, MemoryPlan, choose_memory_plan, run_folder_bytes
from src.model.recipes import Recipe
from src.model.shapes import GIB
from src.plan.communication import COUNTS
from src.plan.estimates import Estimate, workload
from src.plan.known import known_base

LEAST = 2
"""GPUs of a run that asks to be sharded, where nothing more is known."""


@dataclass(frozen=True)
class Sharing:
    """gpus: how many the run gets. plan: of each of several, where it can be known. why: what keeps the run from being
    shared, which no single GPU holds or whose recipe asks for it.
    """

    gpus: int = 1
    plan: MemoryPlan | None = None
    why: str = ""


def sharing(recipe: Recipe, gpus: Sequence[Gpu] | None) -> Sharing:
    """Of a run on a machine with `gpus`; None when it goes to another machine, of which nothing is known.

    The fewest of `COUNTS` on which it fits, the GPU with the least free memory among them.
    """
    asked = recipe.fsdp == "on"
    if recipe.method != "full" or recipe.fsdp == "off" or (gpus is not None and len(gpus) < LEAST):
        return Sharing()
    shape = known_base(recipe).shape
    if not asked and (shape is None or gpus is None):
        return Sharing()
    if not asked and any(_plan(recipe, 1, gpu.free_bytes).fits for gpu in gpus or ()):
        return Sharing()
    if why := _never(recipe):
        return Sharing(why=why)
    if gpus is None or shape is None:
        return Sharing(LEAST)
    items, least = _items(recipe), min(gpu.free_bytes for gpu in gpus)
    for count in [count for count in COUNTS if count <= min(len(gpus), items)]:
        plan = _plan(recipe, count, least)
        if plan.fits:
            return Sharing(count, plan)
    few = f", of which a step has {counted(items, 'item')} for" if items < len(gpus) else ""
    return Sharing(
        why=f"sharded over {count} of {len(gpus)} GPUs{few}, it takes {plan.memory.total / GIB:.0f} GiB on each, "
        f"more than fits into {least / GIB:.0f} GiB"
    )


def shared_out(estimates: Sequence[Estimate], recipes: Sequence[Recipe], gpus: Sequence[Gpu] | None) -> list[Estimate]:
    """The estimates with the GPUs that each run gets, and its memory there. estimates: one for each recipe."""
    found = []
    for one, recipe in zip(estimates, recipes, strict=True):
        chosen = sharing(recipe, gpus)
        changed = replace(one, gpus=chosen.gpus)
        shape, plan = known_base(recipe).shape, chosen.plan
        if plan is not None and shape is not None:
            disk = run_folder_bytes(shape, recipe.method, plan.optimizer, recipe.lora_r)
            changed = replace(changed, training=plan, cards=dict.fromkeys(one.cards, plan), disk=disk)
        found.append(changed)
    return found


def refused(recipes: Sequence[Recipe], gpus: Sequence[Gpu] | None) -> dict[str, str]:
    """Name → why a run whose recipe asks to be sharded cannot be."""
    found = {recipe.name: sharing(recipe, gpus).why for recipe in recipes if recipe.fsdp == "on"}
    return {name: f"fsdp on: {why}" for name, why in found.items() if why}


def launcher(gpus: int) -> list[str]:
    """What comes before `-m run.train` so that so many ranks run it: torchrun, on a free port of the loopback address,
    so that several on one machine do not meet.
    """
    if gpus == 1:
        return []
    where = ["--standalone", "--local-addr", "127.0.0.1"]
    return ["-m", "torch.distributed.run", *where, "--nproc_per_node", str(gpus)]


def _plan(recipe: Recipe, cards: int, free: int) -> MemoryPlan:
    shape = known_base(recipe).shape
    assert shape is not None
    work = replace(workload(recipe, shape), cards=cards)
    return choose_memory_plan(shape, work, recipe.optimizer, recipe.gradient_checkpointing, free)


def _items(recipe: Recipe) -> int:
    return recipe.batch_size * recipe.gradient_accumulation_steps


def _never(recipe: Recipe) -> str:
    """What keeps it from being sharded on any machine."""
    if _items(recipe) < LEAST:
        return (
            "an optimizer step has 1 item (batch_size × gradient_accumulation_steps), and each GPU needs one; "
            f"batch_size {LEAST} or more, which changes what is learned, can be shared"
        )
    if recipe.optimizer not in ("auto", *SHARDED):
        return f"optimizer {recipe.optimizer} cannot be sharded; allowed there: {', '.join(SHARDED)}"
    return ""
