"""Scoring: the logits of the three letters behind each prompt, in fp32."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from src.encode import Example
from src.guard import GAP, gap
from src.layouts import CPU_BATCH, CPU_TREE, GPU_SCORING, scoring_layout
from src.records import ItemScores
from src.rows import Layout, Term, lay_out, logits_at, make_ready, to_device, usually
from src.shapes import Shape


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
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
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
) -> list[ItemScores]:
    """Letter logits of `examples` (prompts, from `Encoder.for_scoring`), one `ItemScores` per item, in the order
    they came.

    batch_tokens: at most so many tokens at a time, padding counted; by default what suits the device. update: gets
    the count done. kind: of the rows (`rows.Layout`); by default trees where what prompts share is worth it. Such rows
    are compared, once for a model, with prompts one by one; should they differ, all are read one by one.
    """
    prompts = [example.ids for example in examples]
    alone = Layout("padded", batch_tokens or CPU_BATCH, pad_id, sequences=1)
    if kind == "padded" or not prompts:
        layout = Layout("padded", batch_tokens or (CPU_BATCH if model.device.type == "cpu" else GPU_SCORING), pad_id)
    elif kind or batch_tokens:
        layout = Layout(kind or "padded", batch_tokens or CPU_TREE, pad_id)
    else:
        layout = scoring_layout(prompts, Shape.of_config(model.config), pad_id, model.device, make_ready(model))
    # fp32 weights, which training all parameters keeps, are computed with in bf16 too.
    mixed = model.device.type == "cuda" and model.get_input_embeddings().weight.dtype == torch.float32
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=mixed)
    with torch.inference_mode(), letters_only(model, letter_ids), autocast:
        logits = _read(model, prompts, layout, update)
        if layout.kind != "padded" and not getattr(model, "rows_agree", False):
            probes = _probes(examples)
            theirs = _read(model, [prompts[place] for place in probes], alone)
            apart = gap(logits[probes].flatten().tolist(), theirs.flatten().tolist())
            if apart > GAP[model.device.type]:
                print(
                    f"WARNING: prompts that share their beginnings are read differently here, letter logits by "
                    f"{apart:.3f}; reading all one by one, which is slower",
                    flush=True,
                )
                logits = _read(model, prompts, alone, update)
            else:
                model.rows_agree = True
    by_item: dict[str, list[tuple[str, tuple[float, float, float]]]] = {}
    for example, (a, b, c) in zip(examples, logits.tolist(), strict=True):
        by_item.setdefault(example.id, []).append((example.order, (a, b, c)))
    return [
        ItemScores(id=id, orders=tuple(order for order, _ in rows), logits=tuple(row for _, row in rows))
        for id, rows in by_item.items()
    ]


def _read(
    model: Any, prompts: Sequence[Sequence[int]], layout: Layout, update: Callable[[int], None] = lambda done: None
) -> torch.Tensor:
    """(prompts, 3): the letters' logits behind each prompt."""
    terms = [Term(number, len(prompt) - 1, number) for number, prompt in enumerate(prompts)]
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
        for row in lay_out(prompts, terms, layout):
            found = logits_at(model, to_device(row, model.device))
            # The GPU works on this row while the one before is fetched and the next laid out.
            fetch()
            before.append((row["target"], found))
        fetch()
    return logits


def _probes(examples: Sequence[Example]) -> list[int]:
    """Places of up to two examples of each of the first two dialogues."""
    places: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        places.setdefault(example.dialogue, []).append(place)
    return [place for some in list(places.values())[:2] for place in some[:2]]
