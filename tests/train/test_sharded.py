"""When parameters are sharded, and what a rank without items computes. What ranks learn so is in test_ranks.py."""

from pathlib import Path
from typing import Any

import pytest

from src.console.cli import UserError
from src.model import memory
from src.train.sharded import choose_layout, emptied
from src.tree.layouts import TrainingSteps
from tests import toys
from tests.made_trainings import CPU, TRAIN, encoder

pytestmark = pytest.mark.trains


def test_rows_that_weigh_nothing_have_no_gradient() -> None:
    from src.train.objectives import make_objective
    from tests.made_trainings import LAYOUTS

    recipe = toys.recipe(Path("made"), "qwen2", objective="orpo", method="full")
    objective, one = make_objective(recipe), encoder("qwen2")
    (row,) = objective.collate(objective.examples(one, TRAIN[:2]), LAYOUTS["tree"])
    network = toys.network("qwen2")
    loss = objective.loss(objective.outputs(network, emptied(row)), emptied(row), objective.totals([row]), (1, 2, 3))
    loss.backward()
    assert loss.item() == 0 and all(p.grad is None or not p.grad.any() for p in network.parameters())
    assert row["weight"].any()  # the row itself is as it was


def test_one_process_shards_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TrainingSteps] = []
    monkeypatch.setattr("src.train.sharded.training_layout", lambda training, *more: asked.append(training))
    choose_layout(_steps("on"), CPU, False)
    assert [one.cards for one in asked] == [1]


@pytest.mark.parametrize(("fsdp", "fits", "cards"), [("auto", True, [1]), ("auto", False, [1, 2]), ("on", True, [2])])
def test_what_one_card_does_not_hold_is_sharded(
    fsdp: str, fits: bool, cards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def layout(training: TrainingSteps, *more: Any) -> Any:
        asked.append(training.cards)
        plan = memory.MemoryPlan("fp32", False, memory.Memory(1, 1, 1, 1, 1), fits or training.cards > 1)
        return type("Layout", (), {"memory": plan})

    monkeypatch.setattr("src.train.sharded.training_layout", layout)
    monkeypatch.setattr("src.train.sharded.ranks.world", lambda: 2)
    monkeypatch.setattr("src.train.sharded.ranks.all_true", lambda value: value)
    choose_layout(_steps(fsdp), CPU, False)
    assert asked == cards


def _steps(fsdp: str) -> TrainingSteps:
    recipe = toys.recipe(Path("made"), "qwen2", method="full", fsdp=fsdp)
    return TrainingSteps(recipe, None, [], [], 0, lambda items: 0)  # type: ignore[arg-type]


def test_adapters_are_not_sharded() -> None:
    with pytest.raises(UserError, match="fsdp: found on, allowed with method lora: auto, off"):
        toys.recipe(Path("made"), "qwen2", method="lora", fsdp="on")
