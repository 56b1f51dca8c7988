"""Fixtures of the tests of training."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from src.train import trainer
from src.tree import compiler as compiling
from tests.made_trainings import Recorder


@pytest.fixture(autouse=True)
def stay_eager(request: pytest.FixtureRequest) -> Iterator[None]:
    """torchao compiles its optimizer, half a minute for nothing here; a GPU computes compiled rows alone."""
    with torch.compiler.set_stance("default" if request.node.get_closest_marker("gpu") else "force_eager"):
        yield


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr(trainer, "LetterTrainer", Recorder)
    return Recorder


@pytest.fixture
def dev_results(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """What the evaluations find, to be filled by the test: right items and log-loss."""
    results: list[tuple[int, float]] = []

    def found(items: Any, rows: Any) -> dict[str, float]:
        correct, log_loss = results.pop(0)
        return {"accuracy": correct / len(items), "correct": correct, "log_loss": log_loss}

    monkeypatch.setattr(trainer, "dev_metrics", found)
    return results


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was compiled in vain before."""
    monkeypatch.setattr(compiling, "_reasons", [])
