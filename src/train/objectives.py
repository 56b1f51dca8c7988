"""Objectives: what a training step minimises.

A new one is a class here and its name in `OBJECTIVES` of src/model/recipes.py. Everything else asks the class.

    answer    every token of the right answer, predicted from the tokens in front of it
    letter    the answer's letter alone
    letters   the answer's letter, among the task's letters alone
    orpo      the right answer, and its odds against those of wrong ones
    ranking   the right answer's log-probability above that of wrong ones

The plan uses these classes too and must not load torch, so only the methods that compute import it.
"""

import abc
import dataclasses
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from src import task
from src.data import Item
from src.model.memory import ANSWER_TOKENS
from src.model.recipes import ORPO, Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from src.prompt.encode import Encoder, Example
    from src.tree.rows import Layout, Row


class Objective(abc.ABC):
    """The interface of an objective, whose settings are in `recipe`.

    compares   whether wrong answers are encoded beside the right one
    measures   whether evaluations call `measure`; dev's answers are encoded for it
    """

    name: ClassVar[str]
    compares: ClassVar[bool] = False
    measures: ClassVar[bool] = False

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    # The examples

    def examples(self, encoder: "Encoder", items: Sequence[Item]) -> "list[Example]":
        """Labelled items as training examples."""
        return [self.cut(one) for one in encoder.for_training(items, self.wrong_options)]

    def wrong_answers(self, options: int) -> int:
        """How many wrong answers are encoded of an item with `options` options."""
        return 0

    def wrong_options(self, item: Item) -> tuple[int, ...]:
        """Indices of the wrong options of a labelled item whose answers are encoded."""
        return ()

    def cut(self, example: "Example") -> "Example":
        """The example up to its last supervised token."""
        return example

    @abc.abstractmethod
    def logit_positions(self, examples: "Sequence[Example]", items: int) -> int:
        """Positions whose logits are in memory at once, in a row of `items` items of `examples`."""

    # A step

    @abc.abstractmethod
    def collate(self, examples: "Sequence[Example]", layout: "Layout") -> "list[Row]":
        """The rows of one optimizer step."""

    @abc.abstractmethod
    def totals(self, rows: "Sequence[Row]") -> "Tensor":
        """(k,): the denominators of a step's loss, summed over all of its rows."""

    @abc.abstractmethod
    def outputs(self, model: Any, row: "Row") -> "Tensor":
        """The model's outputs that a row's loss is computed from: a number or a vector for each of its terms."""

    @abc.abstractmethod
    def loss(self, outputs: "Tensor", row: "Row", totals: "Tensor", letter_ids: Sequence[int]) -> "Tensor":
        """The row's part of the step's loss in nats. letter_ids: the token id of each of the task's letters."""

    @abc.abstractmethod
    def letters(self, outputs: "Tensor", row: "Row", letter_ids: Sequence[int]) -> dict[int, list[float]]:
        """Values at the letter of each answer, by the answer's number in the step; the guard compares them."""

    # Evaluations and the log

    def measure(
        self, model: Any, examples: "Sequence[Example]", layout: "Layout", mixed: bool = False
    ) -> dict[str, float]:
        """Measures of `examples` that an evaluation reports beside item accuracy; see `sums` and `measured`."""
        return self.measured([self.sums(model, examples, layout, mixed)])

    def sums(self, model: Any, examples: "Sequence[Example]", layout: "Layout", mixed: bool = False) -> Any:
        """What `measured` needs of `examples`, computed without dropout. mixed: whether fp32 weights are computed with
        in bf16.
        """
        return None

    def measured(self, parts: Sequence[Any]) -> dict[str, float]:
        """The measures of all examples whose `sums` are `parts`."""
        return {}

    def words(self) -> str:
        """What the loss is taken over; completes the phrase `loss over the …`."""
        return self.name

    def measured_words(self, evaluation: Mapping[str, Any]) -> str:
        """The results of `measure` in words, from the logged evaluation: a separate line, or ""."""
        return ""


class TokenObjective(Objective):
    """Cross-entropy of the right answer's supervised tokens: the mean over a step's items, or over their tokens."""

    def logit_positions(self, examples: "Sequence[Example]", items: int) -> int:
        return _logit_positions([one.tokens - one.answer_start for one in examples], items, ANSWER_TOKENS)

    def collate(self, examples: "Sequence[Example]", layout: "Layout") -> "list[Row]":
        from src.train.fixed_rows import filled
        from src.tree.rows import Term, lay_out

        terms = []
        for number, one in enumerate(examples):
            weight = 1 / (len(one.ids) - one.answer_start) if self.recipe.loss_per == "item" else 1.0
            supervised = range(one.answer_start, len(one.ids))
            terms += [Term(number, position - 1, one.ids[position], weight) for position in supervised]
        rows = list(lay_out([one.ids for one in examples], terms, layout))
        return [filled(row) for row in rows] if layout.lengths else rows

    def totals(self, rows: "Sequence[Row]") -> "Tensor":
        from src.tree.rows import totals

        return totals(rows, "weight")

    def outputs(self, model: Any, row: "Row") -> "Tensor":
        """(terms, vocabulary): logits."""
        from src.tree.rows import logits_at

        return logits_at(model, row)

    def loss(self, outputs: "Tensor", row: "Row", totals: "Tensor", letter_ids: Sequence[int]) -> "Tensor":
        from torch.nn.functional import cross_entropy

        logits, targets = self.choices(outputs.float(), row["target"], letter_ids)
        return (cross_entropy(logits, targets, reduction="none") * row["weight"]).sum() / totals[0]

    def choices(self, logits: "Tensor", targets: "Tensor", letter_ids: Sequence[int]) -> "tuple[Tensor, Tensor]":
        """(logits of the tokens to choose from, index of each target among them)."""
        return logits, targets

    def letters(self, outputs: "Tensor", row: "Row", letter_ids: Sequence[int]) -> dict[int, list[float]]:
        """The letters' logits. An answer's first term is its letter."""
        found: dict[int, list[float]] = {}
        for number, values in zip(row["sequence"].tolist(), outputs[:, list(letter_ids)].tolist(), strict=True):
            found.setdefault(number, values)
        return found


class Answer(TokenObjective):
    name = "answer"


class Letter(TokenObjective):
    name = "letter"

    def cut(self, example: "Example") -> "Example":
        return dataclasses.replace(example, ids=example.ids[: example.answer_start + 1])


class Letters(Letter):
    name = "letters"

    def choices(self, logits: "Tensor", targets: "Tensor", letter_ids: Sequence[int]) -> "tuple[Tensor, Tensor]":
        from torch import stack

        # Filled on the device: a step that is captured as a graph cannot copy a list from the host.
        letters = stack([targets.new_full((), one) for one in letter_ids])
        return logits[:, letters], (targets[:, None] == letters).int().argmax(1)


class PairObjective(Objective):
    """Compares the right answer of an item with wrong ones: with all or with one drawn by seed and item
    (`orpo_pairs`), whole or by their letters alone (`orpo_answer`). Both sides have one form, so that neither length
    nor punctuation tells them apart.
    """

    compares = measures = True

    def wrong_answers(self, options: int) -> int:
        return options - 1 if self.recipe.orpo_pairs == "both" else 1

    def wrong_options(self, item: Item) -> tuple[int, ...]:
        others = tuple(option for option in range(len(item.options)) if option != item.label)
        if self.recipe.orpo_pairs == "both":
            return others
        return (random.Random(f"{self.recipe.seed} {item.id}").choice(others),)

    def cut(self, example: "Example") -> "Example":
        if self.recipe.orpo_answer == "whole":
            return example
        stop = example.answer_start + 1
        return dataclasses.replace(
            example, ids=example.ids[:stop], rejected=tuple(ids[:stop] for ids in example.rejected)
        )

    @property
    def learns_prompt(self) -> bool:
        """Whether the right answer's own loss is over the prompt, too."""
        return False

    def logit_positions(self, examples: "Sequence[Example]", items: int) -> int:
        from src.tree.rows import AT_ONCE

        answers = max(len(one.sequences) for one in examples)
        supervised = [one.tokens - (0 if self.learns_prompt else one.answer_start) for one in examples]
        return min(_logit_positions(supervised, items, ANSWER_TOKENS * answers), AT_ONCE)

    def collate(self, examples: "Sequence[Example]", layout: "Layout") -> "list[Row]":
        from src.train import pair_rows
        from src.train.fixed_rows import filled

        rows = pair_rows.collate(examples, layout, self.recipe.loss_per, self.learns_prompt)
        return [filled(row) for row in rows] if layout.lengths else rows

    def totals(self, rows: "Sequence[Row]") -> "Tensor":
        from src.tree.rows import totals

        return totals(rows, "weight", "pair_weight")

    def outputs(self, model: Any, row: "Row") -> "Tensor":
        """(terms,): log-probabilities."""
        from src.tree.rows import logprobs_at

        return logprobs_at(model, row)

    def letters(self, outputs: "Tensor", row: "Row", letter_ids: Sequence[int]) -> dict[int, list[float]]:
        """The log-probability of each answer's own letter."""
        from src.train import pair_rows

        return pair_rows.letter_logprobs(outputs, row)

    @abc.abstractmethod
    def pair_measures(self, right: "Tensor", wrong: "Tensor") -> "dict[str, Tensor]":
        """Measures that evaluations average over pairs, (p,) each, from the log-probabilities of the pairs' answers."""

    def sums(self, model: Any, examples: "Sequence[Example]", layout: "Layout", mixed: bool = False) -> Any:
        from src.train import pair_rows

        rows = self.collate(examples, layout) if examples else []
        return pair_rows.summed(model, rows, self.pair_measures, layout, mixed)

    def measured(self, parts: Sequence[Any]) -> dict[str, float]:
        """Means of the right answers' own loss (`nll`) over items or tokens, and of `pair_measures` over pairs."""
        from src.train import pair_rows

        return pair_rows.means(parts)

    def against(self) -> str:
        """The wrong answers, in words."""
        count = self.wrong_answers(len(task.current().options))
        return {1: "one wrong one", 2: "both wrong ones"}.get(count, f"all {count} wrong ones")


class Orpo(PairObjective):
    """Odds-ratio preference optimisation, see src/train/orpo.py."""

    name = ORPO

    @property
    def learns_prompt(self) -> bool:
        return self.recipe.orpo_nll == "prompt"

    def loss(self, outputs: "Tensor", row: "Row", totals: "Tensor", letter_ids: Sequence[int]) -> "Tensor":
        from src.train import orpo

        return orpo.loss(outputs, row, self.recipe.orpo_beta, totals)

    def pair_measures(self, right: "Tensor", wrong: "Tensor") -> "dict[str, Tensor]":
        from src.train import orpo

        return orpo.pair_measures(right, wrong)

    def measured(self, parts: Sequence[Any]) -> dict[str, float]:
        """
        loss, nll, odds_ratio   the loss and its two parts, the second before it is multiplied by beta
        log_odds                log odds(right) / odds(wrong)
        reward_accuracy         share of the pairs whose right answer is the more likely one
        reward_margin           beta · (log P(right) - log P(wrong))
        """
        found, beta = super().measured(parts), self.recipe.orpo_beta
        loss = found["nll"] + beta * found["odds_ratio"]
        return {"loss": loss, **found, "reward_margin": beta * found["reward_margin"]}

    def words(self) -> str:
        answers = "answer" if self.recipe.orpo_answer == "whole" else "letter"
        first = f"prompt and right {answers}" if self.learns_prompt else f"right {answers}"
        return f"{first} + {self.recipe.orpo_beta} · odds ratio against {self.against()} (ORPO)"

    def measured_words(self, evaluation: Mapping[str, Any]) -> str:
        return (
            f"dev pairs: loss {evaluation['eval_loss']:.4f} = right answer {evaluation['eval_nll']:.4f} + beta · "
            f"odds ratio {evaluation['eval_odds_ratio']:.4f}, log-odds {evaluation['eval_log_odds']:.3f}, "
            f"right one preferred in {evaluation['eval_reward_accuracy']:.1%}, "
            f"margin {evaluation['eval_reward_margin']:.4f}"
        )


class Ranking(PairObjective):
    """The mean over pairs of -log σ(log P(right) - log P(wrong)), where log P is the mean over an answer's tokens."""

    name = "ranking"

    def loss(self, outputs: "Tensor", row: "Row", totals: "Tensor", letter_ids: Sequence[int]) -> "Tensor":
        from src.train.pair_rows import pair_logprobs

        losses = self.pair_measures(*pair_logprobs(outputs, row).unbind(1))["loss"]
        return (row["pair_weight"] * losses).sum() / totals[1]

    def pair_measures(self, right: "Tensor", wrong: "Tensor") -> "dict[str, Tensor]":
        from torch.nn.functional import logsigmoid

        margin = right - wrong
        return {"loss": -logsigmoid(margin), "pair_accuracy": (margin > 0).float(), "pair_margin": margin}

    def measured(self, parts: Sequence[Any]) -> dict[str, float]:
        """
        loss            of dev
        nll             the right answers' own loss, which is not trained
        pair_accuracy   share of the pairs whose right answer is the more likely one
        pair_margin     log P(right) - log P(wrong)
        """
        return super().measured(parts)

    def words(self) -> str:
        answers = "whole answers" if self.recipe.orpo_answer == "whole" else "letters"
        return f"ranking of {answers}, the right one above {self.against()}"

    def measured_words(self, evaluation: Mapping[str, Any]) -> str:
        return (
            f"dev pairs: loss {evaluation['eval_loss']:.4f}, right one above the wrong one in "
            f"{evaluation['eval_pair_accuracy']:.1%}, margin {evaluation['eval_pair_margin']:.4f}"
        )


OBJECTIVES: dict[str, type[Objective]] = {one.name: one for one in (Answer, Letter, Letters, Orpo, Ranking)}


def make_objective(recipe: Recipe) -> Objective:
    return OBJECTIVES[recipe.objective](recipe)


def _logit_positions(supervised: Sequence[int], items: int, least: int) -> int:
    """Logit positions of a row of `items` items. supervised: tokens of each item; several items have about the mean
    each.
    """
    each = max(least, max(supervised) if items == 1 else statistics.fmean(supervised))
    return math.ceil(items * each)
