"""One optimizer step on several ranks: the same step as on one GPU, its items shared.

Each rank draws the whole step, in the same order, and computes a share of it (src/tree/shares.py). Its loss is divided
by totals of the whole step, so gradients add up to those of one GPU. They lie in one buffer, which is summed over the
ranks once a step, between the backward passes and clipping. Each rank then makes the same update of the same weights.

The model is not wrapped in DistributedDataParallel. That communicates within the backward pass, which is captured as a
CUDA graph or compiled here, and ranks that capture, replay or recompute would talk past each other.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor

from src.model import ranks
from src.prompt.encode import Example
from src.tree.shares import shares

SAME = 1e-5
"""Relative difference between norms of the same weights: GPUs of other kinds add up in another order."""

ALIGNED = 64
"""Gradients begin at multiples of so many values: kernels want addresses that are multiples of 16 bytes."""


def own_share(step: Sequence[Example]) -> list[Example]:
    """The items of an optimizer step that this rank computes; none where a last step has fewer items than ranks."""
    return [step[number] for number in shares(step, ranks.world())[ranks.rank()]] if ranks.several() else list(step)


def step_shares(examples: Sequence[Example], steps: Sequence[Sequence[int]]) -> list[list[int]]:
    """The shares of all ranks in each of `steps`, as steps of their own: those that one GPU computes."""
    if not ranks.several():
        return [list(step) for step in steps]
    found = []
    for step in steps:
        parts = shares([examples[number] for number in step], ranks.world())
        found += [[step[place] for place in part] for part in parts if part]
    return found


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds torch's generators for one step. rank: those of dropout differ by rank; -1 for what all ranks draw alike,
    as the optimizer's rounding has to be.

    So masks depend on nothing that a checkpoint would have to keep for each rank.
    """
    digest = sha256(f"{seed} {step} {rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "big"))


class GradientSum:
    """The gradients of all trained parameters in one buffer (one for each dtype), with the loss beside them.

    A parameter's `grad` is a part of the buffer, to which backward passes add. Nothing is copied.
    """

    def __init__(self, trained: Iterable[torch.nn.Parameter]) -> None:
        self.trained = list(trained)
        device = self.trained[0].device
        sizes: dict[torch.dtype, int] = {torch.float32: 0}
        starts = []
        for one in self.trained:
            starts.append(sizes.get(one.dtype, 0))
            sizes[one.dtype] = starts[-1] + -(-one.numel() // ALIGNED) * ALIGNED
        sizes[torch.float32] += 1
        self.buffers = {dtype: torch.zeros(size, dtype=dtype, device=device) for dtype, size in sizes.items()}
        self.loss = self.buffers[torch.float32][-1]
        """Of the whole step, once it is summed."""
        self.gradients = [
            self.buffers[one.dtype][start : start + one.numel()].view_as(one)
            for one, start in zip(self.trained, starts, strict=True)
        ]

    @property
    def bytes(self) -> int:
        """That each rank gives and gets in a step."""
        return sum(one.numel() * one.element_size() for one in self.buffers.values())

    def of(self, parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
        """The gradients of `parameters`, in their order, which is an optimizer's."""
        places = {id(one): place for place, one in enumerate(self.trained)}
        return [self.gradients[places[id(one)]] for one in parameters]

    def begin(self) -> None:
        """Sets gradients and loss to 0, and has backward passes add to them."""
        for buffer in self.buffers.values():
            buffer.zero_()
        self.attach()

    def attach(self) -> None:
        for parameter, gradient in zip(self.trained, self.gradients, strict=True):
            parameter.grad = gradient

    def add_up(self, loss: torch.Tensor | None) -> torch.Tensor:
        """Sums gradients and loss over the ranks, and returns the loss of the whole step. loss: None for no items."""
        if loss is None:
            self.loss.zero_()
        else:
            self.loss.copy_(loss)
        for buffer in self.buffers.values():
            distributed.all_reduce(buffer)
        return self.loss


def ranks_record(summed: GradientSum, device: torch.device) -> dict[str, Any]:
    """The record's entry on the ranks: how many, their devices, and the bytes that each gives in a step."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"world": ranks.world(), "devices": ranks.gathered(name), "bytes_per_step": summed.bytes}


def refuse_other_weights(parameters: Iterable[torch.nn.Parameter], when: str) -> None:
    """Fails where ranks do not have the same weights, by the norm of each parameter."""
    parameters = list(parameters)
    if not ranks.several() or isinstance(parameters[0], DTensor):  # sharded ranks have other parts
        return
    norms = torch.stack([torch.linalg.vector_norm(one.detach(), dtype=torch.float32) for one in parameters]).cpu()
    for rank, other in enumerate(ranks.gathered(norms)):
        same = torch.allclose(norms, other, rtol=SAME, atol=0, equal_nan=True)
        assert same, f"{when}, rank {rank} has other weights than rank {ranks.rank()}"
