"""AdamW with moments in 8 bits, against torchao's."""

import copy
import io
from typing import Any

import pytest
import torch
import torchao.optim
from torchao.optim.quant_utils import create_dynamic_map, quantize_8bit_with_qmap

from src.train import adamw8bit
from src.train.adamw8bit import AdamW8bit, clip_gradient

SHAPES = [(64, 128), (256, 96), (4096,), (16,), (3, 5)]


def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    torch.manual_seed(3)
    return [torch.nn.Parameter((torch.randn(shape) * 0.02).to(dtype)) for shape in SHAPES]


def gradients(weights: list[torch.nn.Parameter], number: int) -> None:
    torch.manual_seed(100 + number)
    for weight in weights:
        # Blocks of very different sizes, and some weights without a gradient.
        size = 10.0 ** torch.randint(-6, 0, weight.shape)
        weight.grad = (torch.randn(weight.shape) * size * (torch.rand(weight.shape) > 0.1)).to(weight.dtype)


@pytest.mark.parametrize("signed", [True, False])
def test_the_formula_finds_the_table_s_nearest_values(signed: bool) -> None:
    torch.manual_seed(0)
    table = torch.tensor(create_dynamic_map(signed))
    drawn = 10 ** (-8 * torch.rand(400_000)) * (1 - 2 * torch.randint(0, 2, (400_000,)) * signed)
    values = torch.cat([drawn, table, torch.tensor([0.0, 1.0, 1e-30]), (table[1:] + table[:-1]) / 2])
    ours, theirs = adamw8bit.codes_of(values, signed), quantize_8bit_with_qmap(values, table)
    assert torch.equal(adamw8bit.codes_of(table, signed), torch.arange(256, dtype=torch.uint8))
    # Halfway between two values the last bit decides.
    gap = ((values - table[ours.int()]).abs() - (values - table[theirs.int()]).abs()).abs()
    assert (gap <= 1e-6 * values.abs()).all() and (ours != theirs)[: len(drawn)].sum() < 10
    assert len(set(ours.tolist())) == 256


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_are_torchao_s(dtype: torch.dtype) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    groups = [[{"params": some[:3], "weight_decay": 0.1}, {"params": some[3:]}] for some in (ours, theirs)]
    one = AdamW8bit(groups[0], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    other = torchao.optim.AdamW8bit(groups[1], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    before = [weight.detach().clone() for weight in ours]
    for number in range(5):
        gradients(ours, number)
        gradients(theirs, number)
        one.step()
        other.step()
    for was, weight, expected in zip(before, ours, theirs, strict=True):
        # A moment halfway between two values may be rounded either way; a step is at most the learning rate.
        far = (weight - expected).abs() > 2e-5 + (0.008 * expected.abs() if dtype == torch.bfloat16 else 0)
        assert far.float().mean() < 0.002 and not torch.equal(weight, was)
        mine, yours = one.state[weight], other.state[expected]
        assert mine["step"] == yours["step"] == 5 and type(mine["exp_avg"]) is type(yours["exp_avg"])
        for name in ("exp_avg", "exp_avg_sq"):
            if hasattr(mine[name], "codes"):
                assert (mine[name].codes != yours[name].codes).float().mean() < 0.002
                assert torch.allclose(mine[name].scale, yours[name].scale, rtol=1e-4)


def test_torchao_s_state_goes_on_here_and_ours_there() -> None:
    weights = parameters(torch.bfloat16)
    other = torchao.optim.AdamW8bit(weights, lr=1e-3)
    gradients(weights, 0)
    other.step()
    again = copy.deepcopy(weights)
    one = AdamW8bit(again, lr=1e-3)
    one.load_state_dict(saved_and_read(other.state_dict()))
    for some in (weights, again):
        gradients(some, 1)
    one.step()
    other.step()
    for weight, expected in zip(again, weights, strict=True):
        assert one.state[weight]["step"] == 2
        assert ((weight - expected).abs() > 2e-5 + 0.008 * expected.abs()).float().mean() < 0.002
    other.load_state_dict(saved_and_read(one.state_dict()))
    gradients(weights, 2)
    other.step()
    assert all(state["step"] == 3 for state in other.state.values())


def saved_and_read(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_clipped_gradient_is_scaled_as_it_is_read() -> None:
    clipped, scaled = parameters(torch.float32), parameters(torch.float32)
    one, other = AdamW8bit(clipped, lr=1e-3), AdamW8bit(scaled, lr=1e-3)
    for number, limit in ((0, 1e-2), (1, 1e9), (2, 0.0)):
        gradients(clipped, number)
        gradients(scaled, number)
        kept = [weight.grad.clone() for weight in clipped if weight.grad is not None]
        norm = clip_gradient(one, clipped, limit)
        expected = torch.nn.utils.clip_grad_norm_(scaled, limit or float("inf"))
        assert norm == expected and all(torch.equal(x.grad, y) for x, y in zip(clipped, kept, strict=True))  # type: ignore[arg-type]
        one.step()
        other.step()
        for weight, same in zip(clipped, scaled, strict=True):
            assert torch.allclose(weight, same, atol=1e-6)


def test_other_optimizers_are_clipped_as_usual() -> None:
    clipped, usual = parameters(torch.float32), parameters(torch.float32)
    gradients(clipped, 0)
    gradients(usual, 0)
    norm = clip_gradient(torch.optim.AdamW(clipped), clipped, 1e-3)
    assert norm == torch.nn.utils.clip_grad_norm_(usual, 1e-3)
    assert all(torch.equal(x.grad, y.grad) for x, y in zip(clipped, usual, strict=True))  # type: ignore[arg-type]


def test_rounding_is_fair_and_its_draws_are_independent() -> None:
    values = torch.full((4096, 256), 1.0) + 2**-7 * torch.linspace(0, 1, 257)[:-1]  # between 1 and its neighbour
    torch.manual_seed(5)
    seeds = torch.randint(-(2**31), 2**31, (3, 4), dtype=torch.int32)
    ups = torch.stack([adamw8bit._rounded(values, seed).float() > 1 for seed in seeds]).float()
    share = torch.linspace(0, 1, 257)[:-1]
    error = (share * (1 - share) / (3 * 4096)).sqrt()
    assert ((ups.mean((0, 1)) - share).abs() <= 5 * error).all()
    exact = torch.tensor([[0.5, -0.25, 0.0, 3.0]])
    assert torch.equal(adamw8bit._rounded(exact, seeds[0]).float(), exact)
    drawn = ups[:, :, 64:192].flatten(1) - share[64:192].repeat(4096)
    together = torch.corrcoef(torch.cat([drawn, drawn[:1].roll(1, 1), drawn[:1].roll(256, 1)]))
    off = together - torch.eye(len(together))
    assert off.abs().max() < 0.01
    negative = -values[:64]
    assert torch.equal(adamw8bit._rounded(negative, seeds[0]), -adamw8bit._rounded(values[:64], seeds[0]))


def test_other_seeds_at_each_step_and_the_same_again() -> None:
    def moved(seed: int) -> list[torch.Tensor]:
        weights = parameters(torch.bfloat16)
        optimizer = AdamW8bit(weights, lr=2e-5, bf16_stochastic_round=True)
        found: list[Any] = []
        for _ in range(2):
            gradients(weights, 0)
            torch.manual_seed(seed)
            seed += 1
            optimizer.step()
            found += [weight.detach().clone() for weight in weights]
        return found

    one, same, other = moved(1), moved(1), moved(2)
    assert all(torch.equal(x, y) for x, y in zip(one, same, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_compiled_step_is_the_same() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = ([one.detach().clone().to(place) for one in parameters(dtype)] for place in ("cpu", "cuda"))
        some = [[torch.nn.Parameter(one) for one in group] for group in (ours, theirs)]
        optimizers = [AdamW8bit(group, lr=1e-3, weight_decay=0.1) for group in some]
        for number in range(3):
            gradients(some[0], number)
            for one, other in zip(*some, strict=True):
                assert one.grad is not None
                other.grad = one.grad.cuda()
            for optimizer in optimizers:
                optimizer.step()
        for one, other in zip(*some, strict=True):
            far = (one - other.cpu()).abs() > 2e-5 + 0.008 * one.abs()
            assert far.float().mean() < 0.002
