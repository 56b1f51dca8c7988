"""Checks that rows with shared prefixes give the same result as single items, on the run's own device and in its dtype.

Every run begins with two items each of two dialogues: they are computed in the run's rows, and one by one in the
standard layers. Loss, gradient and the letters' logits must agree but for rounding (src/tree/compare.py). If they do
not, the run says so and continues one by one. Several ranks do so if one of them has to.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from src.console.cli import UserError
from src.model import ranks
from src.model.causal import is_sharded
from src.model.recipes import Recipe
from src.model.shards import local_part, reshard, summed
from src.prompt.encode import Encoder, Example
from src.train.arguments import CHECKPOINTING
from src.train.objectives import Objective
from src.tree import compiler, layouts
from src.tree.compare import SHARE, allowed, gap, rounding
from src.tree.compiled import restore_standard_layers, standard_attention
from src.tree.rows import Layout, Row, to_device


class GuardedTrainer(Protocol):
    """The part of a trainer that the check uses. It may change `layout` and the layers of `network`."""

    recipe: Recipe
    encoder: Encoder
    objective: Objective
    examples: list[Example]
    layout: Layout
    network: Any

    @property
    def checkpointing(self) -> bool: ...

    @property
    def device(self) -> torch.device: ...

    def row_loss(self, model: Any, row: Row, totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...

    def less_memory(self) -> bool: ...

    def fall_back(self, why: str) -> None: ...


@dataclasses.dataclass(frozen=True)
class Probe:
    """Results of some items in one layout: loss, norm of its gradient, and the objective's `letters` of each item."""

    loss: float
    norm: float
    letters: list[float]


def check_rows_against_single(trainer: GuardedTrainer) -> dict[str, Any] | None:
    """Returns what was compared and whether it agrees, for the record. None where there is nothing to compare: items
    are computed side by side anyway, or compiling the rows failed.

    The trainer continues one by one where the two do not agree, and where compiling fails. Rows that do not fit into
    memory are made shorter.
    """
    if trainer.layout.kind == "padded":
        return None
    probes = _choose(trainer.examples)
    why = ""
    try:
        ours = _fitting(trainer, probes)
    except Exception as error:
        if not (why := compiler.failure(error)) or is_sharded(trainer.network):
            raise
    if why := ranks.any_text(why):
        trainer.fall_back(why)
        return None
    trainer.layout = ranks.least(trainer.layout.tokens, trainer.layout)  # some may have found it too long
    alone = trainer.layout.one_by_one
    theirs = probe(trainer, probes, alone)
    kind = trainer.device.type
    apart = gap(ours.letters, theirs.letters)
    limit = allowed(gap(probe(trainer, probes, alone, rounded=True).letters, theirs.letters), kind)
    agree = ranks.all_true(
        abs(ours.loss - theirs.loss) <= SHARE[kind] * abs(theirs.loss)
        and abs(ours.norm - theirs.norm) <= SHARE[kind] * theirs.norm
        and apart <= limit
    )
    found = {
        "loss": [ours.loss, theirs.loss],
        "gradient_norm": [ours.norm, theirs.norm],
        "letter_logits_gap": apart,
        "letter_logits_allowed": limit,
        "agree": agree,
    }
    if not agree:
        print(f"WARNING: rows of shared prefixes compute something else here: {found}; training one by one", flush=True)
        go_on_one_by_one(trainer)
    return found


def go_on_one_by_one(trainer: GuardedTrainer) -> None:
    """From here on `trainer` takes one item (with its answers) at a time through the standard layers."""
    trainer.layout = trainer.layout.one_by_one
    restore_standard_layers(trainer.network)
    # On a GPU the standard layers keep more of an item than memory was planned for; of several answers they do so on
    # any device.
    on_gpu = trainer.device.type == "cuda"
    tight = trainer.objective.compares or (on_gpu and trainer.recipe.gradient_checkpointing != "off")
    if trainer.checkpointing or tight:
        trainer.network.gradient_checkpointing_enable(CHECKPOINTING)


def _choose(examples: Sequence[Example]) -> list[Example]:
    """Two items each of two dialogues. They are the longest, at whose end a sliding window leaves something out."""
    dialogues: dict[str, list[Example]] = {}
    for one in examples:
        dialogues.setdefault(one.dialogue, []).append(one)
    several = [items for items in dialogues.values() if len(items) > 1] or list(dialogues.values())
    several = sorted(several, key=lambda items: -min(one.tokens for one in items[:2]))[:2]
    return [one for items in several for one in items[:2]]


def _fitting(trainer: GuardedTrainer, probes: Sequence[Example]) -> Probe:
    """`probe` in the trainer's rows, which become shorter until they fit into memory."""
    while (ours := _in_rows(trainer, probes)) is None:
        shorter = layouts.shorter(trainer.layout, max(one.tokens for one in trainer.examples))
        if shorter is None and trainer.less_memory():
            continue
        if shorter is None:
            raise UserError(
                f"not even rows of {trainer.layout.tokens:,} tokens fit into the GPU's memory. "
                "A method that takes less (qlora, or gradient_checkpointing on) or a larger GPU may help."
            )
        print(f"rows of {trainer.layout.tokens:,} tokens do not fit into memory; trying {shorter.tokens:,}", flush=True)
        trainer.layout = shorter
    return ours


def _in_rows(trainer: GuardedTrainer, probes: Sequence[Example]) -> Probe | None:
    """`probe` in the trainer's rows at their greatest length, which takes the most memory. None when it does not fit;
    then what was allocated is freed.
    """
    try:
        return probe(trainer, probes, dataclasses.replace(trainer.layout, lengths=trainer.layout.lengths[-1:]))
    except torch.OutOfMemoryError as error:
        if is_sharded(trainer.network):  # other ranks wait for what it gathers with them
            raise UserError(
                f"rows of {trainer.layout.tokens:,} tokens do not fit into the GPU's memory beside sharded parameters. "
                "More GPUs, gradient_checkpointing on or optimizer bf16-stochastic take less of each."
            ) from error
        trainer.network.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    return None


def probe(trainer: GuardedTrainer, examples: Sequence[Example], layout: Layout, rounded: bool = False) -> Probe:
    """Computes `examples` in a layout, without dropout. rounded: with `rounding`, and without the gradient."""
    network, objective = trainer.network, trainer.objective
    letter_ids = trainer.encoder.letter_ids or ()
    with (
        _without_dropout(network),
        _standard_layers(network) if layout.kind == "padded" else contextlib.nullcontext(),
        rounding(network) if rounded else contextlib.nullcontext(),
        torch.set_grad_enabled(not rounded),
    ):
        loss_sum = 0.0
        letters: dict[int, list[float]] = {}
        rows = objective.collate(examples, layout)
        totals = objective.totals(rows).to(network.device)
        for row in rows:
            row = to_device(row, network.device)
            loss, outputs = trainer.row_loss(network, row, totals)
            if not rounded:
                loss.backward()
            loss_sum += loss.item()
            letters |= objective.letters(outputs, row, letter_ids)
    norm = math.nan if rounded else _gradient_norm(network)
    reshard(network)
    network.zero_grad(set_to_none=True)
    return Probe(loss_sum, norm, [value for number in sorted(letters) for value in letters[number]])


def _gradient_norm(network: Any) -> float:
    """Of sharded parameters, whose gradients are those of all ranks together, each of which has computed the same."""
    parts = [local_part(p.grad) for p in network.parameters() if p.grad is not None]
    total = torch.stack([part.float().square().sum() for part in parts]).sum()
    return (summed(total) / ranks.world() ** 2 if is_sharded(network) else total).sqrt().item()


@contextlib.contextmanager
def _without_dropout(network: Any) -> Iterator[None]:
    """Within, dropout does nothing, but `network` is in training mode: models checkpoint in no other mode."""
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    try:
        yield
    finally:
        network.train()


@contextlib.contextmanager
def _standard_layers(network: Any) -> Iterator[None]:
    """Within, `network` has its standard layers with checkpointing, which never take more memory than rows do."""
    was_on = network.is_gradient_checkpointing
    if not was_on:
        network.gradient_checkpointing_enable(CHECKPOINTING)
    try:
        with standard_attention(network):
            yield
    finally:
        if not was_on:
            network.gradient_checkpointing_disable()
