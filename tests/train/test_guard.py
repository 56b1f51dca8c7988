"""What rounding does to a model, which the guard measures; what it does with it is in tests/train/test_trainer.py."""

import contextlib

import pytest
import torch

from src.train import guard
from src.train.guard import LEAST, TIMES, allowed, gap, rounding
from src.tree.rows import Layout, make_ready, usually
from tests import toys
from tests.tree.test_rows import PAD, alike, network, read


def test_one_by_one_is_with_checkpointing_and_undone_whatever_happens() -> None:
    model = network("llama").train()
    for error in (None, torch.OutOfMemoryError("CUDA out of memory")):
        with contextlib.suppress(torch.OutOfMemoryError), guard._one_by_one(model):
            assert model.is_gradient_checkpointing
            if error:
                raise error
        assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable(guard.CHECKPOINTING)
    with guard._one_by_one(model):
        pass
    assert model.is_gradient_checkpointing, "as it was"


def test_gap_by_hand() -> None:
    assert gap([1.0, 2.0, 3.0], [1.0, 5.0, -1.0]) == pytest.approx((25 / 3) ** 0.5)
    assert gap([1.0, float("nan")], [1.0, 2.0]) != gap([1.0, float("nan")], [1.0, 2.0])
    assert allowed(0.0, "cuda") == LEAST["cuda"] and allowed(1.0, "cpu") == TIMES


@pytest.mark.parametrize("checkpointing", [False, True])
def test_rounding_reaches_layers_that_are_compiled_and_leaves_nothing(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, made = network("llama").train(), alike()
    alone, together = Layout("padded", 10**4, PAD, sequences=1), Layout("tree", 10**4, PAD, (384,))
    state = torch.get_rng_state()
    with toys.compiled_on_a_cpu(monkeypatch):
        make_ready(model, checkpointing)
        found = read(model, made, together, train=True)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        with usually(model):
            expected = read(model, made, alone)
            with rounding(model):
                rounded = read(model, made, alone)
            torch.testing.assert_close(read(model, made, alone), expected, atol=0, rtol=0)
        moved = (rounded - expected).square().mean().sqrt()
        assert 1e-8 < moved < 1e-5
        assert (found - expected).square().mean().sqrt() < TIMES * moved
        torch.testing.assert_close(read(model, made, together, train=True), found, atol=0, rtol=0)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "nothing is compiled again"
    assert torch.equal(torch.get_rng_state(), state)
