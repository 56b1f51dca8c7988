"""Rows whose terms are filled up: nothing that is learned changes."""

from typing import Any

import pytest
import torch

from src.train.fixed_rows import filled, filled_size
from src.train.objectives import make_objective
from src.tree.rows import Layout
from tests import toys
from tests.made_trainings import TRAIN, encoder


@pytest.mark.parametrize(("count", "size"), [(1, 128), (128, 128), (129, 256), (256, 256), (257, 512), (1300, 1536)])
def test_sizes_are_few(count: int, size: int) -> None:
    assert filled_size(count) == size


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": "letters"},
        {"objective": "orpo"},
        {"objective": "orpo", "orpo_nll": "prompt", "loss_per": "token"},
        {"objective": "ranking", "orpo_pairs": "both"},
    ],
)
@pytest.mark.parametrize("items", [1, 3])
def test_filled_rows_have_the_same_loss_gradient_and_letters(changes: dict[str, Any], items: int) -> None:
    one, network = encoder("qwen2"), toys.network("qwen2")
    objective = make_objective(toys.recipe("none", "qwen2", **changes))
    examples = objective.examples(one, TRAIN)[:items]
    (row,) = objective.collate(examples, Layout("tree", 4096, one.pad_id))
    (longer,) = objective.collate(examples, Layout("tree", 4096, one.pad_id, (512,)))
    assert len(longer["source"]) == filled_size(len(row["source"])) > len(row["source"])
    assert torch.equal(objective.totals([row]), objective.totals([longer]))
    found = []
    for each in (row, filled(row), longer):
        network.zero_grad()
        outputs = objective.outputs(network, each)
        loss = objective.loss(outputs, each, objective.totals([each]), one.letter_ids or ())
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm()
        letters = objective.letters(outputs, each, one.letter_ids or ())
        found.append((loss.item(), norm.item(), [value for key in sorted(letters) for value in letters[key]]))
    for loss, norm, letters in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert norm == pytest.approx(found[0][1], rel=1e-4)
        assert letters == pytest.approx(found[0][2], abs=1e-4)
