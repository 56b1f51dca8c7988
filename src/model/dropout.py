"""Dropout for adapters on a GPU: each mask follows from a seed that lies in GPU memory.

torch's own dropout takes the next numbers of the generator. Here a mask is a function of a seed and of each value's
place, so the backward pass computes it again instead of keeping it (or a second copy of the layer's input), and
gradient checkpointing needs no state of the generator, which cannot be read while a CUDA graph is captured. One draw
from the generator, `redraw`, gives all adapters new seeds.
"""

from collections.abc import Iterator
from typing import Any

import torch

WORDS = 4
"""Words of 32 bits that each adapter has among the seeds: two are used, since compiled code wants tensors that begin at
multiples of 16 bytes.
"""


class SeededDropout(torch.nn.Dropout):
    """Dropout by the seeds in row `place` of `seeds`, (adapters, WORDS) int32, which all adapters share."""

    seed: torch.Tensor

    def __init__(self, p: float, seeds: torch.Tensor, place: int) -> None:
        super().__init__(p)
        self.seeds = seeds
        self.register_buffer("seed", seeds[place], persistent=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return input
        return torch.where(kept(self.seed, input, self.p), input * (1 / (1 - self.p)), 0.0)


def kept(seed: torch.Tensor, values: torch.Tensor, p: float) -> torch.Tensor:
    """Bool like `values`, False with probability `p`: the finalizer of MurmurHash3 (Appleby 2011) over each value's
    index, with a word of the seed before and one within it.
    """
    h = torch.arange(values.numel(), dtype=torch.int32, device=values.device)
    h = (h ^ seed[0]) * -1640531535
    h = (_shifted(h, 16) + seed[1]) * -2048144789
    h = _shifted(h, 13) * -1028477387
    return (_shifted(h, 16) >= int(p * 2**32) - 2**31).view(values.shape)


def _shifted(h: torch.Tensor, bits: int) -> torch.Tensor:
    """h xor (h >> bits), the shift filling with zeros."""
    return h ^ ((h >> bits) & (2 ** (32 - bits) - 1))


def seed_dropout(adapters: list[Any]) -> None:
    """Replaces the dropout of LoRA layers of peft that lie on a GPU."""
    found = [
        (layer.lora_dropout, name, dropout.p, layer.lora_A[name].weight.device)
        for layer in adapters
        for name, dropout in layer.lora_dropout.items()
        if isinstance(dropout, torch.nn.Dropout) and layer.lora_A[name].weight.is_cuda
    ]
    if found:
        seeds = torch.zeros((len(found), WORDS), dtype=torch.int32, device=found[0][-1])
        for place, (owner, name, p, _) in enumerate(found):
            owner[name] = SeededDropout(p, seeds, place)


def seeds_of(model: Any) -> torch.Tensor | None:
    """The seeds of a model's dropout; None when it has no seeded one."""
    return next((module.seeds for module in model.modules() if isinstance(module, SeededDropout)), None)


def other_dropout(modules: Iterator[Any]) -> bool:
    """Whether any of the modules takes its masks from the generator: dropout itself, or a module that calls its
    function and holds the probability as a number (`residual_dropout` of StarCoder2, `dropout` of OPT).
    """
    return any(
        (isinstance(one, torch.nn.modules.dropout._DropoutNd) and not isinstance(one, SeededDropout) and one.p > 0)
        or any("dropout" in name and isinstance(value, float) and value > 0 for name, value in vars(one).items())
        for one in modules
    )


def redraw(seeds: torch.Tensor) -> None:
    """New masks from here on."""
    seeds.random_(-(2**31), 2**31 - 1)
