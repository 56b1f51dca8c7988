"""Configs of small models of any architecture."""

from typing import Any


def toy_config(model_type: str, **changes: Any) -> Any:
    """A config of three small layers; `changes` on top."""
    from transformers import CONFIG_MAPPING

    sizes = {
        "hidden_size": 64,
        "intermediate_size": 144,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 300,
        "pad_token_id": 0,
    }
    return CONFIG_MAPPING[model_type](**{**sizes, **changes})
