"""Rows of preference pairs: all answers of an item in one row, since the loss compares them.

An item's right answer and its wrong ones share the prompt, which a tree holds once.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from src.model.causal import without_gradient
from src.prompt.encode import Example
from src.tree.compiled import standard_attention
from src.tree.rows import Layout, Row, Term, lay_out, logprobs_at, to_device


def collate(examples: Sequence[Example], layout: Layout, loss_per: str, learns_prompt: bool) -> list[Row]:
    """The rows of one optimizer step.

    Beside the keys of `lay_out`, a row holds, for its n answers and the p pairs among them,

        numbers      (n,) the answers' numbers in the step
        answer       (a,) for each of the a tokens of all answers, the index of its answer in the row
        term         (a,) the term that predicts each of these tokens
        lengths      (n,) tokens of each answer
        pairs        (p, 2) indices of a right answer and a wrong one in the row
        pair_weight  (p,) float32

    A term's `weight` is its weight in the right answer's own loss, which also covers the prompt if `learns_prompt`. In
    a tree, equal terms become one term with the sum of their weights. So each prompt token counts once, with the weight
    of all the answers that follow it.
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
            terms += [Term(number, position - 1, ids[position], weight) for position in range(first, len(ids))]
            lengths.append(len(ids) - one.answer_start)
        weight = 1 / len(one.rejected) if loss_per == "item" else 1.0
        pairs += [(right, right + wrong, weight) for wrong in range(1, len(one.sequences))]
        sequences += one.sequences
        groups += [item] * len(one.sequences)
    rows = [_with_pairs(row, lengths, pairs) for row in lay_out(sequences, terms, layout, groups)]
    return [_merged(row) if "end" in row else row for row in rows]


def _with_pairs(row: Row, lengths: Sequence[int], pairs: Sequence[tuple[int, int, float]]) -> Row:
    """The row with the keys that `collate` adds. lengths: tokens of each of the step's answers. pairs: (right answer,
    wrong answer, weight) for each of the step's pairs.
    """
    numbers, counts = torch.unique_consecutive(row["sequence"], return_counts=True)
    index = {int(number): index for index, number in enumerate(numbers)}
    # The terms of an answer are the last ones of its sequence.
    stops = counts.cumsum(0).tolist()
    tokens = [
        (index[number], stops[index[number]] - back) for number in index for back in range(lengths[number], 0, -1)
    ]
    answer, term = torch.tensor(tokens).T
    own = [(index[right], index[wrong], weight) for right, wrong, weight in pairs if right in index]
    return {
        **{key: value for key, value in row.items() if key != "sequence"},
        "numbers": numbers,
        "answer": answer,
        "term": term,
        "lengths": torch.tensor([lengths[number] for number in index]),
        "pairs": torch.tensor([pair[:2] for pair in own]),
        "pair_weight": torch.tensor([pair[2] for pair in own], dtype=torch.float32),
    }


def _merged(row: Row) -> Row:
    """The row of a tree with equal terms merged: the same token predicted from the same position."""
    both, which = torch.unique(row["source"] << 32 | row["target"], return_inverse=True)
    source, target = both >> 32, both & 0xFFFFFFFF
    weight = torch.zeros(len(source)).index_add(0, which, row["weight"])
    return {**row, "source": source, "target": target, "weight": weight, "term": which[row["term"]]}


def answer_logprobs(logprobs: torch.Tensor, row: Row) -> torch.Tensor:
    """(n,): log P of each answer of the row, the mean over its tokens, from the terms' log-probabilities."""
    # Not index_add: on a GPU it adds in whatever order threads arrive, and no training would repeat another's bits.
    numbers = torch.arange(len(row["lengths"]), device=logprobs.device)
    own = row["answer"] == numbers[:, None]
    return torch.where(own, logprobs[row["term"]], 0).sum(1) / row["lengths"]


def pair_logprobs(logprobs: torch.Tensor, row: Row) -> torch.Tensor:
    """(p, 2): log P of the right and the wrong answer of each pair, from the terms' log-probabilities."""
    return answer_logprobs(logprobs, row)[row["pairs"]]


def own_loss(logprobs: torch.Tensor, row: Row) -> torch.Tensor:
    """Sum of the weighted losses of the right answers' terms."""
    return -(row["weight"] * logprobs).sum()


def letter_logprobs(logprobs: torch.Tensor, row: Row) -> dict[int, list[float]]:
    """The log-probability of the first token of each of the row's answers, by the answer's number in the step."""
    # The answer that filling belongs to (src/train/fixed_rows.py) has the number -1. Where nothing was filled up, no
    # token is its first one.
    real = row["numbers"] >= 0
    first = (row["lengths"].cumsum(0) - row["lengths"])[real]
    found = logprobs.detach()[row["term"][first]].tolist()
    return {number: [value] for number, value in zip(row["numbers"][real].tolist(), found, strict=True)}


@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over a set of pairs, of which `means` makes means.

    values     name → weighted sum: "nll" over items or tokens, the others over pairs
    of_items, of_pairs  the sums of the weights
    """

    values: Mapping[str, torch.Tensor]
    of_items: torch.Tensor
    of_pairs: torch.Tensor


def means(parts: Sequence[Sums]) -> dict[str, float]:
    """The means over all parts: "nll" over items or tokens, the others over pairs."""
    of_items, of_pairs = (torch.stack([getattr(one, name) for one in parts]).sum() for name in ("of_items", "of_pairs"))
    names = dict.fromkeys(name for one in parts for name in one.values)  # a part of no pairs has none
    sums = {name: torch.stack([one.values[name] for one in parts if one.values]).sum() for name in names}
    return {name: float(value / (of_items if name == "nll" else of_pairs)) for name, value in sums.items()}


def summed(
    model: Any,
    rows: Sequence[Row],
    measures: Callable[[torch.Tensor, torch.Tensor], Mapping[str, torch.Tensor]],
    layout: Layout,
    mixed: bool,
) -> Sums:
    """`own_loss` as "nll", and `measures` of the pairs, without dropout.

    measures: log P of the right and of the wrong answers, (p,) each → names and values (p,). mixed: whether fp32
    weights are computed with in bf16.
    """
    sums: dict[str, float | torch.Tensor] = {}
    weights = torch.zeros(2)
    was_training = model.training
    model.eval()
    with (
        without_gradient(model),
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
    return Sums({name: torch.as_tensor(value) for name, value in sums.items()}, *weights)
