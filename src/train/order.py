"""The order in which an epoch takes the items, and the optimizer steps that follow from it."""

import random
from collections.abc import Iterator, Sequence

import torch

from src.model.recipes import Recipe
from src.prompt.encode import Example


def epoch_steps(examples: Sequence[Example], recipe: Recipe) -> list[list[int]]:
    """Indices of the examples in each optimizer step, for an epoch in the recipe's order."""
    order = list(range(len(examples)))
    if recipe.order == "dialogue":
        order = by_dialogue(examples, f"{recipe.seed}-0")
    else:
        random.Random(recipe.seed).shuffle(order)
    step = recipe.batch_size * recipe.gradient_accumulation_steps
    return [order[start : start + step] for start in range(0, len(order), step)]


def by_dialogue(examples: Sequence[Example], seed: str) -> list[int]:
    """Indices of the examples: dialogues in a random order, and the items of each in a random order."""
    rng = random.Random(seed)
    groups: dict[str, list[int]] = {}
    for number, one in enumerate(examples):
        groups.setdefault(one.dialogue, []).append(number)
    dialogues = list(groups.values())
    return [number for group in rng.sample(dialogues, len(dialogues)) for number in rng.sample(group, len(group))]


class ByDialogue(torch.utils.data.Sampler[int]):
    """`by_dialogue`, drawn again in each epoch."""

    def __init__(self, examples: Sequence[Example], seed: int) -> None:
        self.examples, self.seed, self.epoch = examples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[int]:
        return iter(by_dialogue(self.examples, f"{self.seed}-{self.epoch}"))
