"""A faster forward pass for LoRA layers; shapes, saving and merging stay with peft.

peft computes `base(x) + lora_B(lora_A(dropout(x))) * scaling` in the adapters' fp32. For that it copies `x`, or needs
autocast around everything. Here the adapters' fp32 weights are cast to the dtype of `x`, and the rank is padded with
zeros to a multiple of 8. A matrix with the published rank 6 is not aligned to a GPU's 16-byte grid, and the kernels for
such matrices are two to three times slower (one H200: 113 µs for 20,992 × 4,096 by 6, 45 µs by 8).

On a GPU, products are added to what is there already by the kernels that compute them (`adapted`, `input_gradient`). A
sum of two results would read and write them again, and a compiler does not do without: it copies what `addmm` adds to.
One H200, 14,208 tokens of 4,096 by 14,336: 2.15 ms with or without the addition, where the sum takes 0.35 ms more.

Layers with one input (`TOGETHER`) compute the products with their A as one, so that the input is read once, and its
gradient is written once instead of being added up. With dropout each adapter has its own input, and nothing is joined.
"""

import dataclasses
import itertools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft.tuners import lora

from src.model.dropout import replace_dropout

GRID = 8
"""The rank is padded to a multiple of this."""
SUMMED_ON: tuple[str, ...] = ("cuda",)
"""Kinds of devices on which products are added as they are computed."""
JOINED = True
"""Whether layers with one input share one product with their A."""
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that the modules of all common architectures call with one input, in this order."""


@torch.library.custom_op("letters::adapted", mutates_args=())
def adapted(
    x: torch.Tensor,
    weights: list[torch.Tensor],
    downs: torch.Tensor,
    ups: list[torch.Tensor],
    biases: list[torch.Tensor],
) -> list[torch.Tensor]:
    """(outputs of the layers, and x · downsᵀ): an output is x · weightᵀ + its part of x · downsᵀ · upᵀ + bias, rounded
    once. x: (…, in); weights: (out, in) each; downs: the layers' (r, in) one below the other; ups: (out, r) each;
    biases: (out,) each, or none at all.
    """
    products = torch.nn.functional.linear(x, downs)
    parts = products.split([up.shape[1] for up in ups], -1)
    factors = itertools.zip_longest(weights, parts, ups, biases)
    return [*(_product_sum(x, *some) for some in factors), products]


@torch.library.custom_op("letters::product_sum", mutates_args=())
def product_sum(
    x: torch.Tensor, weight: torch.Tensor, product: torch.Tensor, up: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """(…, out): x · weightᵀ + product · upᵀ + bias, rounded once. x: (…, in); product: (…, r); up: (out, r)."""
    return _product_sum(x, weight, product, up, bias)


@torch.library.custom_op("letters::input_gradient", mutates_args=())
def input_gradient(
    gradients: list[torch.Tensor], weights: list[torch.Tensor], products: torch.Tensor, downs: torch.Tensor
) -> torch.Tensor:
    """(…, in): the sum of gradient · weight of all layers and products · downs."""
    total = products @ downs
    for gradient, weight in zip(gradients, weights, strict=True):
        _add_product(total, gradient, weight)
    return total


def _product_sum(x: Any, weight: Any, product: Any, up: Any, bias: Any) -> torch.Tensor:
    total = torch.nn.functional.linear(product, up, bias)
    _add_product(total, x, weight.t())
    return total


def _add_product(total: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> None:
    total.view(-1, total.shape[-1]).addmm_(_by_token(one), other)


def _by_token(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


@adapted.register_fake
def _(x: Any, weights: Any, downs: Any, ups: Any, biases: Any) -> list[torch.Tensor]:
    return [x.new_empty((*x.shape[:-1], len(factor))) for factor in (*weights, downs)]


@product_sum.register_fake
def _(x: Any, weight: Any, product: Any, up: Any, bias: Any) -> torch.Tensor:
    empty: torch.Tensor = x.new_empty((*x.shape[:-1], len(weight)))
    return empty


@input_gradient.register_fake
def _(gradients: Any, weights: Any, products: Any, downs: Any) -> torch.Tensor:
    empty: torch.Tensor = products.new_empty((*products.shape[:-1], downs.shape[1]))
    return empty


def _keep_adapted(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    x, weights, downs, ups, biases = inputs
    ctx.biases = [None] * len(biases)
    ctx.save_for_backward(x, downs, output[-1], *weights, *ups)


def _gradients_of_adapted(ctx: Any, gradients: list[torch.Tensor]) -> tuple[Any, ...]:
    """Weights and biases are the base's, which do not learn; nothing but the outputs is read."""
    x, downs, products, *factors = ctx.saved_tensors
    weights, ups = factors[: len(factors) // 2], factors[len(factors) // 2 :]
    by_layer = [gradient.contiguous() for gradient in gradients[:-1]]
    parts = products.split([up.shape[1] for up in ups], -1)
    of_ups = [_by_token(one).t() @ _by_token(part) for one, part in zip(by_layer, parts, strict=True)]
    of_products = torch.cat([one @ up for one, up in zip(by_layer, ups, strict=True)], -1)
    of_downs = _by_token(of_products).t() @ _by_token(x)
    return input_gradient(by_layer, weights, of_products, downs), [None] * len(ups), of_downs, of_ups, ctx.biases


def _keep_factors(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, weight, product, up, _ = inputs
    ctx.save_for_backward(weight, product, up)


def _gradients_of_sum(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    weight, product, up = ctx.saved_tensors
    return gradient @ weight, None, gradient @ up, _by_token(gradient).t() @ _by_token(product), None


adapted.register_autograd(_gradients_of_adapted, setup_context=_keep_adapted)
product_sum.register_autograd(_gradients_of_sum, setup_context=_keep_factors)


@dataclasses.dataclass(eq=False)
class Group:
    """Layers with one input, in the order in which they are called.

    The first one computes what all need of the input; each of the others takes its own part, and after the last one
    nothing is left here.
    """

    layers: list[Any]
    x: torch.Tensor | None = None
    parts: list[torch.Tensor] = dataclasses.field(default_factory=list)

    def forward_of(self, place: int) -> Any:
        return types.MethodType(_forward_in_group, Member(self, place))

    def part(self, place: int, x: torch.Tensor, compute: Callable[..., list[torch.Tensor]]) -> torch.Tensor:
        """What `compute` makes of layers and their input `x`, for the layer at `place`."""
        if place == 0:
            self.x, self.parts = x, compute(self.layers, x)
        elif self.x is not x:  # whatever calls it, it is not the module that called the first one
            return compute([self.layers[place]], x)[0]
        found = self.parts[place]
        if place == len(self.layers) - 1:
            self.x, self.parts = None, []
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
    if _adds_products(x, layer) and not _drops(layer):
        return _outputs([layer], x)[0]
    dropped = layer.lora_dropout[layer.active_adapters[0]](x)
    return _with_update(layer, x, torch.nn.functional.linear(dropped, _down(layer, x)))


def _forward_in_group(member: Member, x: torch.Tensor) -> torch.Tensor:
    group = member.group
    layer = group.layers[member.place]
    if any(_drops(one) or one.disable_adapters or one.merged for one in group.layers):
        return _forward(layer, x)
    if all(_adds_products(x, one) for one in group.layers):
        return group.part(member.place, x, _outputs)
    return _with_update(layer, x, group.part(member.place, x, _products))


def _drops(layer: Any) -> bool:
    """Whether the input of the layer's A is not the layer's input."""
    return layer.training and not isinstance(layer.lora_dropout[layer.active_adapters[0]], torch.nn.Identity)


def _adds_products(x: torch.Tensor, layer: Any) -> bool:
    """Whether the layer's product with `x` is added to the adapter's in one kernel: its weights are not in 4 bits."""
    base = layer.base_layer
    return x.device.type in SUMMED_ON and type(base) is torch.nn.Linear and not base.weight.requires_grad


def _outputs(layers: list[Any], x: torch.Tensor) -> list[torch.Tensor]:
    """The layers' outputs."""
    bases, downs = [layer.base_layer for layer in layers], [_down(layer, x) for layer in layers]
    ups = [_up(layer, x, len(down)) for layer, down in zip(layers, downs, strict=True)]
    biases = []
    if any(base.bias is not None for base in bases):
        biases = [base.weight.new_zeros(len(base.weight)) if base.bias is None else base.bias for base in bases]
    return list(adapted(x, [base.weight for base in bases], torch.cat(downs), ups, biases)[:-1])


def _products(layers: list[Any], x: torch.Tensor) -> list[torch.Tensor]:
    """x · Aᵀ of each layer."""
    downs = [_down(layer, x) for layer in layers]
    return list(torch.nn.functional.linear(x, torch.cat(downs)).split([len(down) for down in downs], -1))


def _down(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """A in the dtype of `x`: (r, in), on a GPU with r filled up."""
    down = layer.lora_A[layer.active_adapters[0]].weight.to(x.dtype)
    missing = -len(down) % GRID if x.is_cuda else 0
    return torch.nn.functional.pad(down, (0, 0, 0, missing)) if missing else down


def _up(layer: Any, x: torch.Tensor, rank: int) -> torch.Tensor:
    """B times the scaling, in the dtype of `x`: (out, r), filled up to `rank`."""
    name = layer.active_adapters[0]
    up = (layer.lora_B[name].weight * layer.scaling[name]).to(x.dtype)
    missing = rank - up.shape[-1]
    return torch.nn.functional.pad(up, (0, missing)) if missing else up


def _with_update(layer: Any, x: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    """The layer's output, given `product` of its A and its input, which dropout may have changed."""
    up = _up(layer, x, product.shape[-1])
    if _adds_products(x, layer):
        return product_sum(x, layer.base_layer.weight, product, up, layer.base_layer.bias)
    return layer.base_layer(x) + torch.nn.functional.linear(product, up)
