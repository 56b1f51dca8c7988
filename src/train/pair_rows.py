"""Rows of preference pairs: all answers of an item in one row, since the loss compares them.

An item's right answer and its wrong ones share the prompt, which a tree holds once.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from src.prompt.encode import Example
from src.tree.compiled import standard_attention
from src.tree.rows import Layout, Row, Term, lay_out, logprobs_at, to_device


def collate(examples: Sequence[Example], layout: Layout, loss_per: str, learns_prompt: bool) -> list[Row]:
    """The rows of one optimizer step.

    Besides what `lay_out` gives, a row holds, for its n answers and the p pairs among them,

        numbers      (n,) the answers' numbers in the step
        answer       (a,) for each of the a tokens of all answers, the place of its answer in the row
        term         (a,) and the term that predicts it
        lengths      (n,) tokens of each answer
        pairs        (p, 2) places of a right answer and a wrong one
        pair_weight  (p,) float32

    A term's `weight` is that of the right answer's own loss, over its prompt too if `learns_prompt`. A prompt's tokens
    count once, with the weight of all the answers that follow them: in a tree equal terms are one, with their weights'
    sum.
    """
    sequences: list[Sequence[int]] = []
    groups: list[int] = []
    terms: list[Term] = []
    pairs: list[tuple[int, int, float]] = []
    lengths: list[int] = []
    for item, one in enumerate(examples):
        right = len(sequences)
        begin = 1 if learns_prompt else one.answer_start
        each = 1 / (len(one.ids) - begin) if loss_per == "item" else 1.0
        for number, ids in enumerate(one.sequences, right):
            first, weight = (begin, each) if number == right else (one.answer_start, 0.0)
            terms += [Term(number, place - 1, ids[place], weight) for place in range(first, len(ids))]
            lengths.append(len(ids) - one.answer_start)
        weight = 1 / len(one.rejected) if loss_per == "item" else 1.0
        pairs += [(right, right + wrong, weight) for wrong in range(1, len(one.sequences))]
        sequences += one.sequences
        groups += [item] * len(one.sequences)
    rows = []
    for row in lay_out(sequences, terms, layout, groups):
        numbers, counts = torch.unique_consecutive(row.pop("sequence"), return_counts=True)
        here = {int(number): place for place, number in enumerate(numbers)}
        behind = counts.cumsum(0)
        # The answer's terms are the last ones of a sequence.
        tokens = [
            (place, int(behind[place]) - back) for number, place in here.items() for back in _last(lengths[number])
        ]
        row["numbers"] = numbers
        row["answer"], row["term"] = torch.tensor(tokens).T
        row["lengths"] = torch.tensor([lengths[number] for number in here])
        own = [(here[right], here[wrong], weight) for right, wrong, weight in pairs if right in here]
        row["pairs"] = torch.tensor([pair[:2] for pair in own])
        row["pair_weight"] = torch.tensor([pair[2] for pair in own], dtype=torch.float32)
        rows.append(_merged(row) if "end" in row else row)
    return rows


def _last(count: int) -> range:
    """Distances of the last `count` terms from the end."""
    return range(count, 0, -1)


def _merged(row: Row) -> Row:
    """The row of a tree with equal terms made one: the same token predicted from the same position."""
    both, which = torch.unique(row["source"] << 32 | row["target"], return_inverse=True)
    source, target = both >> 32, both & 0xFFFFFFFF
    weight = torch.zeros(len(source)).index_add(0, which, row["weight"])
    return {**row, "source": source, "target": target, "weight": weight, "term": which[row["term"]]}


def answer_logprobs(logprobs: torch.Tensor, row: Row) -> torch.Tensor:
    """(n,): log P of each answer of the row, the mean over its tokens, from the terms' log-probabilities."""
    sums = logprobs.new_zeros(len(row["lengths"])).index_add(0, row["answer"], logprobs[row["term"]])
    return sums / row["lengths"]


def pair_logprobs(logprobs: torch.Tensor, row: Row) -> torch.Tensor:
    """(p, 2): log P of the right and the wrong answer of each pair, from the terms' log-probabilities."""
    return answer_logprobs(logprobs, row)[row["pairs"]]


def own_loss(logprobs: torch.Tensor, row: Row) -> torch.Tensor:
    """Sum of the weighted losses of the right answers' terms."""
    return -(row["weight"] * logprobs).sum()


def letter_logprobs(logprobs: torch.Tensor, row: Row) -> dict[int, list[float]]:
    """The log-probability of the first token of each of the row's answers, by the answer's number in the step."""
    first = row["lengths"].cumsum(0) - row["lengths"]
    found = logprobs.detach()[row["term"][first]].tolist()
    return {number: [value] for number, value in zip(row["numbers"].tolist(), found, strict=True)}


def means(
    model: Any,
    rows: Sequence[Row],
    measures: Callable[[torch.Tensor, torch.Tensor], Mapping[str, torch.Tensor]],
    layout: Layout,
    mixed: bool,
) -> dict[str, float]:
    """`own_loss` as "nll", its mean over items or tokens, and the means of `measures` over pairs, without dropout.

    measures: log P of the right and of the wrong answers, (p,) each → names and values (p,). mixed: whether fp32
    weights are computed with in bf16.
    """
    sums: dict[str, float | torch.Tensor] = {}
    weights = torch.zeros(2)
    was_training = model.training
    model.eval()
    with (
        torch.inference_mode(),
        torch.autocast(model.device.type, torch.bfloat16, enabled=mixed),
        standard_attention(model) if layout.kind == "padded" else contextlib.nullcontext(),
    ):
        for row in rows:
            row = to_device(row, model.device)
            logprobs = logprobs_at(model, row)
            found = {"nll": own_loss(logprobs, row)}
            for name, values in measures(*pair_logprobs(logprobs, row).unbind(1)).items():
                found[name] = (row["pair_weight"] * values).sum()
            sums = {name: sums.get(name, 0.0) + value.cpu() for name, value in found.items()}
            weights += torch.stack([row["weight"].sum(), row["pair_weight"].sum()]).cpu()
    model.train(was_training)
    of_items, of_pairs = weights
    return {name: float(value / (of_items if name == "nll" else of_pairs)) for name, value in sums.items()}
