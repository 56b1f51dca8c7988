"""The gap between two layouts, and what rounding does to a model."""

import pytest
import torch

from src.tree.compare import LEAST, TIMES, allowed, gap, rounding
from src.tree.compiled import make_ready, standard_attention
from src.tree.rows import Layout
from tests import toys
from tests.made_sequences import PAD, alike, network, read


def test_gap_by_hand() -> None:
    assert gap([1.0, 2.0, 3.0], [1.0, 5.0, -1.0]) == pytest.approx((25 / 3) ** 0.5)
    assert gap([1.0, float("nan")], [1.0, 2.0]) != gap([1.0, float("nan")], [1.0, 2.0])
    assert allowed(0.0, "cuda") == LEAST["cuda"] and allowed(1.0, "cpu") == TIMES


@pytest.mark.parametrize("checkpointing", [pytest.param(False, marks=pytest.mark.thorough), True])
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
        with standard_attention(model):
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
