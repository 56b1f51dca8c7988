"""AdamW with moments in 8 bits that goes through each weight once: torchao's, computed in one kernel.

torchao's own step looks each new moment up in a table of 256 values by binary search, in a second pass over all
weights: 150 ms for 8 billion weights on an H100, longer than forward and backward of one item. The table has a formula,
so here a moment's code is computed, and torch makes one kernel of the whole step. The states are torchao's: a
checkpoint of one goes on with the other.

The table is the "dynamic" one of Dettmers et al., 8-bit Optimizers via Block-wise Quantization (2022,
arXiv:2110.02861). For each power of ten from 1e-6 to 1 it has values evenly spaced between a tenth of it and itself,
twice as many for each as for the one before. Values are relative to the largest of a block of 256.

Look here after an upgrade of torchao: `codes`, `scale`, `qmap` and `signed` of its states.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torchao.optim import AdamW8bit as TorchaoAdamW8bit
from torchao.optim.subclass_8bit import OptimState8bit

from src.model.shards import local_part

BLOCK = 256
"""Weights whose moments share a scale."""
LEAST = 1e-12
"""The smallest scale, as in torchao."""
DECADES = range(-6, 1)
COMPILATIONS = 64
"""More than the sizes of weights that a model has."""
Edge = tuple[float, float, float]


def _edges(signed: bool) -> tuple[Edge, ...]:
    """For each decade: (the least number whose nearest value lies in it, steps for each unit, number of values). The
    last one holds only the 1.
    """
    found: list[Edge] = []
    last = 0.0
    for number, decade in enumerate(DECADES):
        count, end = 2.0 ** (number + (not signed)), 10.0**decade
        half_step = 0.45 * end / count
        found.append(((last + 0.1 * end + half_step) / 2, count / (0.9 * end), count))
        last = end - half_step
    return *found, ((last + 1) / 2, 0.0, 2 * found[-1][2])


EDGES = {signed: _edges(signed) for signed in (True, False)}


class AdamW8bit(TorchaoAdamW8bit):
    """Takes the gradient's norm to clip it by (`clip`), and scales the gradient as it is read: clipping costs nothing
    but the norm.

    Stochastic rounding adds to each weight's lower 16 bits a number that follows from its place and from a seed, which
    torch's generator gives to each weight tensor at each step. Of sharded weights each rank steps its own part: blocks
    and places are those of the part.
    """

    def __init__(self, params: Iterable[Any], *args: Any, **keys: Any) -> None:
        super().__init__(params, *args, **keys)
        first = self.param_groups[0]["params"][0]
        self.gradient_scale = torch.ones((), device=first.device)
        """What the next steps multiply gradients by."""

    @torch.no_grad()
    def clip(self, norm: torch.Tensor, limit: float) -> None:
        """Lets the next step scale gradients of this norm down to `limit`, by the formula of `clip_grad_norm_`."""
        self.gradient_scale.copy_((limit / (norm + 1e-6)).clamp(max=1.0))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        assert closure is None, "no closure is taken"
        for group in self.param_groups:
            trained = [one for one in group["params"] if one.grad is not None]
            if trained:
                self._step_group(group, trained)

    def _step_group(self, group: dict[str, Any], trained: list[torch.nn.Parameter]) -> None:
        assert not group["amsgrad"], "the moments' maximum is not kept"
        for parameter in trained:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = self._new_buffer(parameter, True)
                state["exp_avg_sq"] = self._new_buffer(parameter, False)
        device, (beta1, beta2) = trained[0].device, group["betas"]
        counts = [self.state[parameter]["step"] for parameter in trained]
        torch._foreach_add_(counts, 1)
        counted = torch.stack(counts).to(device)
        facts = _facts(counted, group["lr"].to(device), beta1, beta2, group["weight_decay"])
        # Rows of four numbers, like those of `facts`, begin where kernels like to read.
        seeds = torch.randint(-(2**31), 2**31, (len(trained), 4), dtype=torch.int32, device=device)
        update: Callable[..., None] = _compiled() if device.type == "cuda" else updated
        with torch._dynamo.config.patch(recompile_limit=COMPILATIONS):
            for row, parameter in enumerate(trained):
                state, rounds = self.state[parameter], self.bf16_stochastic_round
                update(
                    *_in_blocks(parameter, state["exp_avg"], state["exp_avg_sq"]),
                    facts[row],
                    self.gradient_scale,
                    seeds[row],
                    (beta1, beta2, group["eps"]),
                    rounds and parameter.dtype == torch.bfloat16,
                )


def clip_gradient(optimizer: Any, parameters: Iterable[torch.nn.Parameter], limit: float) -> torch.Tensor:
    """Clips the gradient to the norm `limit`, where that is above 0; returns its norm before. Of sharded parameters it
    is the norm over all ranks.

    `AdamW8bit` clips as it steps, and leaves `grad` as it is.
    """
    trained = list(parameters)
    inner = getattr(optimizer, "optimizer", optimizer)
    if limit > 0 and not isinstance(inner, AdamW8bit):
        return _whole(torch.nn.utils.clip_grad_norm_(trained, limit))
    norm = _whole(torch.nn.utils.get_total_norm([one.grad for one in trained if one.grad is not None]))
    if limit > 0:
        inner.clip(norm, limit)
    return norm


def _whole(norm: Any) -> torch.Tensor:
    """The norm over all ranks, of gradients that are sharded over them."""
    found: torch.Tensor = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return found


def _facts(counts: torch.Tensor, lr: torch.Tensor, beta1: float, beta2: float, decay: float) -> torch.Tensor:
    """(parameters, 4), fp32: learning rate over the first moment's bias correction; one over the root of the second's;
    what is left of a weight after its decay; nothing. counts: steps of each parameter with this one.
    """
    rate = lr / (1 - beta1**counts)
    root = (1 - beta2**counts).rsqrt()
    left = (1 - lr * decay).expand_as(rate)
    return torch.stack((rate, root, left, left), 1)


def _in_blocks(parameter: torch.nn.Parameter, *moments: torch.Tensor) -> tuple[Any, ...]:
    """The arguments of `updated` for a parameter: weights, gradient, and each moment as (values, scales, table), the
    scales and table None where it is not in 8 bits.
    """
    assert parameter.grad is not None
    weights, gradient = local_part(parameter.detach()), local_part(parameter.grad)
    moments = tuple(map(local_part, moments))
    if not isinstance(moments[0], OptimState8bit):
        return weights.view(-1), gradient.reshape(-1), *((moment.view(-1), None, None) for moment in moments)
    kept = (one for one in moments if isinstance(one, OptimState8bit))
    eight = tuple((one.codes.view(-1, BLOCK), one.scale, one.qmap) for one in kept)
    return weights.view(-1, BLOCK), gradient.reshape(-1, BLOCK), *eight


Moment = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


def updated(
    weights: torch.Tensor,
    gradient: torch.Tensor,
    first: Moment,
    second: Moment,
    facts: torch.Tensor,
    scale: torch.Tensor,
    seeds: torch.Tensor,
    settings: tuple[float, float, float],
    rounds: bool,
) -> None:
    """AdamW's step for one parameter, in place. It is compiled as a whole, so it takes what the kernel reads, singly.

    weights, gradient   (blocks, 256); or (weights,) where moments are not in 8 bits
    first, second       the moments: codes in uint8 and scales of the blocks, in fp32; or values alone
    facts, seeds        the parameter's rows
    settings            beta1, beta2, eps
    rounds              whether weights, which are in bf16, are rounded at random
    """
    beta1, beta2, eps = settings
    slope = gradient.float() * scale
    mean = _read(first).lerp(slope, 1 - beta1)
    square = _read(second).lerp(slope.square(), 1 - beta2)
    _write(first, mean, True)
    _write(second, square, False)
    moved = weights.float() * facts[2] - facts[0] * mean / (square.sqrt() * facts[1] + eps)
    weights.copy_(_rounded(moved, seeds) if rounds else moved)


@cache
def _compiled() -> Callable[..., None]:
    return torch.compile(updated, fullgraph=True, dynamic=False)


def _read(moment: Moment) -> torch.Tensor:
    values, scales, table = moment
    if scales is None or table is None:
        return values.float()
    return table[values.int()] * scales[:, None]


def _write(moment: Moment, new: torch.Tensor, signed: bool) -> None:
    values, scales, _ = moment
    if scales is None:
        values.copy_(new)
        return
    largest = new.abs().amax(1).clamp(min=LEAST)
    values.copy_(codes_of(new * (1 / largest)[:, None], signed))
    scales.copy_(largest)


def codes_of(values: torch.Tensor, signed: bool) -> torch.Tensor:
    """The nearest values' places in the table (uint8). values: from -1 to 1, or from 0 to 1 where not `signed`.

    In a decade with n values the place is n, plus the steps from its lower end. So places are 1, 2 to 3, 4 to 7 ….
    """
    size = values.abs()
    steps, many = torch.zeros_like(size), torch.zeros_like(size)
    for least, per_unit, count in EDGES[signed]:
        above = size >= least
        steps, many = torch.where(above, per_unit, steps), torch.where(above, count, many)
    # A decade begins at a tenth of its end, which is n / 9 steps above 0.
    place = many + torch.minimum(torch.floor(size * steps - many * (1 / 9)), many - 1).clamp(min=0)
    if signed:  # 127 stands for 0, and there is a 1, but no -1
        return torch.where(values < 0, 127 - place.clamp(max=127), 127 + place).to(torch.uint8)
    return (place.clamp(min=1) - 1).to(torch.uint8)  # the first decade has two values


def _rounded(values: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """bf16; up or down at random, in proportion to how near the neighbours are. seeds: at least two numbers, int32."""
    places = torch.arange(values.numel(), device=values.device, dtype=torch.int32).view(values.shape)
    noise = _scrambled(places, seeds) & 0xFFFF
    return ((values.view(torch.int32) + noise) & ~0xFFFF).view(torch.float32).bfloat16()


def _scrambled(numbers: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """A hash of int32 numbers, by folding and multiplying; the constants are those of `lowbias32`, Chris Wellons,
    "Prospecting for Hash Functions" (2018). With one seed, before the first fold, the numbers of two seeds would be the
    same in another order.
    """
    numbers = numbers ^ seeds[0]
    numbers = (numbers ^ (numbers >> 16 & 0xFFFF)) * 0x7FEB352D  # `>>` alone would fill up with the sign
    numbers = numbers ^ seeds[1]
    numbers = (numbers ^ (numbers >> 15 & 0x1FFFF)) * (0x846CA68B - 2**32)
    return numbers ^ (numbers >> 16)
