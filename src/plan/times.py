"""How long training and scoring take, scaled from the steps in `resource/speeds.yaml`: estimates.

A step takes a fixed time and a time for each token. Both go by the model's linear weights; the second goes by the FLOPs
of each weight and token as well. Another GPU takes as much longer as its bf16 peak is lower. That was measured on no
other GPU than those of the table, and none of smaller memory is among them.
"""

import math

from src.model.backbones import backbones
from src.model.devices import relative_speed
from src.model.memory import MemoryPlan, recomputed
from src.model.recipes import Recipe
from src.model.shapes import Shape, flops
from src.plan.speeds import SCORING, Step, measured

SCORING_FLOPS = RECOMPUTING_FLOPS = 2
"""Per linear weight and token: a forward pass."""


def training_seconds(
    shape: Shape, recipe: Recipe, memory: MemoryPlan, items: int, tokens_per_item: float, card: str
) -> float | None:
    """Estimate of all epochs over `items` items on the GPU called `card`; evaluations are left out. None for a GPU
    whose speed is not known.

    Items of a step are taken to come one after the other: shared tokens are not subtracted.
    """
    full, unpacks = recipe.method == "full", recipe.method == "qlora" and not memory.dequantised
    again = recomputed(memory, shape, tokens_per_item)

    def distance(step: Step) -> tuple[float, ...]:
        return (
            step.objective != recipe.objective,
            not step.captured,
            step.unpacks != unpacks,
            (step.recomputed > 0) != (again > 0),
            (step.dropout > 0) != (recipe.lora_dropout > 0),
            full and step.optimizer != memory.optimizer,
            step.card != card,
            abs(math.log(_linear_parameters(step) / shape.linear_parameters)),
        )

    alike = [step for step in measured() if step.method != SCORING and (step.method == "full") == full]
    one_step = recipe.batch_size * recipe.gradient_accumulation_steps
    each = flops(recipe.method, checkpointing=False) + RECOMPUTING_FLOPS * again
    seconds = _scaled(min(alike, key=distance), shape, one_step * tokens_per_item, each, card)
    return None if seconds is None else recipe.epoch * math.ceil(items / one_step) * seconds


def scoring_seconds(shape: Shape, items: int, computed_per_item: float, card: str) -> float | None:
    """Estimate of scoring `items` items in one order. computed_per_item: tokens of an item that no other one shares."""
    step = min((one for one in measured() if one.method == SCORING), key=lambda one: one.card != card)
    return _scaled(step, shape, items * computed_per_item, SCORING_FLOPS, card)


def _scaled(step: Step, shape: Shape, tokens: float, each: float, card: str) -> float | None:
    """Seconds of a measured step with another model and GPU, for `tokens` tokens of `each` FLOPs a linear weight."""
    speed = relative_speed(card, step.card)
    if speed is None:
        return None
    weights = shape.linear_parameters / _linear_parameters(step)
    work = weights * tokens * each / (step.tokens * _flops(step))
    fixed = step.fixed_seconds or 0.0
    return (fixed * weights + (step.seconds - fixed) * work) / speed


def _flops(step: Step) -> float:
    if step.method == SCORING:
        return SCORING_FLOPS
    return flops(step.method, checkpointing=False) + RECOMPUTING_FLOPS * step.recomputed


def _linear_parameters(step: Step) -> int:
    return Shape.of_backbone(backbones()[step.backbone]).linear_parameters
