"""The sizes of a decoder, and the arithmetic over them: parameters, FLOPs, memory, and which way of training fits.

The memory formulas follow what autograd keeps, tensor by tensor; tests hold them against what torch saves for small
models. Against peaks on one H200 (8B Llama shape, GiB):

                                                            computed   measured
    LoRA, compiled, rows of 14,592 tokens                      78.8       77.9
    the same with dropout .05                                 111.0      109.0   (fitted at two other lengths)
    LoRA, compiled, rows of 4,480 tokens                       34.5       34.3
    LoRA, compiled, one item a row of up to 1,408 tokens       21.1       21.3
    LoRA in the usual layers, one item a step                  27.1       27.1   (1,560 tokens, fitted here and
    QLoRA in the usual layers, one item a step                 17.9       17.8    taken for the next row)
    scoring, rows of 16,384 tokens                             16.8       16.8
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from src.model.backbones import Backbone

GIB = 2**30

USABLE = 0.92
"""Share of the free memory that a plan may fill; the rest goes to fragments and to what torch holds beside tensors."""
ANSWER_TOKENS = 40
"""Positions of an item that the head projects in training: a letter and a sentence."""
MASK_BYTES = 1
"""What dropout keeps of each value: CUDA a bool (the CPU a float)."""
NF4_BYTES = 0.5 + (8 / 64 + 32 / (64 * 256)) / 8
"""A parameter in NF4: 4 bits, 8 bits per block of 64, and 32 bits per 256 blocks (double quantisation)."""
COMPILED_DROPOUT_BYTES = 1.9
"""What a compiled layer keeps for the dropout of one value: measured on one H200 at 8,192 and 10,704 tokens."""
STATE_8BIT_BYTES = 2 * (1 + 4 / 256)
"""Adam's two moments in 8 bits with an fp32 scale per block of 256."""

OPTIMIZERS = ("fp32", "fp32-8bit", "bf16-stochastic")


@dataclass(frozen=True)
class Family:
    """What a `model_type` adds to the layers all of them share."""

    norms: int = 2
    """Norms of the hidden size in each layer."""
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    """`tie_word_embeddings` where config.json leaves it out."""
    attention: str = "sdpa"
    """The fastest attention that transformers offers without further packages."""
    softcap: bool = False


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
    """The sizes of a decoder that decide memory and time."""

    parameters: int
    hidden_size: int
    layers: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    model_type: str = "llama"

    @staticmethod
    def of_backbone(row: Backbone) -> "Shape":
        return Shape(
            parameters=int(row.parameters),
            hidden_size=row.hidden_size,
            layers=row.layers,
            intermediate_size=row.intermediate_size,
            heads=row.heads,
            kv_heads=row.kv_heads,
            head_dim=row.head_dim,
            vocab=row.vocab,
            tied=row.tied,
            model_type=row.model_type,
        )

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
        """The shape in the keys of a config.json; None for an architecture whose arithmetic is not known here."""
        needed = {"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"}
        known = keys.get("model_type") in FAMILIES and needed <= keys.keys()
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


@dataclass(frozen=True)
class Memory:
    """Bytes on the GPU at the peak of a step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


@dataclass(frozen=True)
class Settled:
    """How a run is kept in memory, and whether that fits."""

    optimizer: str
    checkpointing: bool
    memory: Memory
    fits: bool
    dequantised: bool = False
    """Of qlora: NF4 weights turned into bf16 once, the same base function without unpacking them in every pass."""


def training_memory(
    shape: Shape,
    method: str,
    optimizer: str,
    tokens: int,
    lora_r: int,
    checkpointing: bool,
    attention: str | None = None,
    sequences: int = 1,
    dropout: bool = True,
    places: int | None = None,
) -> Memory:
    """Memory of a training step over `tokens` tokens in `sequences` sequences of equal length, computed in bf16.

    lora, qlora             base in bf16, or in NF4 but embeddings and head; adapters, gradients and moments in fp32
    full, fp32              weights, gradients and moments 4 + 4 + 8 bytes, and autocast's bf16 copy of each matrix
    full, fp32-8bit         the same with moments in 8 bits, but the embeddings'
    full, bf16-stochastic   weights and gradients in bf16, moments in 8 bits
    Adam's step is taken to be fused or tensor by tensor; a foreach step needs one more copy of all trained weights.
    attention: "sdpa", "eager", or "tree" in compiled layers; by default the family's. dropout: whether the
    adapters have any. places: those whose logits are made at a time; by default `ANSWER_TOKENS` of each sequence.
    """
    assert method in ("full", "lora", "qlora") and optimizer in OPTIMIZERS, (method, optimizer)
    adapters = shape.lora_parameters(lora_r)
    if method != "full":
        weights = 4 * adapters + _base_bytes(shape, method)
        gradients, states = 4 * adapters, 8 * adapters
    elif optimizer == "bf16-stochastic":
        weights, gradients, states = 2 * shape.parameters, 2 * shape.parameters, _moments_bytes(shape, optimizer)
    else:
        copies = 2 * (shape.linear_parameters + shape.vocab * shape.hidden_size)
        weights, gradients = 4 * shape.parameters + copies, 4 * shape.parameters
        states = _moments_bytes(shape, optimizer)
    layer = layer_activations(shape, method, optimizer, tokens, attention, sequences, dropout)
    # While one layer is computed anew, its activations, their gradients and what lies between are there. Of all layers'
    # activations, that is the part which the last layer does not need yet.
    working = 3 if attention == "tree" else 1
    inputs = checkpoint_bytes(shape, method, optimizer, tokens)
    kept = working * layer + inputs if checkpointing else shape.layers * layer
    activations = kept + _dequantised(shape, method)
    # All in fp32: the log-softmax, the gradient of the picked places in it, and that of the logits.
    logits = (sequences * ANSWER_TOKENS if places is None else places) * shape.vocab * (4 + 4 + 4)
    return Memory(weights, gradients, states, activations, logits)


def layer_activations(
    shape: Shape,
    method: str,
    optimizer: str,
    tokens: int,
    attention: str | None = None,
    sequences: int = 1,
    dropout: bool = True,
) -> int:
    """Bytes that autograd keeps of one decoder layer for the backward pass, without checkpointing.

    Per token, with h = hidden, i = intermediate, q = query, kv = key or value size; values in bf16 unless said:
    attention   sdpa: query, output 2q each, key, value 2kv each (2q each with a padding mask, which repeats them);
                eager: query, key, value 2q each, and for each head and key the softmax in fp32 4, its bf16 copy 2
                and, with a softcap, the tanh 2
    MLP         gate, activated gate, up: 2i each
    norms       their input in fp32 4h; trained ones also the normalised value: 4h, or in bf16 2h and the output 2h
    adapters    for each linear layer its input 2 and the dropout mask 1 a value: under autocast they share none
    full        the input of `down` 2i, that of `o` 2q unless it is sdpa's output; autocast casts the input of the
                other five for each of them 2h, while in bf16 the norm's output serves them all
    Compiled ("tree"), all methods keep the same, and norms and casts are computed anew: the residual stream twice, both
    norms' outputs, attention's output 2h each, q, k and v, and 2i each of gate, up and their product.
    """
    attention = attention or shape.family.attention
    h, i, q, kv = shape.hidden_size, shape.intermediate_size, shape.query_size, shape.kv_size
    norms = shape.family.norms
    if attention == "tree":
        fp32 = method == "full" and optimizer != "bf16-stochastic"
        each = (norms + 3) * h * (4 if fp32 else 2) + 2 * (q + 2 * kv + 3 * i)
        each += int(COMPILED_DROPOUT_BYTES * (5 * h + q + i)) if method != "full" and dropout else 0
        return each * tokens
    each = 6 * i
    if attention == "eager":
        each += 6 * q + (2 * q if method == "full" else 0)
        each += shape.heads * (tokens // sequences) * (8 if shape.family.softcap else 6)
    else:
        each += 4 * q + 4 * (kv if sequences == 1 else q)
    if method == "full":
        each += 8 * norms * h + 2 * i + (10 * h if optimizer != "bf16-stochastic" else 0)
    else:
        each += 4 * norms * h + (2 + MASK_BYTES) * (5 * h + q + i)
    return each * tokens


def checkpoint_bytes(shape: Shape, method: str, optimizer: str, tokens: int) -> int:
    """Bytes that checkpointing keeps: each layer's input, in fp32 where the weights are."""
    fp32 = method == "full" and optimizer != "bf16-stochastic"
    return shape.layers * shape.hidden_size * (4 if fp32 else 2) * tokens


def scoring_memory(shape: Shape, method: str, tokens: int, attention: str | None = None, sequences: int = 1) -> Memory:
    """Memory of scoring `tokens` tokens in `sequences` sequences: the weights and the widest moment of one layer."""
    attention = attention or shape.family.attention
    activations = 2 * (4 * shape.hidden_size + 3 * shape.intermediate_size) * tokens
    if attention == "eager":
        activations = max(activations, 8 * shape.heads * tokens * (tokens // sequences))
    activations += _dequantised(shape, method)
    return Memory(_base_bytes(shape, method), 0, 0, activations, sequences * shape.vocab * (2 + 4))


def settle(
    shape: Shape,
    method: str,
    optimizer: str,
    checkpointing: str,
    tokens: int,
    lora_r: int,
    free_bytes: int | None,
    **keys: Any,
) -> Settled:
    """The first way to train that fits into 92 % of `free_bytes`; the last way with `fits` False when none does.

    optimizer, checkpointing: as in a recipe; "auto" tries fp32, fp32-8bit and bf16-stochastic, each without and then
    with checkpointing. Only method full has a choice of optimizer. free_bytes: None on a CPU, where nothing is saved.
    keys: further ones of `training_memory`.
    """
    found = ways(shape, method, optimizer, checkpointing, tokens, lora_r, free_bytes, **keys)
    return next((way for way in found if way.fits), found[-1])


def ways(
    shape: Shape,
    method: str,
    optimizer: str,
    checkpointing: str,
    tokens: int,
    lora_r: int,
    free_bytes: int | None,
    **keys: Any,
) -> list[Settled]:
    """All ways to train that `optimizer` and `checkpointing` leave open, as `settle` tries them. keys: further ones of
    `training_memory`.
    """
    assert optimizer in ("auto", *OPTIMIZERS) and checkpointing in ("auto", "on", "off"), (optimizer, checkpointing)
    if method != "full":
        optimizers: tuple[str, ...] = ("fp32",)
    else:
        optimizers = OPTIMIZERS if optimizer == "auto" else (optimizer,)
    found = []
    for kept in optimizers:
        for switch in {"auto": (False, True), "on": (True,), "off": (False,)}[checkpointing]:
            memory = training_memory(shape, method, kept, tokens, lora_r, switch, **keys)
            found.append(Settled(kept, switch, memory, free_bytes is None or memory.total <= USABLE * free_bytes))
    return found


def run_folder_bytes(shape: Shape, method: str, optimizer: str, lora_r: int = 6) -> int:
    """The most a run folder holds: the best weights, and two checkpoints, as the older goes once the newer is whole.

    A checkpoint is the weights and Adam's moments, in the dtypes they are trained in.
    """
    if method != "full":
        best, weights, states = (factor * shape.lora_parameters(lora_r) for factor in (4, 4, 8))
        return best + 2 * (weights + states)
    weights = shape.parameters * (2 if optimizer == "bf16-stochastic" else 4)
    return 2 * shape.parameters + 2 * (weights + _moments_bytes(shape, optimizer))


def flops(method: str, checkpointing: bool) -> int:
    return (6 if method == "full" else 4) + (2 if checkpointing else 0)


def _base_bytes(shape: Shape, method: str) -> int:
    """The base model as it is loaded to be scored or to carry adapters."""
    saved = 2 - NF4_BYTES if method == "qlora" else 0
    return 2 * shape.parameters - int(saved * shape.linear_parameters)


def _moments_bytes(shape: Shape, optimizer: str) -> int:
    """Adam's two moments of all parameters."""
    if optimizer == "fp32":
        return 8 * shape.parameters
    # transformers has bitsandbytes keep those of the embeddings in fp32; torchao knows no such exception.
    fp32 = shape.vocab * shape.hidden_size if optimizer == "fp32-8bit" else 0
    return 8 * fp32 + int(STATE_8BIT_BYTES * (shape.parameters - fp32))


def _dequantised(shape: Shape, method: str) -> int:
    """One layer's NF4 weights as bf16, which exist while they multiply."""
    return 2 * shape.linear_parameters // shape.layers if method == "qlora" else 0
