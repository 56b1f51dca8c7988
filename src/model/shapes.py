"""The sizes of a decoder, and what follows from them alone: its parameters, those of its adapters, its FLOPs."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

from src.files.kinds import fits

GIB = 2**30


@dataclass(frozen=True)
class Family:
    """How the layers of a `model_type` differ from Llama's."""

    norms: int = 2
    """Norms of the hidden size in each layer."""
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    """`tie_word_embeddings` where config.json leaves it out."""
    attention: str = "sdpa"
    """The fastest attention that transformers offers without further packages."""
    softcap: bool = False


SIZES = {"intermediate_size", "num_key_value_heads", "head_dim"}
"""Keys of a config.json that may be missing or null."""
LARGEST_SIZE = 10**9
FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
    "gemma": Family(tied=True),
    "gemma2": Family(norms=4, tied=True, attention="eager", softcap=True),
    "gemma3_text": Family(norms=4, qk_norm=True, tied=True),
    "exaone4": Family(qk_norm=True),
}


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder that decide memory and time. A `model_type` that `FAMILIES` lacks counts as a Llama."""

    parameters: int
    hidden_size: int
    layers: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    model_type: str

    @staticmethod
    def of_backbone(facts: "Shape") -> "Shape":
        """The sizes alone of an entry in the table of backbones, which is a shape and more."""
        return Shape(**{field.name: getattr(facts, field.name) for field in fields(Shape)})

    @staticmethod
    def of_config(config: Any) -> "Shape":
        """The shape in a transformers config (or anything with its attributes), parameters by arithmetic.

        Exact for `FAMILIES`; any other architecture is taken for a Llama of its sizes.
        """
        if hasattr(config, "get_text_config"):
            config = config.get_text_config()
        model_type = config.model_type
        family = FAMILIES.get(model_type, Family())
        hidden, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
        tied = getattr(config, "tie_word_embeddings", None)
        bare = Shape(
            parameters=0,
            hidden_size=hidden,
            layers=layers,
            intermediate_size=getattr(config, "intermediate_size", None) or 4 * hidden,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or hidden // heads,
            vocab=config.vocab_size,
            tied=family.tied if tied is None else tied,
            model_type=model_type,
        )
        small = family.norms * hidden
        small += bare.query_size + 2 * bare.kv_size if family.qkv_bias else 0
        small += 2 * bare.head_dim if family.qk_norm else 0
        parameters = bare.linear_parameters + bare.embedding_parameters + layers * small + hidden
        return Shape(**{**vars(bare), "parameters": parameters})

    @staticmethod
    def of_json(keys: Mapping[str, Any]) -> "Shape | None":
        """The shape in the keys of a config.json; None for an architecture whose arithmetic is not known here, and for
        sizes that no model has.
        """
        needed = {"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"}
        if not isinstance(keys, Mapping) or keys.get("model_type") not in [*FAMILIES] or not needed <= keys.keys():
            return None
        sizes = [keys[key] for key in (*needed, *(SIZES & keys.keys())) if key in needed or keys[key] is not None]
        known = all(fits(size, int) and 0 < size < LARGEST_SIZE for size in sizes)
        return Shape.of_config(SimpleNamespace(**keys)) if known else None

    @property
    def family(self) -> Family:
        return FAMILIES.get(self.model_type, Family())

    @property
    def query_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers, without the head: what NF4 packs and where adapters sit."""
        attention = self.hidden_size * (2 * self.query_size + 2 * self.kv_size)
        return self.layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def embedding_parameters(self) -> int:
        """Embeddings and head, once when they are tied."""
        return self.vocab * self.hidden_size * (1 if self.tied else 2)

    def lora_parameters(self, r: int) -> int:
        """Weights of adapters of rank `r` on all linear layers: r · (inputs + outputs) each."""
        h, i, q, kv = self.hidden_size, self.intermediate_size, self.query_size, self.kv_size
        return self.layers * r * (2 * (h + q) + 2 * (h + kv) + 3 * (h + i))


def flops(method: str, checkpointing: bool) -> int:
    """FLOPs per linear weight and token of training: 2 forward, 2 backward through it, 2 for its own gradient, and 2 to
    recompute it.
    """
    return (6 if method == "full" else 4) + (2 if checkpointing else 0)
