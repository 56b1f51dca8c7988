"""Facts that hold for every loaded causal model."""

from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule


def causal_of(model: Any) -> Any:
    """The Hugging Face model below peft's wrapper, where there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def attention_of(model_class: Any) -> str:
    """The attention to load a model with: sdpa where the architecture has it; Gemma2's softcap needs eager."""
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"


def is_sharded(model: Any) -> bool:
    """Whether the model's parameters are sharded over several ranks (src/model/shards.py)."""
    return isinstance(causal_of(model), FSDPModule)


def without_gradient(model: Any) -> Any:
    """A context in which `model` computes without gradients. What is gathered for a sharded model in inference mode
    could not be trained with afterwards.
    """
    return torch.no_grad() if is_sharded(model) else torch.inference_mode()
