"""Do rows of shared prefixes compute the same? Asked at the start of every run, on its own device and in its dtype.

Two items each of two dialogues are learned in the run's rows and one by one in the usual way. Loss, letter logits and
gradient must agree but for rounding; if they do not, the run goes on one by one, and says so. How much rounding moves
the letter logits is measured on the model at hand: a deep or a barely trained one has far more of it than others.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from src.console.cli import UserError
from src.prompt.encode import Example
from src.tree import compiler, layouts
from src.tree.rows import Layout, causal_of, make_usual, to_device, usually

CHECKPOINTING = {"use_reentrant": False}
SHARE = {"cpu": 1e-3, "cuda": 0.05}
"""By which share loss and gradient norm may differ between layouts: fp32's rounding on a CPU, bf16's on a GPU."""
EPSILON = {"cpu": torch.finfo(torch.float32).eps, "cuda": torch.finfo(torch.bfloat16).eps}
"""Relative distance of neighbouring numbers in the dtype that is computed in."""
TIMES = 5
"""How often the gap that rounding makes (`rounding`) letter logits may be apart.

Random models of 4 to 64 layers, 256 and 512 wide, bf16 on a CPU: sound rows, compiled or not, were apart by at most 1.5
of it (in fp32 1.8); rows whose branches saw each other by 4.8 to 192, by more than 12 but for two of 64 layers. On an
H200 rows of the shapes of 8B and 14B were apart by 0.7 to 1.4 of it.
"""
LEAST = {"cpu": 1e-4, "cuda": 0.1}
"""What is always allowed: neighbouring bf16 numbers between 8 and 32 are 0.06 to 0.125 apart."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """What some items give in one layout: their loss, its gradient's norm, and the objective's `letters` of each."""

    loss: float
    norm: float
    letters: list[float]


def gap(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Root mean square of the differences."""
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / len(ours))


def allowed(rounded: float, kind: str) -> float:
    """How far apart letter logits may be on a kind of device where rounding moves them by `rounded`."""
    return max(LEAST[kind], TIMES * rounded)


@contextlib.contextmanager
def rounding(model: Any) -> Iterator[None]:
    """Within, each decoder layer's output is moved at random by up to half a last bit of the dtype computed in, once
    more than it is by itself. What that does to the logits is what any other order of summation may do.
    """
    generator = torch.Generator(model.device).manual_seed(0)

    def move(layer: Any, inputs: Any, output: Any) -> Any:
        values = output[0] if isinstance(output, tuple) else output
        noise = torch.rand(values.shape, generator=generator, device=values.device) - 0.5
        moved = (values * (1 + EPSILON[values.device.type] * noise)).to(values.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    hooks = [layer.register_forward_hook(move) for layer in causal_of(model).get_decoder().layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def guarded(trainer: Any, checkpointing: bool = False) -> dict[str, Any] | None:
    """What was compared: two items of each of two dialogues in the trainer's rows, and one by one in the usual way.

    Where loss, letter logits or gradient differ by more than rounding, the trainer goes on one by one, and says so.
    Rows that do not fit into memory after all become shorter; None where they cannot be compiled, and the trainer goes
    on one by one. checkpointing: as it is wanted one by one, too.
    """
    if trainer.layout.kind == "padded":
        return None
    dialogues: dict[str, list[Example]] = {}
    for one in trainer.examples:
        dialogues.setdefault(one.dialogue, []).append(one)
    several = [items for items in dialogues.values() if len(items) > 1] or list(dialogues.values())
    # The longest, at whose end a sliding window leaves something out.
    several = sorted(several, key=lambda items: -min(one.tokens for one in items[:2]))[:2]
    probes = [one for items in several for one in items[:2]]
    why = ""
    try:
        ours = _fitting(trainer, probes)
    except Exception as error:
        if not (why := compiler.failure(error)):
            raise
    if why:
        trainer.fall_back(why)
        return None
    alone = _alone(trainer.layout)
    theirs = probe(trainer, probes, alone)
    kind = trainer.args.device.type
    apart = gap(ours.letters, theirs.letters)
    limit = allowed(gap(probe(trainer, probes, alone, rounded=True).letters, theirs.letters), kind)
    agree = (
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
        one_by_one(trainer, checkpointing)
    return found


def one_by_one(trainer: Any, checkpointing: bool) -> None:
    """From here on `trainer` takes one item (with its answers) at a time through the usual layers."""
    trainer.layout = _alone(trainer.layout)
    make_usual(trainer.network)
    # On a GPU the usual layers keep more of an item than memory was planned for, of several answers anywhere.
    on_gpu = trainer.args.device.type == "cuda"
    tight = trainer.objective.compares or (on_gpu and trainer.recipe.gradient_checkpointing != "off")
    if checkpointing or tight:
        trainer.network.gradient_checkpointing_enable(CHECKPOINTING)


def _alone(layout: Layout) -> Layout:
    return Layout("padded", layout.tokens, layout.pad_id, sequences=1)


def _fitting(trainer: Any, probes: Sequence[Example]) -> Probe:
    """`probe` in the trainer's rows, which become shorter until they fit into memory."""
    while (ours := _in_rows(trainer, probes)) is None:
        shorter = layouts.shorter(trainer.layout, max(one.tokens for one in trainer.examples))
        if shorter is None:
            raise UserError(
                f"not even rows of {trainer.layout.tokens:,} tokens fit into the GPU's memory. A method that takes "
                "less (qlora, or gradient_checkpointing on) or a larger GPU may help."
            )
        print(f"rows of {trainer.layout.tokens:,} tokens do not fit into memory; trying {shorter.tokens:,}", flush=True)
        trainer.layout = shorter
    return ours


def _in_rows(trainer: Any, probes: Sequence[Example]) -> Probe | None:
    """`probe` in the trainer's rows at their greatest length, where memory is shortest; None when it does not suffice,
    with whatever was made gone.
    """
    try:
        return probe(trainer, probes, dataclasses.replace(trainer.layout, lengths=trainer.layout.lengths[-1:]))
    except torch.OutOfMemoryError:
        trainer.network.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    return None


def probe(trainer: Any, examples: Sequence[Example], layout: Layout, rounded: bool = False) -> Probe:
    """What `examples` give in a layout, on the real device and in its dtype, without dropout. rounded: with `rounding`,
    and without the gradient.
    """
    network = trainer.accelerator.unwrap_model(trainer.model)
    device = network.device
    letter_ids = list(trainer.encoder.letter_ids or ())
    network.train()  # checkpointing is for training only
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    with (
        _one_by_one(network) if layout.kind == "padded" else contextlib.nullcontext(),
        rounding(network) if rounded else contextlib.nullcontext(),
        torch.set_grad_enabled(not rounded),
    ):
        total = 0.0
        letters: dict[int, list[float]] = {}
        rows = trainer.objective.collate(examples, layout)
        totals = trainer.objective.totals(rows).to(device)
        for row in rows:
            row = to_device(row, device)
            loss, outputs = trainer.row_loss(network, row, totals)
            if not rounded:
                loss.backward()
            total += loss.item()
            letters |= trainer.objective.letters(outputs, row, letter_ids)
    squares = [p.grad.float().square().sum() for p in network.parameters() if p.grad is not None]
    norm = math.nan if rounded else torch.stack(squares).sum().sqrt().item()
    network.zero_grad(set_to_none=True)
    network.train()
    return Probe(total, norm, [value for number in sorted(letters) for value in letters[number]])


@contextlib.contextmanager
def _one_by_one(network: Any) -> Iterator[None]:
    """Within, the usual layers with checkpointing, so that they never take more memory than rows do."""
    was_on = network.is_gradient_checkpointing
    if not was_on:
        network.gradient_checkpointing_enable(CHECKPOINTING)
    try:
        with usually(network):
            yield
    finally:
        if not was_on:
            network.gradient_checkpointing_disable()
