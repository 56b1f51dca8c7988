"""Dropout of adapters: on a GPU masks follow from seeds, on a CPU from the generator."""

import math

import pytest
import torch

from src.model.dropout import CpuDropout, SeededDropout, kept, other_dropout, redraw, seeds_of
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
    for dropout in [*seeded(), CpuDropout(P)]:
        dropped = (dropout(ones) == 0).double()
        for axis in (0, 1):
            count = ones.shape[axis]
            spread = math.sqrt(P * (1 - P) / count)
            assert dropped.mean().item() == pytest.approx(P, abs=4 * math.sqrt(P * (1 - P) / ones.numel()))
            assert dropped.mean(axis).std().item() == pytest.approx(spread, rel=0.1)
        for one, other in ((dropped[:, 1:], dropped[:, :-1]), (dropped[1:], dropped[:-1])):
            assert (one * other).mean().item() == pytest.approx(P * P, rel=0.1), "neighbours are independent"


@pytest.mark.parametrize("dropout", [seeded()[0], CpuDropout(P)])
def test_what_is_kept_is_scaled_and_evaluations_drop_nothing(dropout: torch.nn.Module) -> None:
    values = torch.randn(300, 41)
    dropout.train()
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_on_a_cpu_the_generator_decides_and_the_backward_pass_has_the_mask_too(dtype: torch.dtype) -> None:
    values = torch.ones(7, 33, dtype=dtype, requires_grad=True)
    torch.manual_seed(1)
    first = CpuDropout(0.5)(values)
    first.sum().backward()
    assert first.dtype == dtype and torch.equal(values.grad, first), "of ones, the gradient is the output"
    assert not torch.equal(CpuDropout(0.5)(values), first)
    torch.manual_seed(1)
    assert torch.equal(CpuDropout(0.5)(values), first)


def test_a_model_on_the_cpu_draws_from_the_generator() -> None:
    network = add_adapter(toys.network("qwen2"), toys.recipe("none", "qwen2", method="lora", lora_dropout=P))
    found = [module for module in network.modules() if isinstance(module, torch.nn.Dropout)]
    assert found and all(isinstance(module, CpuDropout) and module.p == P for module in found)
    assert seeds_of(network) is None and other_dropout(network.modules())
    assert seeds_of(torch.nn.Sequential(*seeded())) is not None
    assert not other_dropout(torch.nn.Sequential(*seeded(), torch.nn.Dropout(0.0)).modules())


def test_a_module_that_calls_the_function_has_dropout_of_its_own() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.residual_dropout = 0.0
    assert not other_dropout(torch.nn.Sequential(layer).modules())
    layer.residual_dropout = 0.1
    assert other_dropout(torch.nn.Sequential(layer).modules())
