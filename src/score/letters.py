"""Scoring: the logits of the three letters behind each prompt, in fp32."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from src.model.shapes import Shape
from src.prompt.encode import Example
from src.score.item_scores import ItemScores
from src.train.guard import allowed, gap, rounding
from src.tree import compiler
from src.tree.layouts import CPU_BATCH, CPU_TREE, GPU_SCORING, scoring_layout, scoring_slower
from src.tree.rows import (
    Layout,
    Term,
    causal_of,
    lay_out,
    logits_at,
    make_ready,
    make_usual,
    obstacle,
    to_device,
    usually,
)

PROBES = 4
"""Prompts that are compared before a model's rows are trusted."""


class LetterHead(torch.nn.Module):
    """The three letters' rows of an output head, multiplied in fp32: bf16 logits are 0.06 to 0.125 apart, so
    letters would tie.
    """

    def __init__(self, head: Any, letter_ids: Sequence[int]) -> None:
        super().__init__()
        rows = torch.tensor(list(letter_ids), device=head.weight.device)
        weight = head.weight.detach()[rows].float()
        for name in getattr(head, "active_adapters", ()):  # LoRA on the head itself
            weight += head.scaling[name] * head.lora_B[name].weight[rows].float() @ head.lora_A[name].weight.float()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        bias = getattr(head, "bias", None)
        self.bias = None if bias is None else torch.nn.Parameter(bias.detach()[rows].float(), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.nn.functional.linear(hidden.float(), self.weight, self.bias)


@contextlib.contextmanager
def letters_only(model: Any, letter_ids: Sequence[int]) -> Iterator[None]:
    """Within, `model(...).logits` has three columns, A, B and C; what the model does behind its head (softcap)
    still happens, and dropout does not.
    """
    causal = causal_of(model)
    head = causal.get_output_embeddings()
    was_training = model.training
    model.eval()
    causal.set_output_embeddings(LetterHead(head, letter_ids))
    try:
        yield
    finally:
        causal.set_output_embeddings(head)
        model.train(was_training)


def score(
    model: Any,
    examples: Sequence[Example],
    letter_ids: Sequence[int],
    pad_id: int,
    batch_tokens: int | None = None,
    update: Callable[[int], None] = lambda done: None,
    kind: str | None = None,
    share: str = "auto",
) -> list[ItemScores]:
    """Letter logits of `examples` (prompts, from `Encoder.for_scoring`), one `ItemScores` per item, in the order
    they came.

    batch_tokens: at most so many tokens at a time, padding counted; by default what suits the device. update: gets
    the count done. kind: of the rows (`rows.Layout`); by default trees where what prompts share is worth it, or as
    `share` (a recipe's `share_prefixes`) has it. The first such row is compared, once for a model, with prompts one by
    one; should they differ, all are read one by one. `how_read` tells what it was.
    """
    prompts = [example.ids for example in examples]
    side_by_side = Layout("padded", CPU_BATCH if model.device.type == "cpu" else GPU_SCORING, pad_id)
    why = _obstacle(model, prompts, share) if kind is None and batch_tokens is None and prompts else ""
    if kind == "padded" or why or not prompts:
        layout = dataclasses.replace(side_by_side, tokens=batch_tokens or side_by_side.tokens)
    elif kind or batch_tokens:
        layout = Layout(kind or "padded", batch_tokens or CPU_TREE, pad_id)
    else:
        shape = Shape.of_config(model.config)
        layout = scoring_layout(prompts, shape, pad_id, model.device, make_ready(model), share)
    # fp32 weights, which training all parameters keeps, are computed with in bf16 too.
    mixed = model.device.type == "cuda" and model.get_input_embeddings().weight.dtype == torch.float32
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=mixed)
    guard, failed = None, ""
    with torch.inference_mode(), letters_only(model, letter_ids), autocast:
        try:
            layout, guard = _trusted(model, examples, layout)
            logits = _read(model, prompts, layout, update)
        except Exception as error:
            if not (failed := compiler.failure(error)):
                raise
        if failed:
            compiler.give_up(failed, scoring_slower(prompts, share))
            make_usual(model)
            layout, guard, why = side_by_side, None, failed
            logits = _read(model, prompts, layout, update)
    model.read = {"kind": layout.kind, "guard": guard} | ({"obstacle": why} if why else {})
    by_item: dict[str, list[tuple[str, tuple[float, float, float]]]] = {}
    for example, (a, b, c) in zip(examples, logits.tolist(), strict=True):
        by_item.setdefault(example.id, []).append((example.order, (a, b, c)))
    return [
        ItemScores(id=id, orders=tuple(order for order, _ in rows), logits=tuple(row for _, row in rows))
        for id, rows in by_item.items()
    ]


def announce(splits: Sequence[Sequence[Example]], device: torch.device) -> None:
    """Says what keeps this machine from compiling, for `splits` that are to be scored; before weights are loaded."""
    if why := compiler.obstacle(device):
        compiler.give_up(why, scoring_slower([example.ids for examples in splits for example in examples]))


def how_read(model: Any) -> dict[str, Any]:
    """How `score` last had `model` read: the rows' kind, what the comparison found, the obstacle to sharing if any."""
    return dict(model.read)


def _obstacle(model: Any, prompts: Sequence[Sequence[int]], share: str) -> str:
    """Why the model cannot read rows of a tree here, which is said; "" when it can."""
    causal = causal_of(model)
    machine = compiler.obstacle(model.device)
    why = obstacle(type(causal), causal.config, model.device)
    if why and getattr(model, "read", {}).get("obstacle") != why:
        print(f"no prefixes are shared: {why}", flush=True)
    if machine:
        compiler.give_up(machine, scoring_slower(prompts, share))
    return why or machine


def _trusted(model: Any, examples: Sequence[Example], layout: Layout) -> tuple[Layout, dict[str, Any] | None]:
    """(the layout, or, where it reads something else, prompts one by one; what the comparison found)."""
    if layout.kind == "padded":
        return layout, None
    alone = Layout("padded", CPU_BATCH, layout.pad_id, sequences=1)
    guard: dict[str, Any] = getattr(model, "rows_guard", None) or _compared(model, examples, layout, alone)
    if guard["agree"]:
        model.rows_guard = guard
        return layout, guard
    print(
        f"WARNING: prompts that share their beginnings are read differently here, letter logits by "
        f"{guard['letter_logits_gap']:.3f}; reading all one by one, which is slower",
        flush=True,
    )
    return alone, guard


def _compared(model: Any, examples: Sequence[Example], layout: Layout, alone: Layout) -> dict[str, Any]:
    """Letter logits of the first rows against those of up to two examples each of two dialogues in them alone."""
    prompts = [example.ids for example in examples]
    some = 1 if layout.kind == "tree" else PROBES
    found: dict[int, list[float]] = {}
    for row in itertools.islice(lay_out(prompts, _terms(prompts), layout), some):
        found |= zip(row["target"].tolist(), logits_at(model, to_device(row, model.device)).tolist(), strict=True)
    probes = _probes(examples, found)
    chosen = [prompts[number] for number in probes]
    theirs = _read(model, chosen, alone).flatten()
    with rounding(model):
        rounded = _read(model, chosen, alone).flatten()
    apart = gap([value for number in probes for value in found[number]], theirs.tolist())
    limit = allowed(gap(rounded.tolist(), theirs.tolist()), model.device.type)
    # Where the prompts alone give no numbers either, the weights are at fault.
    agree = apart <= limit or not bool(theirs.isfinite().all())
    return {"letter_logits_gap": apart, "letter_logits_allowed": limit, "agree": agree}


def _read(
    model: Any, prompts: Sequence[Sequence[int]], layout: Layout, update: Callable[[int], None] = lambda done: None
) -> torch.Tensor:
    """(prompts, 3): the letters' logits behind each prompt."""
    logits = torch.full((len(prompts), 3), float("nan"))
    done = 0
    before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def fetch() -> None:
        nonlocal done
        for numbers, found in before:
            logits[numbers] = found.float().cpu()
            done += len(numbers)
            update(done)
        before.clear()

    with usually(model) if layout.kind == "padded" else contextlib.nullcontext():
        for row in lay_out(prompts, _terms(prompts), layout):
            found = logits_at(model, to_device(row, model.device))
            # The GPU works on this row while the one before is fetched and the next laid out.
            fetch()
            before.append((row["target"], found))
        fetch()
    return logits


def _terms(prompts: Sequence[Sequence[int]]) -> list[Term]:
    """Behind each prompt one, whose target is the prompt's number."""
    return [Term(number, len(prompt) - 1, number) for number, prompt in enumerate(prompts)]


def _probes(examples: Sequence[Example], places: Iterable[int]) -> list[int]:
    """Of the examples at `places`, up to two each of the two dialogues with the longest ones."""
    dialogues: dict[str, list[int]] = {}
    for place in sorted(places, key=lambda place: -len(examples[place].ids)):
        dialogues.setdefault(examples[place].dialogue, []).append(place)
    return [place for some in list(dialogues.values())[:2] for place in some[:2]]
