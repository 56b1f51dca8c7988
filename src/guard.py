"""Do rows of shared prefixes compute the same? Asked at the start of every run, on its own device and in its dtype.

Two items each of two dialogues are learned in the run's rows and one by one in the usual way. Loss, letter logits and
gradient must agree but for rounding; if they do not, the run goes on one by one, and says so.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from src import layouts, preference
from src.cli import UserError
from src.encode import Example
from src.recipes import ORPO
from src.rows import Layout, make_usual, to_device, totals, usually

CHECKPOINTING = {"use_reentrant": False}
SHARE = {"cpu": 1e-3, "cuda": 0.05}
"""By which share loss and gradient norm may differ between layouts: fp32's rounding on a CPU, bf16's on a GPU."""
GAP = {"cpu": 1e-3, "cuda": 0.5}
"""How far apart letter logits may be, as `gap` has it. bf16 alone moves those of 64 layers of random weights by 0.15
between two kinds of attention, single ones by 0.9, where logits have a standard deviation of 1.3 (seen on a CPU).
"""


@dataclasses.dataclass(frozen=True)
class Probe:
    """What some items give in one layout: their loss, its gradient's norm, and the letters' logits of each (with
    objective orpo the log-probability of each answer's letter).
    """

    loss: float
    norm: float
    letters: list[float]


def gap(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Root mean square of the differences."""
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / len(ours))


def guarded(trainer: Any, checkpointing: bool = False) -> dict[str, Any] | None:
    """What was compared: two items of each of two dialogues in the trainer's rows, and one by one in the usual way.

    Where loss, letter logits or gradient differ by more than rounding, the trainer goes on one by one, and says so.
    Rows that do not fit into memory after all become shorter. checkpointing: as it is wanted one by one, too.
    """
    if trainer.layout.kind == "padded":
        return None
    dialogues: dict[str, list[Example]] = {}
    for one in trainer.examples:
        dialogues.setdefault(one.dialogue, []).append(one)
    several = [items for items in dialogues.values() if len(items) > 1] or list(dialogues.values())
    # The shortest: one by one, memory holds less of an item than of a row.
    several = sorted(several, key=lambda items: max(len(one.ids) for one in items[:2]))[:2]
    probes = [one for items in several for one in items[:2]]
    alone = Layout("padded", trainer.layout.tokens, trainer.layout.pad_id, sequences=1)
    while (compared := _compared(trainer, probes, alone)) is None:
        shorter = layouts.shorter(trainer.layout, max(one.tokens for one in trainer.examples))
        if shorter is None:
            raise UserError(
                f"not even rows of {trainer.layout.tokens:,} tokens fit into the GPU's memory. A method that takes "
                "less (qlora, or gradient_checkpointing on) or a larger GPU may help."
            )
        print(f"rows of {trainer.layout.tokens:,} tokens do not fit into memory; trying {shorter.tokens:,}", flush=True)
        trainer.layout = shorter
    ours, theirs = compared
    kind = trainer.args.device.type
    apart = gap(ours.letters, theirs.letters)
    agree = (
        abs(ours.loss - theirs.loss) <= SHARE[kind] * abs(theirs.loss)
        and abs(ours.norm - theirs.norm) <= SHARE[kind] * theirs.norm
        and apart <= GAP[kind]
    )
    found = {
        "loss": [ours.loss, theirs.loss],
        "gradient_norm": [ours.norm, theirs.norm],
        "letter_logits_gap": apart,
        "agree": agree,
    }
    if not agree:
        print(f"WARNING: rows of shared prefixes compute something else here: {found}; training one by one", flush=True)
        trainer.layout = alone
        make_usual(trainer.network)
        # Several answers of an item side by side are more than memory was planned for.
        if checkpointing or trainer.recipe.objective == ORPO:
            trainer.network.gradient_checkpointing_enable(CHECKPOINTING)
    return found


def _compared(trainer: Any, probes: Sequence[Example], alone: Layout) -> list[Probe] | None:
    """`compare` of the trainer's rows at their greatest length, where memory is shortest, and of items alone;
    None when it does not suffice, with whatever was made gone.
    """
    rows = dataclasses.replace(trainer.layout, lengths=trainer.layout.lengths[-1:])
    try:
        return compare(trainer, probes, (rows, alone))
    except torch.OutOfMemoryError:
        trainer.network.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    return None


def compare(trainer: Any, examples: Sequence[Example], compared: Sequence[Layout]) -> list[Probe]:
    """What `examples` give in each layout, on the real device and in its dtype, without dropout."""
    network = trainer.accelerator.unwrap_model(trainer.model)
    device = network.device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=trainer.args.bf16)
    letter_ids = list(trainer.encoder.letter_ids or ())
    found = []
    network.train()  # checkpointing is for training only
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    for layout in compared:
        total = 0.0
        letters: dict[int, list[float]] = {}
        # An item's answers side by side must not take more memory than the rows do.
        sparing = layout.kind == "padded" and trainer.recipe.objective == ORPO
        sparing = sparing and not network.is_gradient_checkpointing
        if sparing:
            network.gradient_checkpointing_enable(CHECKPOINTING)
        with usually(network) if layout.kind == "padded" else contextlib.nullcontext():
            rows = trainer.collate(examples, layout)["rows"]
            whole = totals(rows).to(device)
            for row in rows:
                with autocast:
                    loss, outputs = trainer.row_loss(network, to_device(row, device), whole)
                loss.backward()
                total += loss.item()
                if trainer.recipe.objective == ORPO:
                    letters |= preference.letter_logprobs(outputs, row)
                    continue
                for number, values in zip(row["sequence"].tolist(), outputs[:, letter_ids].tolist(), strict=True):
                    letters.setdefault(number, values)  # an item's first term is its letter
        squares = [p.grad.float().square().sum() for p in network.parameters() if p.grad is not None]
        norm = torch.stack(squares).sum().sqrt().item()
        found.append(Probe(total, norm, [value for number in sorted(letters) for value in letters[number]]))
        network.zero_grad(set_to_none=True)
        if sparing:
            network.gradient_checkpointing_disable()
    network.train()
    return found
