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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners import lora

from src.model.dropout import seed_dropout

GRID = 8
"""The rank is padded to a multiple of this."""
JOINED = True
"""Whether layers with one input share one product with their A."""
JOINED_WEIGHTS = False
"""Whether frozen weights of such layers lie in one tensor, by which their outputs' gradients are multiplied as one."""
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that the modules of all common architectures call with one input, in this order."""


@dataclasses.dataclass(eq=False)
class Group:
    """Layers with one input, in the order in which they are called.

    The first one computes what all have in common; each of the others takes its own, and after the last one nothing is
    left here.

    weight: the layers' weights, of which theirs are parts; None where they are apart
    """

    layers: list[Any]
    weight: torch.nn.Parameter | None = None
    x: torch.Tensor | None = None
    waiting: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)

    def take(self, place: int, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(the base's output, x · Aᵀ) of the layer at `place`; None for what it has to compute by itself."""
        if place == 0:
            self.x, self.waiting = x, list(zip(self._bases(x), self._products(x), strict=True))
        elif self.x is not x:  # whatever calls it, it is not the module that called the first one
            return None, None
        found = self.waiting[place]
        if place == len(self.layers) - 1:
            self.x, self.waiting = None, []
        return found

    def _bases(self, x: torch.Tensor) -> Sequence[Any]:
        bases = [layer.get_base_layer() for layer in self.layers]
        if self.weight is None or self.weight.dtype != x.dtype or torch.is_autocast_enabled(x.device.type):
            return [None] * len(bases)
        outputs = _SameInput.apply(x, self.weight, tuple(base.out_features for base in bases))
        pairs = zip(outputs, bases, strict=True)
        return [output if base.bias is None else output + base.bias for output, base in pairs]

    def _products(self, x: torch.Tensor) -> Sequence[Any]:
        if any(map(_drops, self.layers)):
            return [None] * len(self.layers)
        parts = [_down(layer, x) for layer in self.layers]
        return torch.nn.functional.linear(x, torch.cat(parts)).split([len(part) for part in parts], -1)


class _SameInput(torch.autograd.Function):
    """x · Wᵀ for each of the parts of `weight` that have `sizes` outputs. The gradient of x is one product; autograd
    would add up one for each part. The outputs stay apart, so that none keeps the memory of the others.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, sizes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(weight)
        return tuple(torch.nn.functional.linear(x, part) for part in weight.split(sizes))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return torch.cat(gradients, -1) @ weight, None, None


@dataclasses.dataclass(eq=False)
class Member:
    """The layer at `place` of a group."""

    group: Group
    place: int


def patch_lora_forward(model: Any) -> None:
    """Replaces the forward pass of all plain LoRA layers in `model`, linear or in 4 bits, by an equivalent one, and
    their dropout on a GPU.
    """
    found = []
    for module in model.modules():
        if _is_plain(module):
            module.forward = types.MethodType(_forward, module)
            found.append(module)
    seed_dropout(found)
    for parent in model.modules() if JOINED else ():
        for names in TOGETHER:
            layers: list[Any] = [getattr(parent, name, None) for name in names]
            if all(map(_is_plain, layers)) and len({layer.in_features for layer in layers}) == 1:
                group = Group(layers, _one_weight(layers) if JOINED_WEIGHTS else None)
                for place, layer in enumerate(layers):
                    layer.forward = types.MethodType(_forward_in_group, Member(group, place))


def _one_weight(layers: Sequence[Any]) -> torch.nn.Parameter | None:
    """One tensor of the layers' base weights, which become parts of it; None where they are packed or trained."""
    bases = [layer.get_base_layer() for layer in layers]
    weights = [base.weight for base in bases]
    frozen = all(type(base) is torch.nn.Linear and not base.weight.requires_grad for base in bases)
    if not frozen or len({(one.dtype, one.device) for one in weights}) > 1 or weights[0].is_meta:
        return None
    joined = torch.cat([one.data for one in weights])
    for base, part in zip(bases, joined.split([len(one) for one in weights]), strict=True):
        base.weight.data = part
    return torch.nn.Parameter(joined, requires_grad=False)


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
    default peft looks there whether the vocabulary has grown.
    """
    for config in model.peft_config.values():
        if isinstance(config.target_modules, set):  # whose order changes from process to process
            config.target_modules = sorted(config.target_modules)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's form of a model card, with nothing filled in


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    if layer.disable_adapters or layer.merged:
        return type(layer).forward(layer, x)
    return _with_update(layer, x)


def _forward_in_group(member: Member, x: torch.Tensor) -> torch.Tensor:
    layer, layers = member.group.layers[member.place], member.group.layers
    if any(one.disable_adapters or one.merged for one in layers):
        return _forward(layer, x)
    return _with_update(layer, x, *member.group.take(member.place, x))


def _with_update(
    layer: Any, x: torch.Tensor, base: torch.Tensor | None = None, product: torch.Tensor | None = None
) -> torch.Tensor:
    """The layer's output, where `base` (the base layer's) and `product` (x · Aᵀ) may be known."""
    name = layer.active_adapters[0]
    if product is None:
        product = torch.nn.functional.linear(layer.lora_dropout[name](x), _down(layer, x))
    up = (layer.lora_B[name].weight * layer.scaling[name]).to(x.dtype)
    if missing := product.shape[-1] - up.shape[-1]:
        up = torch.nn.functional.pad(up, (0, missing))
    return (layer.base_layer(x) if base is None else base) + torch.nn.functional.linear(product, up)


def _down(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """A in the dtype of `x`: (r, in), on a GPU with r filled up."""
    down = layer.lora_A[layer.active_adapters[0]].weight.to(x.dtype)
    missing = -len(down) % GRID if x.is_cuda else 0
    return torch.nn.functional.pad(down, (0, 0, 0, missing)) if missing else down


def _drops(layer: Any) -> bool:
    """Whether the adapter's input is not the layer's."""
    return layer.training and not isinstance(layer.lora_dropout[layer.active_adapters[0]], torch.nn.Identity)
