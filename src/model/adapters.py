"""A faster forward pass for LoRA layers; shapes, saving and merging stay with peft.

peft computes `base(x) + lora_B(lora_A(dropout(x))) * scaling` in the adapters' fp32. For that it copies `x`, or needs
autocast around everything. Here the adapters' fp32 weights are cast to the dtype of `x`, and the rank is padded with
zeros to a multiple of 8. A matrix with the published rank 6 is not aligned to a GPU's 16-byte grid, and the kernels for
such matrices are two to three times slower (one H200: 113 µs for 20,992 × 4,096 by 6, 45 µs by 8).

Layers with one input (`TOGETHER`) compute the products with their A as one, so that the input is read once, and its
gradient is written once instead of being added up. With dropout each adapter has its own input, and nothing is joined.
"""

import dataclasses
import types
from pathlib import Path
from typing import Any

import torch
from peft.tuners import lora

from src.model.dropout import replace_dropout

GRID = 8
"""The rank is padded to a multiple of this."""
JOINED = True
"""Whether layers with one input share one product with their A."""
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that the modules of all common architectures call with one input, in this order."""


@dataclasses.dataclass(eq=False)
class Group:
    """Layers with one input, in the order in which they are called.

    The first one computes the products of all with the input; each of the others takes its own, and after the last one
    nothing is left here.
    """

    layers: list[Any]
    x: torch.Tensor | None = None
    products: list[torch.Tensor] = dataclasses.field(default_factory=list)

    def forward_of(self, place: int) -> Any:
        return types.MethodType(_forward_in_group, Member(self, place))

    def down(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """x · Aᵀ of the layer at `place`."""
        if place == 0:
            parts = [_down(layer, x) for layer in self.layers]
            joined = torch.nn.functional.linear(x, torch.cat(parts))
            self.x, self.products = x, list(joined.split([len(part) for part in parts], -1))
        elif self.x is not x:  # whatever calls it, it is not the module that called the first one
            return torch.nn.functional.linear(x, _down(self.layers[place], x))
        found = self.products[place]
        if place == len(self.layers) - 1:
            self.x, self.products = None, []
        return found


@dataclasses.dataclass(eq=False)
class Member:
    """The layer at `place` of a group."""

    group: Group
    place: int


def patch_lora_forward(model: Any) -> None:
    """Replaces the forward pass of all plain LoRA layers in `model`, linear or in 4 bits, by an equivalent one, and
    their dropout by a faster one.
    """
    found = []
    for module in model.modules():
        if _is_plain(module):
            module.forward = types.MethodType(_forward, module)
            found.append(module)
    replace_dropout(found)
    for parent in model.modules() if JOINED else ():
        for names in TOGETHER:
            layers: list[Any] = [getattr(parent, name, None) for name in names]
            if all(map(_is_plain, layers)) and len({layer.in_features for layer in layers}) == 1:
                group = Group(layers)
                for place, layer in enumerate(layers):
                    layer.forward = group.forward_of(place)


def _is_plain(module: Any) -> bool:
    """Whether `module` is a LoRA layer on a linear one, of one adapter without variants."""
    return (
        isinstance(module, lora.LoraLayer)
        and isinstance(module.get_base_layer(), torch.nn.Linear)
        and len(module.active_adapters) == 1
        and not module.lora_variant
    )


def save_adapter(model: Any, folder: Path) -> None:
    """Saves the adapter of a `PeftModel`. Equal adapters make equal bytes, and the hub is not asked for anything: by
    default peft looks there whether the vocabulary has grown. There is no model card: peft's form, with nothing filled
    in, would take longer than the adapter.
    """
    for config in model.peft_config.values():
        if isinstance(config.target_modules, set):  # whose order changes from process to process
            config.target_modules = sorted(config.target_modules)
    vars(model)["create_or_update_model_card"] = lambda folder: None
    try:
        model.save_pretrained(folder, save_embedding_layers=False)
    finally:
        del vars(model)["create_or_update_model_card"]


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    if layer.disable_adapters or layer.merged:
        return type(layer).forward(layer, x)
    dropped = layer.lora_dropout[layer.active_adapters[0]](x)
    return _with_update(layer, x, torch.nn.functional.linear(dropped, _down(layer, x)))


def _forward_in_group(member: Member, x: torch.Tensor) -> torch.Tensor:
    layer, group = member.group.layers[member.place], member.group
    if any(map(_differs, group.layers)):
        return _forward(layer, x)
    return _with_update(layer, x, group.down(member.place, x))


def _differs(layer: Any) -> bool:
    """Whether the input of the layer's A is not the layer's input, or unused."""
    dropout = layer.lora_dropout[layer.active_adapters[0]]
    drops = layer.training and not isinstance(dropout, torch.nn.Identity)
    return drops or layer.disable_adapters or layer.merged


def _down(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """A in the dtype of `x`: (r, in), on a GPU with r filled up."""
    down = layer.lora_A[layer.active_adapters[0]].weight.to(x.dtype)
    missing = -len(down) % GRID if x.is_cuda else 0
    return torch.nn.functional.pad(down, (0, 0, 0, missing)) if missing else down


def _with_update(layer: Any, x: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    """The layer's output, given `product` of its A and `x`."""
    name = layer.active_adapters[0]
    up = (layer.lora_B[name].weight * layer.scaling[name]).to(x.dtype)
    if missing := product.shape[-1] - up.shape[-1]:
        up = torch.nn.functional.pad(up, (0, missing))
    return layer.base_layer(x) + torch.nn.functional.linear(product, up)
