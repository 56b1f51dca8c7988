"""The optimizers that are offered."""

from typing import Any

import pytest
import torch

from src.train.arguments import OPTIMIZERS


def test_why_plain_bf16_is_not_offered() -> None:
    torch.manual_seed(0)
    start = (torch.randn(200, 300) * 0.02).bfloat16()
    steps, lr = 20, 2e-5
    changes = {}
    for name in ("plain", "bf16-stochastic"):
        weight = torch.nn.Parameter(start.clone())
        if name == "plain":
            optimizer: Any = torch.optim.AdamW([weight], lr=lr, weight_decay=0)
        else:
            from torchao.optim import AdamW8bit

            assert OPTIMIZERS[name] == ("adamw_torch_8bit", "bf16_stochastic_round=True")
            optimizer = AdamW8bit([weight], lr=lr, weight_decay=0, bf16_stochastic_round=True)
        for _ in range(steps):
            weight.grad = torch.full_like(weight, -1e-3)
            optimizer.step()
        changes[name] = weight.detach().float() - start.float()
    # The same gradient at each step: Adam's way is steps · lr.
    assert changes["bf16-stochastic"].mean().item() == pytest.approx(steps * lr, rel=0.1)
    assert (changes["bf16-stochastic"] != 0).float().mean() > 0.8
    assert (changes["plain"] != 0).float().mean() < 0.4
    assert changes["plain"][start.abs() > 0.0157].abs().max() == 0
