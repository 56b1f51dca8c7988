"""Layers that are compiled for rows of a tree, and the way back to the standard layers.

On a GPU, `make_ready` makes a model compute rows by flex attention in compiled layers. Layers are compiled once for
all lengths of rows; or, without `DYNAMIC`, once for each length, of which there have to be few then.

Look here after an upgrade of torch, transformers or peft. Beside their documented interfaces, this file relies on

    torch           torch._dynamo.config: recompile_limit, accumulated_recompile_limit, fail_on_recompile_limit_hit,
                    specialize_float
                    torch._functorch.config: the settings in `CHEAP`
                    Module._compiled_call_impl, which Module.compile sets and Module.__call__ takes
                    torch.compiler.set_stance("force_eager") within a model that is compiled
                    flex attention's option IS_DIVISIBLE, which torch finds out itself for a length that is known
    transformers    config._attn_implementation, and set_attn_implementation on a loaded model
                    the names given to AttentionInterface and AttentionMaskInterface, and what they are called with
                    _supports_flex_attn and _is_stateful of a model's class
    peft            get_base_model (src/model/causal.py)

and other files of ours on

    tree/prefix.py      BlockMask.from_kv_blocks; config._attn_implementation, layer_types and sliding_window
    tree/rows.py        config.final_logit_softcapping, which a model applies after its head
    tree/compiler.py    the packages that compilers' errors come from, and torch's own folder for compiled code
    train/trainer.py    the methods of transformers' Trainer that it overrides
"""

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.masking_utils import flex_attention_mask

from src.model.causal import attention_of, causal_of, is_sharded
from src.model.dropout import other_dropout
from src.tree import compiler, prefix

ATTENTION = "tree"
"""Our name for flex attention over keys that `prefix.key_copies` repeats."""
DYNAMIC = True
"""Whether layers are compiled once for rows of all lengths, which are then filled up to whole tiles. One H100, 64 items
a step: for one length, 10 % of each row is filling and a step takes 932 ms; for six, 2 % and 876 ms.
"""
REPEATED = 128
"""Head size with which a Hopper GPU reads keys and values that are repeated for all heads that share them. One H100, a
row of 7,552 tokens, 32 heads of 8: the backward pass takes 1.22 ms instead of 1.64, the forward pass 0.46 instead of
0.42.
"""
HOPPER = 9
"""Compute capability of the H100 and the H200."""
CHEAP = (
    "ban_recompute_materialized_backward",
    "ban_recompute_used_far_apart",
    "ban_recompute_long_fusible_chains",
)
"""Settings of torch._functorch.config that selective recomputation switches off."""
COMPILATIONS = 1024
"""Maximum compilations per process; one more raises."""

_hooks: "weakref.WeakKeyDictionary[Any, RemovableHandle]" = weakref.WeakKeyDictionary()
"""Model that `make_ready` has changed → the hook on its embeddings."""


def rows_on_gpu(device: torch.device) -> bool:
    """Whether `make_ready` works for `device`. Elsewhere a tree is computed by blocks (src/tree/branches.py)."""
    return device.type == "cuda" and not compiler.obstacle(device)


def obstacle(model_class: Any, config: Any, device: torch.device) -> str:
    """Why models of this class cannot compute rows of a tree on `device`; "" when they can.

    model_class: None for code that comes with the weights and is not loaded yet.
    """
    name = config.model_type
    if getattr(model_class, "_is_stateful", False):
        return f"{name} carries a state along the sequence, which cannot branch"
    if model_class is not None and "position_ids" not in inspect.signature(model_class.forward).parameters:
        return f"{name} takes no positions of tokens"
    if device.type == "cuda" and not getattr(model_class, "_supports_flex_attn", False):
        return f"{name} has no flex attention in transformers"
    if device.type == "cuda" and (getattr(config.get_text_config(), "attention_dropout", None) or 0) > 0:
        return f"{name} has dropout in its attention, which flex attention has not"
    return prefix.obstacle(config)


def repeats_keys(device: torch.device, head_dim: int) -> bool:
    """Whether compiled layers repeat keys and values for all heads that share them."""
    return head_dim == REPEATED and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == HOPPER


def any_length(sharded: bool) -> bool:
    """Whether layers are compiled for rows of all lengths at once. Sharded ones are compiled for each: torch 2.11 fails
    where their length may vary, since it takes the mask's tile size, too, for what varies.
    """
    return DYNAMIC and not sharded


def is_ready(model: Any) -> bool:
    """Whether `make_ready` has changed `model`."""
    return bool(causal_of(model).config._attn_implementation == ATTENTION)


def make_ready(model: Any, checkpointing: bool = False, spare: int = 0, selective: bool = False) -> bool:
    """Makes `model` compute rows by flex attention in compiled layers if its device is a GPU; returns whether it is.

    checkpointing: only the input of a layer is kept for the backward pass. The model's own checkpointing must be off
    then: it would be compiled with the layer, and the compiler would decide what is kept. spare: tokens times layers
    for whose activations there is room none the less: in a row of n tokens, the last `spare` / n layers keep them.
    selective: see `Workload` in src/model/memory.py.
    """
    causal = causal_of(model)
    if not rows_on_gpu(causal.device):
        return False
    if not is_ready(causal):
        # Past a limit, torch runs layers uncompiled: that is slow, and flex attention's gradients are then wrong under
        # checkpointing. Layers of all models count together, and a search for prompts has many lengths of rows.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = COMPILATIONS
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        # Scales and softcaps do not change, and flex attention takes no softcap that may.
        torch._dynamo.config.specialize_float = True
        # What torch would rather keep than compute again, though products and attention are never computed again.
        for name in CHEAP:
            setattr(torch._functorch.config, name, not selective)
        causal.set_attn_implementation(ATTENTION)
        layers = causal.get_decoder().layers
        sharded = is_sharded(causal)
        for number, layer in enumerate(layers):
            call = _compiled_call(layer, sharded)
            if checkpointing:
                # What follows from seeds needs no state of the generator, which cannot be read during a capture.
                state = other_dropout(layer.modules())
                most = spare // (len(layers) - number)
                call = _checkpointed(call, most, state)
            setattr(layer, "forward" if sharded else "_compiled_call_impl", call)
        _hooks[causal] = causal.get_input_embeddings().register_forward_hook(_require_gradients)
    return True


def _compiled_call(layer: Any, sharded: bool) -> Callable[..., Any]:
    """What computes a layer, compiled. sharded: without the hooks that gather and free its parameters, which run before
    and after it.
    """
    if sharded:
        return torch.compile(layer.forward, dynamic=any_length(sharded))
    layer.compile(dynamic=any_length(sharded))
    call: Callable[..., Any] = layer._compiled_call_impl
    return call


def restore_standard_layers(model: Any) -> None:
    """Takes `make_ready` back."""
    causal = causal_of(model)
    if is_ready(causal):
        causal.set_attn_implementation(attention_of(type(causal)))
        for layer in causal.get_decoder().layers:
            layer._compiled_call_impl = None
            vars(layer).pop("forward", None)
        _hooks.pop(causal).remove()


@contextlib.contextmanager
def standard_attention(model: Any) -> Iterator[None]:
    """Within, `model` computes as Hugging Face's models do: not compiled, with the attention it was loaded with."""
    causal = causal_of(model)
    if not is_ready(causal):
        yield
        return
    causal.set_attn_implementation(attention_of(type(causal)))
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        causal.set_attn_implementation(ATTENTION)


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, tree_copies: tuple[int, int], **keys: Any
) -> Any:
    """Flex attention with the root's keys repeated; autograd adds the gradients of the copies."""
    shared, copies = tree_copies
    if copies > 1:
        key, value = (torch.cat([part[:, :, :shared]] * (copies - 1) + [part], 2) for part in (key, value))
    if repeats_keys(query.device, query.shape[-1]):
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    keys["kernel_options"] = {"IS_DIVISIBLE": True}  # rows are whole tiles, which torch cannot know of any length
    if query.shape[-1] == 256 and torch.cuda.get_device_capability()[0] == HOPPER:
        keys["kernel_options"]["bwd_num_warps"] = 8  # Gemma2's heads on an H200: 15.3 ms → 12.7 ms
    return flex_attention_forward(module, query, key, value, attention_mask, **keys)


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, flex_attention_mask)


def _checkpointed(call: Callable[..., Any], most: int, state: bool) -> Callable[..., Any]:
    """`call` of a layer, recomputed in the backward pass for rows of more than `most` tokens. state: whether the random
    numbers of the forward pass are drawn again.
    """

    def checkpointed(hidden: torch.Tensor, *inputs: Any, **keys: Any) -> Any:
        if not torch.is_grad_enabled() or hidden.shape[1] <= most:
            return call(hidden, *inputs, **keys)
        return checkpoint(call, hidden, *inputs, use_reentrant=False, preserve_rng_state=state, **keys)

    return checkpointed


def _require_gradients(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """Makes embeddings require gradients, so that the first layer compiles to the same graph as the rest."""
    return output.requires_grad_() if torch.is_grad_enabled() else output
