"""Facts that hold for every loaded causal model."""

from typing import Any


def causal_of(model: Any) -> Any:
    """The Hugging Face model below peft's wrapper, where there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def attention_of(model_class: Any) -> str:
    """The attention to load a model with: sdpa where the architecture has it; Gemma2's softcap needs eager."""
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"
