"""Optimizers whose steps are captured as CUDA graphs (src/train/step_graphs.py).

Look here after an upgrade of torch, torchao or accelerate: `FRESH` makes the states that an optimizer would make in its
first step, `SteppedInGraph` relies on how Accelerate knows what it has prepared, and `parts_of` on how torchao's states
are made.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer


class SteppedInGraph(AcceleratedOptimizer):
    """The optimizer that Trainer calls, which does nothing after a step whose graph has updated the weights."""

    _is_accelerate_prepared = True  # so that Accelerate does not wrap it once more
    done = False

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer, device_placement=False)

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        if self.done:
            self.done = False
        else:
            super().step(closure)


def _adamw_state(optimizer: Any, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def _eight_bit_state(optimizer: Any, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": optimizer._new_buffer(parameter, True),
        "exp_avg_sq": optimizer._new_buffer(parameter, False),
    }


FRESH: Mapping[str, Callable[[Any, torch.nn.Parameter], dict[str, torch.Tensor]]] = {
    "torch.optim": _adamw_state,
    "src.train.adamw8bit": _eight_bit_state,
}
"""Package of an optimizer whose step can be captured → the state that it begins a parameter with. Others (bitsandbytes
counts steps in Python) step outside of the graphs.
"""


def parts_of(value: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a state is made of: torchao's in 8 bits are made of several, and cannot be copied as a whole."""
    if not hasattr(value, "__tensor_flatten__"):
        return [value]
    names, _ = value.__tensor_flatten__()
    return [getattr(value, name) for name in names]
