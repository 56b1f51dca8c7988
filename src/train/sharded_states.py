"""An optimizer's states of sharded parameters, for a checkpoint that goes on with any number of GPUs.

The checkpoint has whole states, as one GPU writes them: they are gathered tensor by tensor into the main memory of rank
0, and read as plain data (`weights_only`) and mapped, so that each rank reads its own part.

Moments in 8 bits have a scale for each block of 256 values. Where parts begin or end within a block, the moments are
kept as numbers, which both sides can step from.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torchao.optim.subclass_8bit import OptimState8bit

from src.model.shards import gathered, local_part, part_of, rows_each
from src.train.adamw8bit import BLOCK

LEAST = 4096
"""Numbers of a part below which torchao keeps its moments as they are."""


def full_states(optimizer: Any) -> dict[str, Any]:
    """The optimizer's `state_dict` with whole tensors in main memory, on rank 0; on the others nothing but its frame.

    A collective: all ranks have to call it.
    """
    found = optimizer.state_dict()
    first = dist.get_rank() == 0
    states: dict[int, dict[str, Any]] = {}
    for number, state in found["state"].items():
        whole = {name: _whole(value) if isinstance(value, DTensor) else value for name, value in state.items()}
        if first:
            states[number] = {name: _to_cpu(value) for name, value in whole.items()}
    return {**found, "state": states}


def load_states(optimizer: Any, path: Path) -> None:
    """Gives the optimizer of sharded parameters the states of a checkpoint's file; each rank takes its parts."""
    from transformers.trainer_pt_utils import safe_globals

    with safe_globals():
        saved = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    inner = getattr(optimizer, "optimizer", optimizer)
    inner.load_state_dict({"state": {}, "param_groups": saved["param_groups"]})
    for number, parameter in enumerate(_parameters(inner)):
        inner.state[parameter] = _parts(saved["state"][number], parameter)


def _parameters(optimizer: Any) -> Iterator[torch.nn.Parameter]:
    """In the order in which a `state_dict` numbers them."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _parts(state: Mapping[str, Any], parameter: Any) -> dict[str, Any]:
    """This rank's part of a parameter's whole states."""
    return {
        name: _as_sharded(_part(value, part_of(parameter.shape)), parameter)
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape
        else value
        for name, value in state.items()
    }


def _part(value: Any, rows: tuple[int, int]) -> torch.Tensor:
    start, end = rows
    if not isinstance(value, OptimState8bit):
        return value[start:end].clone()
    each = value.codes[0].numel()
    if start * each % BLOCK or (end - start) * each % BLOCK or (end - start) * each < LEAST:
        return _numbers(value)[start:end].clone()
    codes, scale = value.codes[start:end].clone(), value.scale[start * each // BLOCK : end * each // BLOCK].clone()
    return OptimState8bit(codes, scale, value.qmap.clone(), value.signed, value.dtype)


def _as_sharded(local: torch.Tensor, parameter: Any) -> Any:
    local = local.to(parameter.device)
    if not isinstance(local, OptimState8bit) and local.dtype != parameter.dtype:
        local = local.to(parameter.dtype)  # as torch does when it loads states
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _whole(value: DTensor) -> torch.Tensor:
    """A sharded state's whole, on each rank."""
    local: Any = local_part(value)
    most, total = rows_each(value.shape), value.shape[0]
    if not isinstance(local, OptimState8bit):
        return gathered(_same_dtype(local, value), most, total)
    if not _all_in_8_bits(value.shape):
        return gathered(_numbers(local), most, total)
    each = value.shape[1:].numel()
    codes = gathered(local.codes, most, total)
    scale = gathered(local.scale, most * each // BLOCK, total * each // BLOCK)
    return OptimState8bit(codes, scale, local.qmap, local.signed, local.dtype)


def _same_dtype(local: torch.Tensor, value: DTensor) -> torch.Tensor:
    """Numbers beside others' moments in 8 bits are gathered in fp32."""
    return local if _none_in_8_bits(value.shape) else local.float()


def _sizes(shape: torch.Size) -> list[int]:
    """Numbers of each rank's part."""
    most, each = rows_each(shape), shape[1:].numel()
    return [max(0, min(shape[0] - rank * most, most)) * each for rank in range(dist.get_world_size())]


def _all_in_8_bits(shape: torch.Size) -> bool:
    return all(size >= LEAST and size % BLOCK == 0 for size in _sizes(shape))


def _none_in_8_bits(shape: torch.Size) -> bool:
    return not any(size >= LEAST and size % BLOCK == 0 for size in _sizes(shape))


def _numbers(value: OptimState8bit) -> torch.Tensor:
    numbers: torch.Tensor = value.dequantize(torch.float32)
    return numbers.view(value.codes.shape)


def _to_cpu(value: Any) -> Any:
    if isinstance(value, OptimState8bit):
        return OptimState8bit(value.codes.cpu(), value.scale.cpu(), value.qmap.cpu(), value.signed, value.dtype)
    return value.cpu() if isinstance(value, torch.Tensor) else value
