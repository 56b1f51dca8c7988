"""A model whose parameters are sharded over the GPUs of a training (FSDP2: torch's `fully_shard`), layer by layer.

Each rank keeps an even part of every parameter, by its first dimension. The layers' hooks gather the parameters of a
layer before its forward and its backward pass, free them afterwards, and sum gradients over the ranks while they are
scattered (reduce-scatter). What is outside the layers (embeddings, last norm, head) is gathered once a pass and stays
until its backward pass ends, so the head may also be read after the model's own forward (src/tree/rows.py).

torch's `fully_shard` is called here, not Accelerate's plugin for it. Accelerate takes parameters and optimizer that are
whole on each rank and exchanges them by address, averages gradients over ranks, where our loss already counts the whole
step, and saves states as pickles or in the folders of torch.distributed.checkpoint, which is a pickle, too. What a user
of Accelerate knows remains: the same launcher and the same kind of settings file (resource/accelerate/).

Masters are kept in the dtype that the model has here; with fp32 masters, layers compute in bf16 on a GPU (mixed
precision), and gradients are summed in fp32.

Every function here is a collective one: all ranks have to call it.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from src.model.causal import causal_of, is_sharded


def shard(model: Any, device: torch.device, computed: torch.dtype) -> Any:
    """`model`, sharded over all ranks. Its parameters are on `device` or, without values, on the meta device.

    computed: the dtype of parameters in forward and backward passes.
    """
    causal = causal_of(model)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    keys: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(computed, torch.float32, cast_forward_inputs=False),
    }
    for layer in causal.get_decoder().layers:
        fully_shard(layer, reshard_after_forward=True, **keys)
    fully_shard(causal, reshard_after_forward=False, **keys)
    for module in _sharded_modules(causal):
        # The sum, in words that every backend knows: gloo has no other one.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    return model


def _sharded_modules(model: Any) -> Iterator[FSDPModule]:
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def shard_bare(bare: Any, source: Any, device: torch.device, computed: torch.dtype) -> Any:
    """`bare`, whose parameters are on the meta device in the masters' dtype and whose buffers have values, sharded and
    with the values of `source`: a whole model in main memory on rank 0, None on the others.

    No rank has more of the model on its GPU than its part and one tensor. torch scatters tensor by tensor.
    """
    buffers = {name: value.clone() for name, value in bare.named_buffers()}
    shard(bare, device, computed)
    bare.to_empty(device=device)
    for name, value in buffers.items():
        owner, _, leaf = name.rpartition(".")
        bare.get_submodule(owner)._buffers[leaf] = value.to(device)
    fill(bare, source)
    return bare


def fill(model: Any, source: Any) -> None:
    """Gives the sharded `model` the values of `source`: a whole model on rank 0, None on the others."""
    values = dict(source.named_parameters()) if source is not None else {}
    reshard(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _scatter(values.get(name), parameter)


def _scatter(value: torch.Tensor | None, parameter: Any) -> None:
    """Fills each rank's part of `parameter` from the whole `value` that rank 0 has."""
    local, ranks, rows = parameter.to_local(), dist.get_world_size(), rows_each(parameter.shape)
    mine = torch.zeros(rows, *parameter.shape[1:], dtype=local.dtype, device=local.device)
    parts: list[torch.Tensor] | None = None
    if dist.get_rank() == 0:
        assert value is not None and value.shape == parameter.shape, parameter.shape
        whole = value.detach().to(local.device)
        parts = [torch.zeros_like(mine) for _ in range(ranks)]
        for part, start in zip(parts, range(0, rows * ranks, rows), strict=True):
            some = whole[start : start + rows]
            part[: len(some)] = some
    dist.scatter(mine, parts, src=0)
    local.copy_(mine[: len(local)])


def local_part(value: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor; any other tensor as it is."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole(value: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The whole of a sharded tensor, on each rank, in `dtype`; a tensor that is none as it is."""
    local = local_part(value)
    if dtype is not None and value.is_floating_point():
        local = local.to(dtype)
    return gathered(local, rows_each(value.shape), value.shape[0]) if isinstance(value, DTensor) else local


def gathered(local: torch.Tensor, most: int, total: int) -> torch.Tensor:
    """The ranks' parts one behind the other, `total` rows. most: rows of a whole part; the last ones may have fewer."""
    padded = local.new_zeros(most, *local.shape[1:])
    padded[: len(local)] = local
    found = local.new_empty(most * dist.get_world_size(), *local.shape[1:])
    dist.all_gather_into_tensor(found, padded)
    return found[:total]


def rows_each(shape: torch.Size, ranks: int | None = None) -> int:
    """Rows that each rank has of a sharded tensor of that shape; the last ones may have fewer, or none."""
    return -(-shape[0] // (ranks or dist.get_world_size()))


def part_of(shape: torch.Size) -> tuple[int, int]:
    """(first row, row after the last) of this rank's part of a tensor of that shape."""
    rows, rank = rows_each(shape), dist.get_rank()
    return min(shape[0], rank * rows), min(shape[0], (rank + 1) * rows)


def full_state(model: Any, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The whole model's state dict, gathered tensor by tensor into main memory: on rank 0; {} on the others.

    dtype: of floating-point values; by default that of the masters.
    """
    reshard(model)
    state: dict[str, torch.Tensor] = {}
    first: dict[int, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) in first:  # tied
            if state:
                state[name] = state[first[id(value)]]
            continue
        first[id(value)] = name
        found = whole(value.detach(), dtype)
        if dist.get_rank() == 0:
            state[name] = found.cpu()
    return state


def rows_of(weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """`weight[ids]` of a parameter that may be sharded, in fp32."""
    local = local_part(weight.detach())
    if not isinstance(weight, DTensor):
        return local[ids].float()
    start, end = part_of(weight.shape)
    here = (ids >= start) & (ids < end)
    found = torch.zeros(len(ids), *weight.shape[1:], dtype=torch.float32, device=local.device)
    found[here] = local[ids[here] - start].float()
    dist.all_reduce(found)
    return found


def summed(value: torch.Tensor) -> torch.Tensor:
    """The sum of the ranks' values."""
    total = value.clone()
    dist.all_reduce(total)
    return total


def reshard(model: Any) -> None:
    """Frees what a pass without gradients has left whole, where the model is sharded: from then on its parameters are
    the ranks' parts, which alone are trained and saved.
    """
    if is_sharded(model):
        causal_of(model).reshard()


def sum_without_scatter(model: Any, now: bool) -> None:
    """Whether the next backward passes keep gradients whole on each rank and add to them (now: False), or sum them over
    the ranks and scatter them (True).
    """
    for module in _sharded_modules(causal_of(model)):
        module.set_requires_gradient_sync(now, recurse=False)
