"""Scoring: the logits of the three letters behind each prompt, in fp32."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from src.encode import Example
from src.records import ItemScores


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
) -> list[ItemScores]:
    """Letter logits of `examples` (prompts, from `Encoder.for_scoring`), one `ItemScores` per item, in the order
    they came.

    Examples of similar length share a batch of at most `batch_tokens` tokens, padding counted; by default what keeps
    the device busy and stays in its caches. `update` gets the count done.
    """
    device = model.device
    batch_tokens = batch_tokens or (16384 if device.type == "cuda" else 2048)
    logits: list[tuple[float, float, float] | None] = [None] * len(examples)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    done = 0
    with torch.inference_mode(), letters_only(model, letter_ids), autocast:
        for batch in _batches(examples, batch_tokens):
            ids, attention = pad([examples[index].ids for index in batch], pad_id)
            last = torch.zeros_like(attention, dtype=torch.bool)
            last[torch.arange(len(batch)), attention.sum(1) - 1] = True
            rows = model(
                input_ids=ids.to(device),
                attention_mask=attention.to(device),
                logits_to_keep=last.to(device),
                use_cache=False,
            ).logits
            for index, row in zip(batch, rows.reshape(-1, 3).tolist(), strict=True):
                logits[index] = (row[0], row[1], row[2])
            done += len(batch)
            update(done)
    by_item: dict[str, list[tuple[str, tuple[float, float, float]]]] = {}
    for example, row in zip(examples, logits, strict=True):
        assert row is not None, example.id
        by_item.setdefault(example.id, []).append((example.order, row))
    return [
        ItemScores(id=id, orders=tuple(order for order, _ in rows), logits=tuple(row for _, row in rows))
        for id, rows in by_item.items()
    ]


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, attention mask), both (rows, longest) of int64, padded on the right; the mask comes from the lengths,
    not from the ids.
    """
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_id)
    attention = torch.zeros((len(rows), longest), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        attention[number, : len(row)] = 1
    return ids, attention


def _batches(examples: Sequence[Example], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of examples by falling length, so that the largest batch comes first and memory problems show at once."""
    batch: list[int] = []
    longest = 0
    for index in sorted(range(len(examples)), key=lambda index: -len(examples[index].ids)):
        longest = max(longest, len(examples[index].ids))
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, longest = [], len(examples[index].ids)
        batch.append(index)
    if batch:
        yield batch
