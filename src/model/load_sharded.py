"""Loads a model to be trained with all its parameters sharded over the ranks (src/model/shards.py).

Rank 0 reads the files into main memory, in the dtype that they are kept in, and hands each rank its parts. It reads
them as any other model is read (src/model/load.py): what is missing is refused, names are translated.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM

from src.model import load, ranks, shards, trust
from src.model.causal import attention_of
from src.model.recipes import Recipe
from src.model.weights import class_of

CPU = torch.device("cpu")


def load_sharded(recipe: Recipe, device: torch.device, masters: torch.dtype) -> Any:
    """The recipe's base model, sharded over all ranks. masters: the dtype that its parameters are trained in."""
    source = _whole_model(recipe, masters) if ranks.is_first() else None
    bare = _bare_model(recipe, masters)
    if source is not None:
        bare.generation_config = source.generation_config
    return shards.shard_bare(bare, source, device, load.compute_dtype(device))


def fill_from(network: Any, recipe: Recipe, folder: Path) -> None:
    """Gives a sharded model the weights of a checkpoint of its training."""
    source = load.load_base(recipe, CPU, dtype=network.dtype, folder=folder) if ranks.is_first() else None
    shards.fill(network, source)


def _whole_model(recipe: Recipe, masters: torch.dtype) -> Any:
    """The base in main memory. Weights that are bf16 in the files become `masters` part by part."""
    return load.load_base(recipe, CPU, dtype=torch.bfloat16 if load.kept_in(recipe) == {torch.bfloat16} else masters)


def _bare_model(recipe: Recipe, dtype: torch.dtype) -> Any:
    """The model without the values of its parameters."""
    config = load.load_config(recipe)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            attn_implementation=attention_of(class_of(config)),
            trust_remote_code=trust.remote_code(recipe),
        )
    model.tie_weights()
    model.config.use_cache = False
    return model
