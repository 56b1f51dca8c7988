"""Shared by all cases of one call of `run.bench`: the backbone, the device, the encoder and the items."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from src.data import Item
from src.model.devices import free_bytes
from src.model.load import compute_dtype
from src.model.shapes import Shape
from src.prompt.encode import Encoder
from src.toy.bench_inputs import make_model


@dataclass(frozen=True)
class Setting:
    """short: the backbone's name; train, test: the lengthened splits."""

    short: str
    config: Any
    device: torch.device
    encoder: Encoder
    train: Sequence[Item]
    test: Sequence[Item]

    @property
    def shape(self) -> Shape:
        return Shape.of_config(self.config)

    @property
    def attention(self) -> str:
        """The fastest attention that transformers has for the backbone without further packages."""
        return self.shape.family.attention

    @property
    def dtype(self) -> torch.dtype:
        return compute_dtype(self.device)

    def model(self, dtype: torch.dtype, attention: str, nf4: torch.dtype | None = None, double: bool = False) -> Any:
        return make_model(self.config, self.device, dtype, attention, nf4, double)

    @cached_property
    def scored_in(self) -> str:
        """ "NF4" where weights in bf16 leave too little of the GPU to score with, else ""."""
        if self.device.type == "cpu":
            return ""
        return "NF4" if 2 * self.shape.parameters > 0.85 * free_bytes(self.device) else ""

    def model_for_scoring(self) -> Any:
        nf4 = self.dtype if self.scored_in else None
        return self.model(self.dtype, self.attention, nf4=nf4, double=True).eval()
