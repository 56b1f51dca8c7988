"""Dropout whose masks follow from seeds."""

import math

import pytest
import torch

from src.model.dropout import SeededDropout, kept, other_dropout, redraw, seeds_of
from src.model.load import add_adapter
from tests import toys

P = 0.05


def seeded(count: int = 4) -> list[SeededDropout]:
    torch.manual_seed(0)
    seeds = torch.zeros((count, 4), dtype=torch.int32)
    redraw(seeds)
    return [SeededDropout(P, seeds, place) for place in range(count)]


def test_the_share_that_is_dropped_is_p_everywhere() -> None:
    ones = torch.ones(2000, 1024)
    for dropout in seeded():
        dropped = (dropout(ones) == 0).double()
        for axis in (0, 1):
            count = ones.shape[axis]
            spread = math.sqrt(P * (1 - P) / count)
            assert dropped.mean().item() == pytest.approx(P, abs=4 * math.sqrt(P * (1 - P) / ones.numel()))
            assert dropped.mean(axis).std().item() == pytest.approx(spread, rel=0.1)
        for one, other in ((dropped[:, 1:], dropped[:, :-1]), (dropped[1:], dropped[:-1])):
            assert (one * other).mean().item() == pytest.approx(P * P, rel=0.1), "neighbours are independent"


def test_what_is_kept_is_scaled_and_evaluations_drop_nothing() -> None:
    (dropout, *_), values = seeded(), torch.randn(300, 40)
    left = dropout(values)
    assert 0 < (left == 0).sum() < left.numel()
    torch.testing.assert_close(left[left != 0], values[left != 0] / (1 - P))
    assert torch.equal(dropout.eval()(values), values)


def test_masks_of_adapters_and_of_draws_are_independent() -> None:
    one, other, *_ = seeded()
    ones = torch.ones(2000, 1024)
    before = one(ones) == 0
    assert torch.equal(one(ones) == 0, before), "until the seeds are drawn anew"
    assert (before & (other(ones) == 0)).double().mean().item() == pytest.approx(P * P, rel=0.1)
    redraw(one.seeds)
    assert (before & (one(ones) == 0)).double().mean().item() == pytest.approx(P * P, rel=0.1)


def test_the_backward_pass_has_the_mask_of_the_forward_pass() -> None:
    (dropout, *_), values = seeded(), torch.randn(64, 64, requires_grad=True)
    dropout(values).sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad != 0, kept(dropout.seed, values, P))


def test_seeds_are_drawn_from_the_generator_and_are_no_part_of_a_file() -> None:
    (one, *_), (other, *_) = seeded(), seeded()
    assert torch.equal(one.seeds, other.seeds) and not one.state_dict()


def test_a_model_on_the_cpu_keeps_torch_s_own() -> None:
    network = add_adapter(toys.network("qwen2"), toys.recipe("none", "qwen2", method="lora", lora_dropout=P))
    assert seeds_of(network) is None and other_dropout(network.modules())
    assert seeds_of(torch.nn.Sequential(*seeded())) is not None
    assert not other_dropout(torch.nn.Sequential(*seeded(), torch.nn.Dropout(0.0)).modules())


def test_a_module_that_calls_the_function_has_dropout_of_its_own() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.residual_dropout = 0.0
    assert not other_dropout(torch.nn.Sequential(layer).modules())
    layer.residual_dropout = 0.1
    assert other_dropout(torch.nn.Sequential(layer).modules())
