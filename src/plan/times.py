"""How long training and scoring take, scaled from steps that were timed on one H200: estimates."""

from src.model.recipes import Recipe
from src.model.shapes import Shape, flops

# Tokens a second that one H200 computes of an 8B Llama shape (bllossom), shared tokens once, by (what is done,
# checkpointing). For a pair that is not here, the FLOP rate of the other one is taken. They are the column "unique
# tok/s", on an H200, of     python -m run.bench --rows lora-1 full-1 score-1 NF4 dequantised once is as fast as bf16.
# At one item a step the host limits the speed, most of all for short items: with items of 978 tokens lora-1 made 6,765
# to 8,988 on other machines.
RATES = {
    ("qlora", False): 4687,  # lora-1
    ("lora", False): 4687,  # lora-1
    ("full", False): 1795,  # full-1
    ("scoring", False): 39_632,  # score-1
}
RATES_LINEAR = 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336)
"""Linear weights of the model that was measured."""


def training_seconds(
    shape: Shape, recipe: Recipe, items: int, tokens_per_item: float, checkpointing: bool, speed: float
) -> float:
    """Estimate of all epochs over `items` items, by the rate of one item a step; evaluations are left out.

    speed: the bf16 peak of the GPU relative to an H200's.
    """
    timed = (recipe.method, checkpointing)
    if timed not in RATES:
        timed = (recipe.method, not checkpointing)
    rate = RATES[timed] * RATES_LINEAR * flops(*timed) * speed
    work = items * recipe.epoch * tokens_per_item * shape.linear_parameters * flops(recipe.method, checkpointing)
    return work / rate


def scoring_seconds(shape: Shape, items: int, computed_per_item: float, speed: float) -> float:
    """Estimate of scoring `items` items in one order. computed_per_item: tokens of an item that no other one shares."""
    rate = RATES["scoring", False] * RATES_LINEAR * speed
    return items * computed_per_item * shape.linear_parameters / rate
