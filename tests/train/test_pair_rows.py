"""Rows of preference pairs by hand, and groups of sequences in one row."""

from pathlib import Path
from typing import Any

import pytest
import torch

from src.model.recipes import Recipe
from src.prompt.encode import Example
from src.train import pair_rows
from src.train.fixed_rows import filled
from src.train.objectives import make_objective
from src.tree.rows import Layout
from tests import toys


def recipe(short: str = "qwen2", **changes: Any) -> Recipe:
    return toys.recipe(Path("nowhere"), short, **{"objective": "orpo", "lora_dropout": 0, **changes})


def test_a_row_by_hand() -> None:
    examples = [
        Example("a", "012", (5, 6, 7, 8), 2, 0, "", ((5, 6, 9), (5, 6, 1, 2, 3))),
        Example("b", "012", (5, 4), 1, 1, "", ((5, 3),)),
    ]
    (row,) = make_objective(recipe(orpo_nll="prompt")).collate(examples, Layout("tree", 100, 0))
    logprobs = -torch.arange(1.0, len(row["target"]) + 1)
    found = {
        (ids, int(target)): float(value)
        for ids, target, value in zip(row["input_ids"][0, row["source"]].tolist(), row["target"], logprobs, strict=True)
    }
    assert len(found) == len(logprobs) == 9, "5 → 6 is predicted once for three answers, of which one is supervised"
    assert row["weight"].sum() == pytest.approx(2) and row["pair_weight"].tolist() == [0.5, 0.5, 1]
    expected = {
        0: (found[6, 7] + found[7, 8]) / 2,
        1: found[6, 9],
        2: (found[6, 1] + found[1, 2] + found[2, 3]) / 3,
        3: found[5, 4],
        4: found[5, 3],
    }
    means = pair_rows.answer_logprobs(logprobs, row).tolist()
    assert dict(zip(row["numbers"].tolist(), means, strict=True)) == pytest.approx(expected)
    pairs = [[int(row["numbers"][place]) for place in pair] for pair in row["pairs"]]
    assert pairs == [[0, 1], [0, 2], [3, 4]]
    own = -(found[5, 6] + found[6, 7] + found[7, 8]) / 3 - found[5, 4]
    assert pair_rows.own_loss(logprobs, row) == pytest.approx(own)
    assert pair_rows.pair_logprobs(logprobs, row).shape == (3, 2)
    letters = pair_rows.letter_logprobs(logprobs, row)
    assert letters == {0: [found[6, 7]], 1: [found[6, 9]], 2: [found[6, 1]], 3: [found[5, 4]], 4: [found[5, 3]]}


def test_answers_that_need_no_filling_have_letters_too() -> None:
    """128 tokens of answers are a size of their own, so the answer that filling belongs to has no token."""
    right, wrong = (tuple(range(first, first + 64)) for first in (10, 100))
    (row,) = make_objective(recipe()).collate(
        [Example("a", "012", (5, *right), 1, 0, "", ((5, *wrong),))], Layout("tree", 200, 0)
    )
    longer = filled(row)
    assert len(longer["answer"]) == 128 and longer["numbers"].tolist() == [0, 1, -1]
    logprobs = -torch.arange(1.0, len(longer["target"]) + 1)
    assert pair_rows.letter_logprobs(logprobs, longer) == pair_rows.letter_logprobs(logprobs[: len(row["target"])], row)
