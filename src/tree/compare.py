"""Whether two layouts of the same tokens give the same numbers but for rounding.

`rounding` measures on the model at hand how far rounding moves the letters' logits. In a deep or barely trained model
it moves them much further than in others.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from src.model.causal import causal_of

SHARE = {"cpu": 1e-3, "cuda": 0.05}
"""Largest relative difference of loss and gradient norm between layouts: fp32's rounding on a CPU, bf16's on a GPU."""
EPSILON = {"cpu": torch.finfo(torch.float32).eps, "cuda": torch.finfo(torch.bfloat16).eps}
"""Relative distance between neighbouring numbers of the compute dtype."""
TIMES = 5
"""Letter logits may differ by this many times the gap that rounding alone causes.

Random models of 4 to 64 layers, 256 and 512 wide, bf16 on a CPU: sound rows, compiled or not, differed by at most 1.5
times that gap (1.8 in fp32). Faulty rows whose branches saw each other differed by 4.8 to 192 times the gap, all but
two (of 64 layers) by more than 12 times. On an H200, rows of the shapes of 8B and 14B differed by 0.7 to 1.4 times that
gap.
"""
LEAST = {"cpu": 1e-4, "cuda": 0.1}
"""A gap that is always allowed: neighbouring bf16 numbers between 8 and 32 are 0.06 to 0.125 apart."""


def gap(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Root mean square of the differences."""
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / len(ours))


def allowed(rounded: float, kind: str) -> float:
    """How far apart letter logits may be on a kind of device where rounding moves them by `rounded`."""
    return max(LEAST[kind], TIMES * rounded)


@contextlib.contextmanager
def rounding(model: Any) -> Iterator[None]:
    """Within, the output of each decoder layer is moved at random by up to half a last bit of the dtype computed in, on
    top of its own rounding. Any other order of summation may change the logits by as much as this does.
    """
    generator = torch.Generator(model.device).manual_seed(0)

    def move(layer: Any, inputs: Any, output: Any) -> Any:
        values = output[0] if isinstance(output, tuple) else output
        noise = torch.rand(values.shape, generator=generator, device=values.device) - 0.5
        moved = (values * (1 + EPSILON[values.device.type] * noise)).to(values.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    hooks = [layer.register_forward_hook(move) for layer in causal_of(model).get_decoder().layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
