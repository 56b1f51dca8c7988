"""Output of a training: what will be learned, how it is computed, hints, and the progress bar."""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from transformers import TrainerCallback

from src import task
from src.console import progress
from src.console.cli import UserError
from src.console.words import counted
from src.model.memory import MemoryPlan
from src.model.recipes import Recipe
from src.prompt.encode import Encoder, Example
from src.train.curves import Curve
from src.train.objectives import Objective
from src.train.order import epoch_steps
from src.tree.layouts import GPU_ROW, TrainingLayout, sharing_factor
from src.tree.rows import WORTHWHILE, Layout

NOTED = 2.0
"""Seconds between updates of the loss beside the bar."""
HINTED = 16
"""Items of the larger optimizer step that the hint computes sharing for."""


def show_examples(objective: Objective, encoder: Encoder, train: Sequence[Example], dev: Sequence[Example]) -> None:
    """Shows one item, counts and the loss, before hours of training."""
    recipe, letters = objective.recipe, task.current().letters
    lengths = sorted(max(map(len, one.sequences)) for one in train)
    labels = Counter(one.letter for one in train)
    print(f"one item as {recipe.backbone} sees it, the supervised part between ⟦ and ⟧:\n{encoder.show(train[0])}\n")
    print(
        f"{len(train)} train items of {lengths[0]} to {lengths[-1]} tokens (median {lengths[len(lengths) // 2]}), "
        f"right answers {', '.join(f'{letter} {labels[number]}' for number, letter in enumerate(letters))}; "
        f"{len(dev)} dev items; letters {', '.join(letters)} are tokens {encoder.letter_ids}; "
        f"chat template from the {encoder.template_source}, system turn {encoder.system_turn}"
    )
    steps = math.ceil(len(train) / (recipe.batch_size * recipe.gradient_accumulation_steps))
    print(
        f"{counted(steps, 'optimizer step')} an epoch, {counted(recipe.epoch, 'epoch')}, lr {recipe.lr}, "
        f"loss over the {objective.words()}, per {recipe.loss_per}"
    )


def show_computation(recipe: Recipe, chosen: TrainingLayout, parameters: tuple[int, int], device: torch.device) -> None:
    """parameters: how many are trained, and how many there are."""
    memory, (trainable, total) = chosen.memory, parameters
    print(
        f"training {trainable:,} of {total:,} parameters, {recipe.method}"
        f"{' with ' + memory.optimizer if recipe.method == 'full' else ''}"
        f"{' dequantised once' if memory.dequantised else ''}, {device}, "
        f"gradient checkpointing {'on' if memory.checkpointing else 'off'}"
        f"{' where memory asks for it' if memory.spare else ''}"
        f"{', cheap activations computed again' if memory.selective else ''}; "
        f"{layout_words(chosen.layout, chosen.sharing_factor)}"
    )


def warn_of_memory(memory: MemoryPlan) -> None:
    if not memory.fits:
        print(f"this may run out of memory: about {memory.memory.total / 2**30:.0f} GiB are needed")


def warn_of_warm_up(recipe: Recipe, warm_up: int, steps: int) -> None:
    """warm_up: steps of it, of all `steps`."""
    if recipe.lr_scheduler != "constant" and warm_up >= steps:
        print(
            f"the warm-up takes all {steps} optimizer steps, and the first one's learning rate is 0: "
            "next to nothing is learned. More items or epochs, or --warmup_steps 0, end that"
        )


def hint_at_larger_steps(recipe: Recipe, examples: Sequence[Example], layout: Layout) -> None:
    """Says what larger optimizer steps would share, where it is worth it."""
    larger = recipe.replace(batch_size=HINTED, gradient_accumulation_steps=1, order="dialogue")
    tree = dataclasses.replace(layout, kind="tree", tokens=GPU_ROW)
    factor = sharing_factor(examples, epoch_steps(examples, larger), tree)
    if factor >= WORTHWHILE:
        step = recipe.batch_size * recipe.gradient_accumulation_steps
        items = "one item" if step == 1 else f"{step} items"
        print(
            f"steps of {items} share too little. --batch_size {HINTED} --order dialogue would compute "
            f"{factor:.1f} times fewer tokens, in fewer steps of another gradient"
        )


def layout_words(layout: Layout, factor: float) -> str:
    """factor: input tokens per computed token."""
    if layout.kind == "padded":
        return "items side by side"
    lengths = lengths_words(layout)
    if layout.kind == "single":
        return f"one item a row{lengths}"
    return f"rows{lengths} that hold shared prefixes once, {factor:.2f} tokens for each that is computed"


def lengths_words(layout: Layout) -> str:
    """The lengths that rows are filled up to, in words that follow `rows`; "" for none."""
    if isinstance(layout.lengths, range):
        return f" of up to {layout.lengths[-1]:,} tokens"
    return f" of {', '.join(f'{length:,}' for length in layout.lengths)} tokens" if layout.lengths else ""


class Bar(TrainerCallback):
    """Progress bar over the steps, with the loss of the last step, the learning rate of the next, and items a second. A
    NaN or infinite loss ends the training.
    """

    def __init__(self, bar: progress.Progress, last_loss: Callable[[], torch.Tensor], curve: Curve) -> None:
        self.bar, self.last_loss, self.curve, self.noted = bar, last_loss, curve, -math.inf

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.bar.begin(state.global_step, state.max_steps)

    def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):  # type: ignore[no-untyped-def]
        # Reading the loss waits for the GPU.
        if time.monotonic() - self.noted >= NOTED or state.global_step == state.max_steps:
            self.noted = time.monotonic()
            note = f"loss {self.last_loss().item():.4f}, lr {lr_scheduler.get_last_lr()[0]:.2e}"
            self.bar.note(note + (f", {rate:.3g} items/s" if (rate := self.curve.rate) else ""))
        self.bar.update(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        wrong = {key: logs[key] for key in ("loss", "grad_norm") if key in logs and not math.isfinite(logs[key])}
        if wrong:
            raise UserError(
                f"training diverged before step {state.global_step}: {wrong}. A lower lr or a warm-up may help."
            )
