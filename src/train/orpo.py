"""ORPO: odds-ratio preference optimisation (Hong et al. 2024, arXiv 2403.07691), on the rows of `src/tree/rows.py`.

For a prompt x with a right answer w and a wrong one l, both of some tokens, the paper's loss is

    log P(y)    mean of the log-probabilities of y's tokens behind x
    odds(y)     P(y) / (1 - P(y))
    loss        -log P(w)  +  beta · -log σ( log odds(w) / odds(l) )

No reference model, one pass. An item's right answer and its wrong ones share the prompt, which a tree holds once; they
come in one row, since the loss compares them. The first term is taken over the answer as in the paper, or, as TRL does,
over prompt and answer; the prompt's tokens then count once, with the weight of all the answers that follow them.

The loss of an optimizer step is the mean of the first term over its items (or tokens: `loss_per`) and of the second
over its pairs, on all devices. TRL's `ORPOTrainer` tokenises texts anew, cuts them and pads pairs side by side, so that
its loop cannot take our tokens; the tests hold this loss against its own on the same batch.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from src.model.recipes import Recipe
from src.prompt.encode import Example
from src.tree.rows import Layout, Row, Term, lay_out, logprobs_at, to_device, usually

SURE = -(2.0**-24)
"""Log-probabilities above this are 0 in fp32, where the odds are infinite and their gradient is no number."""
LN2 = 0.6931471805599453


def answers_of(recipe: Recipe, examples: Sequence[Example]) -> list[Example]:
    """Cuts all answers down to the letter when the letter alone is compared."""
    if recipe.orpo_answer == "whole":
        return list(examples)
    return [
        dataclasses.replace(
            one,
            ids=one.ids[: one.answer_start + 1],
            rejected=tuple(ids[: one.answer_start + 1] for ids in one.rejected),
        )
        for one in examples
    ]


def collate(examples: Sequence[Example], layout: Layout, recipe: Recipe) -> dict[str, list[Row]]:
    """The rows of one optimizer step, the answers of an item in one of them.

    Besides what `lay_out` gives, a row holds, for its n answers and the p pairs among them,

        numbers      (n,) which answers of the step they are
        answer       (a,) of the a tokens of all answers, to which of the row's answers each belongs
        term         (a,) and which of the row's terms predicts it
        lengths      (n,) tokens of each answer
        pairs        (p, 2) answers: the right one and a wrong one
        pair_weight  (p,)

    A term's `weight` is that of the first part of the loss. In a tree, equal terms are one, with their weights' sum.
    """
    sequences: list[Sequence[int]] = []
    groups: list[int] = []
    terms: list[Term] = []
    pairs: list[tuple[int, int, float]] = []
    lengths: list[int] = []
    for item, one in enumerate(examples):
        right = len(sequences)
        begin = 1 if recipe.orpo_nll == "prompt" else one.answer_start
        each = 1 / (len(one.ids) - begin) if recipe.loss_per == "item" else 1.0
        for number, ids in enumerate(one.sequences, right):
            first, weight = (begin, each) if number == right else (one.answer_start, 0.0)
            terms += [Term(number, place - 1, ids[place], weight) for place in range(first, len(ids))]
            lengths.append(len(ids) - one.answer_start)
        weight = 1 / len(one.rejected) if recipe.loss_per == "item" else 1.0
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
    return {"rows": rows}


def _last(count: int) -> range:
    """Distances from the end, of the last `count` places."""
    return range(count, 0, -1)


def _merged(row: Row) -> Row:
    """The row of a tree with equal terms made one: the same token predicted from the same place."""
    both, which = torch.unique(row["source"] << 32 | row["target"], return_inverse=True)
    source, target = both >> 32, both & 0xFFFFFFFF
    weight = torch.zeros(len(source)).index_add(0, which, row["weight"])
    return {**row, "source": source, "target": target, "weight": weight, "term": which[row["term"]]}


def answer_logprobs(logprobs: torch.Tensor, row: Row) -> torch.Tensor:
    """(n,): log P of each answer of the row, the mean over its tokens, from the terms' log-probabilities."""
    sums = logprobs.new_zeros(len(row["lengths"])).index_add(0, row["answer"], logprobs[row["term"]])
    return sums / row["lengths"]


def log_odds_ratio(right: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor:
    """log odds(right) / odds(wrong) of log-probabilities, elementwise."""
    return (right - _log_rest(right)) - (wrong - _log_rest(wrong))


def _log_rest(logprobs: torch.Tensor) -> torch.Tensor:
    """log(1 - P), on each side of one half by the form that loses no digits; finite, as its gradient is, for P = 1."""
    logprobs = logprobs.clamp(max=SURE)
    near = torch.log(-torch.expm1(logprobs.clamp(min=-LN2)))
    far = torch.log1p(-torch.exp(logprobs.clamp(max=-LN2)))
    return torch.where(logprobs > -LN2, near, far)


def parts(logprobs: torch.Tensor, row: Row) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sum of the weighted losses of the first part, log odds ratios (p,), log P of the pairs' answers (p, 2))."""
    pairs = answer_logprobs(logprobs, row)[row["pairs"]]
    return -(row["weight"] * logprobs).sum(), log_odds_ratio(*pairs.unbind(1)), pairs


def loss(logprobs: torch.Tensor, row: Row, beta: float, totals: torch.Tensor) -> torch.Tensor:
    """A row's part of the step's loss. totals: the step's sums of `weight` and of `pair_weight`."""
    nll, odds, _ = parts(logprobs, row)
    ratio = -(row["pair_weight"] * torch.nn.functional.logsigmoid(odds)).sum()
    return nll / totals[0] + beta * ratio / totals[1]


def letter_logprobs(logprobs: torch.Tensor, row: Row) -> dict[int, list[float]]:
    """The log-probability of each of the row's answers' first token, by which answer of the step it is."""
    first = row["lengths"].cumsum(0) - row["lengths"]
    found = logprobs.detach().cpu()[row["term"][first]].tolist()
    return {number: [value] for number, value in zip(row["numbers"].tolist(), found, strict=True)}


def measure(
    model: Any, examples: Sequence[Example], layout: Layout, recipe: Recipe, mixed: bool = False
) -> dict[str, float]:
    """What the loss is made of on `examples`, without dropout: means over items (or tokens) and pairs. mixed: whether
    fp32 weights are computed with in bf16.

    loss, nll, odds_ratio   the loss and its two parts, the second before it is multiplied by beta
    log_odds                log odds(right) / odds(wrong)
    reward_accuracy         share of the pairs whose right answer is the more likely one
    reward_margin           beta · (log P(right) - log P(wrong))
    """
    was_training = model.training
    model.eval()
    weights = torch.zeros(2)
    sums = torch.zeros(5)
    with (
        torch.inference_mode(),
        torch.autocast(model.device.type, torch.bfloat16, enabled=mixed),
        usually(model) if layout.kind == "padded" else contextlib.nullcontext(),
    ):
        for row in collate(examples, layout, recipe)["rows"]:
            row = to_device(row, model.device)
            nll, odds, pairs = parts(logprobs_at(model, row), row)
            right, wrong = pairs.unbind(1)
            each = [-torch.nn.functional.logsigmoid(odds), odds, (right > wrong).float(), right - wrong]
            weighted = [(row["pair_weight"] * one).sum() for one in each]
            sums += torch.stack([nll, *weighted]).cpu()
            weights += torch.stack([row["weight"].sum(), row["pair_weight"].sum()]).cpu()
    model.train(was_training)
    nll, ratio, odds, accuracy, margin = (sums / weights[[0, 1, 1, 1, 1]]).tolist()
    return {
        "loss": nll + recipe.orpo_beta * ratio,
        "nll": nll,
        "odds_ratio": ratio,
        "log_odds": odds,
        "reward_accuracy": accuracy,
        "reward_margin": recipe.orpo_beta * margin,
    }
