"""How much memory a step of training or scoring takes, and which memory plan fits on a GPU.

The formulas count the tensors that autograd keeps; tests compare them with those that torch saves for small models.
Compared with peaks on one H200 (8B Llama shape, GiB):

                                                            computed   measured
    LoRA, compiled, rows of 14,592 tokens                      78.8       77.9
    the same with dropout .05                                 111.0      109.0   (fitted at two other lengths)
    LoRA, compiled, rows of 4,480 tokens                       34.5       34.3
    LoRA, compiled, one item a row of up to 1,408 tokens       21.1       21.3
    LoRA in the standard layers, one item a step               27.1       27.1   (1,560 tokens, fitted here and
    QLoRA in the standard layers, one item a step              17.9       17.8    taken for the next line)
    scoring, rows of 16,384 tokens                             16.8       16.8
"""

from dataclasses import dataclass, replace

from src.model.recipes import BF16_STOCHASTIC, FP32, FP32_8BIT, METHODS, OPTIMIZERS
from src.model.shapes import Shape

USABLE = 0.92
"""Share of the free memory that a plan may fill; the rest is for fragmentation and torch's memory beside tensors."""
ANSWER_TOKENS = 40
"""Positions of an item that the head projects in training: a letter and a sentence."""
MASK_BYTES = 1
"""Bytes that dropout keeps for each value: a bool on CUDA (a float on the CPU)."""
NF4_BYTES = 0.5 + (8 / 64 + 32 / (64 * 256)) / 8
"""A parameter in NF4: 4 bits, 8 bits per block of 64, and 32 bits per 256 blocks (double quantisation)."""
COMPILED_DROPOUT_BYTES = 1.9
"""Bytes that a compiled layer keeps for the dropout of one value, measured on one H200 at 8,192 and 10,704 tokens."""
SHARDED = (FP32, BF16_STOCHASTIC)
"""Optimizers of sharded parameters: the kernels of fp32-8bit (bitsandbytes) take whole tensors only."""
STATE_8BIT_BYTES = 2 * (1 + 4 / 256)
"""Adam's two moments in 8 bits with an fp32 scale per block of 256."""


@dataclass(frozen=True)
class Workload:
    """The properties of a training step that decide how much memory it takes.

    method            as in a recipe, and so lora_r
    tokens            of all sequences together
    sequences         how many there are, taken to be equally long
    attention         "sdpa", "eager", or "tree" in compiled layers; None for the standard one of the model's family
    dropout           whether the adapters have any
    selective         in compiled layers: whether the backward pass computes again what takes little time (outputs of
                      norms, activation functions and dropout), and only outputs of products and of attention are
                      kept. It has its name from Korthikanti et al. 2022 (arXiv 2205.05198), who recompute attention
    repeated          in compiled layers: whether keys and values are repeated for all heads that share them
    logit_positions   positions whose logits are in memory at once; None for `ANSWER_TOKENS` of each sequence
    cards             with method full: how many cards weights, gradients and moments are sharded over (FSDP2)
    """

    method: str
    lora_r: int
    tokens: int
    sequences: int = 1
    attention: str | None = None
    dropout: bool = True
    logit_positions: int | None = None
    selective: bool = False
    repeated: bool = False
    cards: int = 1


@dataclass(frozen=True)
class Memory:
    """Bytes on the GPU, or on each one, at the peak of a step. gathered: of what is sharded, but whole at the peak."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    gathered: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.gathered


@dataclass(frozen=True)
class MemoryPlan:
    """The options that decide a training's memory, and whether it fits."""

    optimizer: str
    checkpointing: bool
    memory: Memory
    fits: bool
    dequantised: bool = False
    """For qlora: NF4 weights are converted to bf16 once. The numbers are the same, and no pass has to unpack them."""
    selective: bool = False
    """As in `Workload`."""
    spare: int = 0
    """With checkpointing: tokens times layers for whose activations there is room none the less."""
    cards: int = 1
    """As in `Workload`: the bytes are those of each card."""


def training_memory(shape: Shape, work: Workload, optimizer: str, checkpointing: bool) -> Memory:
    """Memory of a training step, computed in bf16.

    lora, qlora             base in bf16, or in NF4 but embeddings and head; adapters, gradients and moments in fp32
    full, fp32              weights, gradients and moments 4 + 4 + 8 bytes, and autocast's bf16 copy of each matrix
    full, fp32-8bit         the same with moments in 8 bits, but the embeddings'
    full, bf16-stochastic   weights and gradients in bf16, moments in 8 bits
    sharded                 an even part of these, without autocast's copy, and what is gathered (`gathered_bytes`)
    Adam's step is assumed to be fused or tensor by tensor; a foreach step needs one more copy of all trained weights.
    """
    assert work.method in METHODS and optimizer in OPTIMIZERS, (work.method, optimizer)
    gathered = 0
    if work.method != "full":
        adapters = shape.lora_parameters(work.lora_r)
        weights = 4 * adapters + _base_bytes(shape, work.method)
        gradients, states = 4 * adapters, 8 * adapters
    elif work.cards > 1:
        each = 2 if optimizer == BF16_STOCHASTIC else 4
        weights = gradients = each * shape.parameters // work.cards
        states = moments_bytes(shape, optimizer) // work.cards
    elif optimizer == BF16_STOCHASTIC:
        weights, gradients, states = 2 * shape.parameters, 2 * shape.parameters, moments_bytes(shape, optimizer)
    else:
        copies = 2 * (shape.linear_parameters + shape.vocab * shape.hidden_size)
        weights, gradients = 4 * shape.parameters + copies, 4 * shape.parameters
        states = moments_bytes(shape, optimizer)
    layer = layer_activations(shape, work, optimizer)
    if checkpointing:
        # While a compiled layer is recomputed, its activations, their gradients and the intermediate values are all in
        # memory.
        kept = (3 if work.attention == "tree" else 1) * layer + checkpoint_bytes(shape, work, optimizer)
    else:
        kept = shape.layers * layer
    activations = kept + _unpacked_layer_bytes(shape, work.method)
    positions = work.sequences * ANSWER_TOKENS if work.logit_positions is None else work.logit_positions
    # All in fp32: the log-softmax, the gradient at the chosen positions, and the gradient of the logits.
    logits = positions * shape.vocab * (4 + 4 + 4)
    if work.cards > 1:
        gathered = gathered_bytes(shape, work.cards, activations + logits)
    return Memory(weights, gradients, states, activations, logits, gathered)


def gathered_bytes(shape: Shape, cards: int, activations: int) -> int:
    """Bytes of sharded parameters and gradients that are whole on a card at the peak of a step. activations: bytes that
    are there while the layers' backward passes run.

    Embeddings, last norm and head are whole in bf16 from the forward pass to the end of the backward pass, and so are
    their gradients in the end. Of the layers two are whole in bf16, each with the buffer that it was gathered in, and
    one has its gradients whole in bf16, and in fp32 in the buffer that they are scattered from. When the layers are
    done, embeddings and head have their gradients in such a buffer, and their sum.
    """
    outside = shape.embedding_parameters + shape.hidden_size
    layer = (shape.parameters - outside) // shape.layers
    in_layers, in_the_end = (2 * (2 + 2) + 2 + 4) * layer, (4 + 4 // cards) * outside
    return 4 * outside + max(in_layers, in_the_end - activations)


def whole_gradients_fit(shape: Shape, plan: "MemoryPlan", free_bytes: int | None) -> bool:
    """Whether gradients of sharded parameters may stay whole on each card, in fp32, until the last row of a step. They
    are scattered once then, instead of after each row.
    """
    return free_bytes is None or plan.memory.total + 4 * shape.parameters <= USABLE * free_bytes


def layer_activations(shape: Shape, work: Workload, optimizer: str) -> int:
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
    Compiled ("tree"), all methods keep the same, and casts are recomputed: the residual stream twice, the norms'
    outputs, attention's output 2h each, q, k and v, and 2i each of gate, up and their product. Selective recomputation
    keeps the residual stream twice, attention's output, the inputs of norms behind products, q, k and v, gate and up.
    """
    attention = work.attention or shape.family.attention
    h, i, q, kv = shape.hidden_size, shape.intermediate_size, shape.query_size, shape.kv_size
    norms, full = shape.family.norms, work.method == "full"
    if attention == "tree":
        wide = _stream_bytes(work, optimizer)
        kv = q if work.repeated else kv
        if work.selective:
            return ((norms + 1) * h * wide + 2 * (q + 2 * kv + 2 * i)) * work.tokens
        each = (norms + 3) * h * wide + 2 * (q + 2 * kv + 3 * i)
        each += int(COMPILED_DROPOUT_BYTES * (5 * h + q + i)) if not full and work.dropout else 0
        return each * work.tokens
    each = 6 * i
    if attention == "eager":
        each += 6 * q + (2 * q if full else 0)
        each += shape.heads * (work.tokens // work.sequences) * (8 if shape.family.softcap else 6)
    else:
        each += 4 * q + 4 * (kv if work.sequences == 1 else q)
    if full:
        each += 8 * norms * h + 2 * i + (10 * h if _stream_bytes(work, optimizer) == 4 else 0)
    else:
        each += 4 * norms * h + (2 + MASK_BYTES) * (5 * h + q + i)
    return each * work.tokens


def checkpoint_bytes(shape: Shape, work: Workload, optimizer: str) -> int:
    """Bytes that checkpointing keeps: each layer's input."""
    return shape.layers * shape.hidden_size * _stream_bytes(work, optimizer) * work.tokens


def _stream_bytes(work: Workload, optimizer: str) -> int:
    """Bytes of a value between layers: fp32 where the weights are, and are not gathered in bf16."""
    return 4 if in_fp32(work.method, optimizer) and work.cards == 1 else 2


def scoring_memory(shape: Shape, method: str, tokens: int, attention: str | None = None, sequences: int = 1) -> Memory:
    """Memory of scoring `tokens` tokens in `sequences` sequences: the weights and the widest moment of one layer."""
    attention = attention or shape.family.attention
    activations = 2 * (4 * shape.hidden_size + 3 * shape.intermediate_size) * tokens
    if attention == "eager":
        activations = max(activations, 8 * shape.heads * tokens * (tokens // sequences))
    activations += _unpacked_layer_bytes(shape, method)
    return Memory(_base_bytes(shape, method), 0, 0, activations, sequences * shape.vocab * (2 + 4))


def choose_memory_plan(
    shape: Shape, work: Workload, optimizer: str, checkpointing: str, free_bytes: int | None
) -> MemoryPlan:
    """The first of `memory_options` that fits into 92 % of `free_bytes`; the last one, with `fits` False, when none
    does.
    """
    options = memory_options(shape, work, optimizer, checkpointing, free_bytes)
    return next((option for option in options if option.fits), options[-1])


def memory_options(
    shape: Shape, work: Workload, optimizer: str, checkpointing: str, free_bytes: int | None
) -> list[MemoryPlan]:
    """All memory plans that are possible with the recipe's `optimizer` and `checkpointing`.

    "auto" stands for fp32, fp32-8bit (not of sharded parameters) and bf16-stochastic in this order, each without
    recomputation, in compiled layers with a selective one, and then with checkpointing. Only method full has a choice
    of optimizer. free_bytes: None on a CPU, where everything fits.
    """
    assert optimizer in ("auto", *OPTIMIZERS) and checkpointing in ("auto", "on", "off"), (optimizer, checkpointing)
    optimizers: tuple[str, ...] = (FP32,)
    if work.method == "full":
        possible = OPTIMIZERS if work.cards == 1 else SHARDED
        optimizers = possible if optimizer == "auto" else (optimizer,)
    switches = {"auto": (False, True), "on": (True,), "off": (False,)}[checkpointing]
    # (checkpointing, selective recomputation)
    ways = [(switch, selective) for switch in switches for selective in (False, True)]
    if work.attention != "tree":
        ways = [(switch, False) for switch in switches]
    elif checkpointing == "auto":
        ways.remove((True, False))
    found = []
    for kept in optimizers:
        for switch, selective in ways:
            done = replace(work, selective=selective)
            memory = training_memory(shape, done, kept, switch)
            fits = free_bytes is None or memory.total <= USABLE * free_bytes
            spare = 0
            if fits and switch and checkpointing == "auto" and free_bytes and work.attention == "tree":
                spare = spare_activations(shape, done, kept, int(USABLE * free_bytes) - memory.total)
            plan = MemoryPlan(kept, switch, memory, fits, selective=selective, spare=spare, cards=work.cards)
            found.append(plan)
    return found


def spare_activations(shape: Shape, work: Workload, optimizer: str, room: int) -> int:
    """Tokens times layers whose activations fit into `room` bytes beside the inputs that checkpointing keeps."""
    one = replace(work, tokens=1)
    each = layer_activations(shape, one, optimizer) - checkpoint_bytes(shape, one, optimizer) // shape.layers
    return room // each


def recomputed(plan: MemoryPlan, shape: Shape, tokens: float) -> float:
    """The share of the layers that checkpointing computes again in a row of `tokens` tokens."""
    return max(0.0, 1 - (plan.spare // tokens) / shape.layers) if plan.checkpointing else 0.0


def run_folder_bytes(shape: Shape, method: str, optimizer: str, lora_r: int = 6) -> int:
    """The most a run folder holds: the best weights and two checkpoints, since the older one is deleted once the newer
    is whole.

    A checkpoint is the weights and Adam's moments, in the dtypes they are trained in.
    """
    best = best_weights_bytes(shape, method, lora_r)
    if method != "full":
        weights, states = (factor * shape.lora_parameters(lora_r) for factor in (4, 8))
        return best + 2 * (weights + states)
    weights = shape.parameters * (2 if optimizer == BF16_STOCHASTIC else 4)
    return best + 2 * (weights + moments_bytes(shape, optimizer))


def best_weights_bytes(shape: Shape, method: str, lora_r: int = 6) -> int:
    """What is left of a run folder without its checkpoints: the weights that the run keeps."""
    return 2 * shape.parameters if method == "full" else 4 * shape.lora_parameters(lora_r)


def in_fp32(method: str, optimizer: str) -> bool:
    """Whether the trained model's weights are fp32, and computed with in bf16 by autocast."""
    return method == "full" and optimizer != BF16_STOCHASTIC


def moments_bytes(shape: Shape, optimizer: str) -> int:
    """Adam's two moments of all parameters."""
    if optimizer == FP32:
        return 8 * shape.parameters
    # transformers makes bitsandbytes keep the embeddings' moments in fp32; torchao has no such exception.
    fp32 = shape.vocab * shape.hidden_size if optimizer == FP32_8BIT else 0
    return 8 * fp32 + int(STATE_8BIT_BYTES * (shape.parameters - fp32))


def _base_bytes(shape: Shape, method: str) -> int:
    """Bytes of the base model as loaded for scoring or for adapters."""
    saved = 2 - NF4_BYTES if method == "qlora" else 0
    return 2 * shape.parameters - int(saved * shape.linear_parameters)


def _unpacked_layer_bytes(shape: Shape, method: str) -> int:
    """Bytes of one layer's NF4 weights unpacked to bf16, which exist while the layer is computed."""
    return 2 * shape.linear_parameters // shape.layers if method == "qlora" else 0
