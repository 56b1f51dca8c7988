"""Will it fit, how long will it take, how much disk does it need: answered before anything is downloaded.

Everything here is arithmetic over a model's shape. The memory formulas follow what autograd keeps, tensor by tensor;
tests hold them against what torch saves for small models. Against peaks on one H200 (8B Llama shape, GiB):

                                                            computed   measured
    LoRA, compiled, rows of 14,592 tokens                      78.8       77.9
    the same with dropout .05                                 111.0      109.0   (fitted at two other lengths)
    LoRA, compiled, rows of 4,480 tokens                       34.5       34.3
    LoRA, compiled, one item a row of up to 1,408 tokens       21.1       21.3
    LoRA in the usual layers, one item a step                  27.1       27.1   (1,560 tokens, fitted here and
    QLoRA in the usual layers, one item a step                 17.9       17.8    taken for the next row)
    scoring, rows of 16,384 tokens                             16.8       16.8

Times are scaled from steps that were timed on that machine: estimates.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from src.cli import UserError
from src.recipes import ORPO, Backbone, Recipe, backbones

if TYPE_CHECKING:
    from rich.table import Table

GIB = 2**30
GB = 10**9

USABLE = 0.92
"""Share of the free memory that a plan may fill; the rest goes to fragments and to what torch holds beside tensors."""
LONGEST = 1.5
"""The longest item against the mean one, before the real lengths are known."""
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
CARDS = (24, 48, 80, 141)
"""GiB of the usual cards, the columns of the table where there is no GPU."""


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
            model_type=str(row.expect.get("model_type", "llama")),
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
) -> Memory:
    """Memory of a training step over `tokens` tokens in `sequences` sequences of equal length, computed in bf16.

    lora, qlora             base in bf16, or in NF4 but embeddings and head; adapters, gradients and moments in fp32
    full, fp32              weights, gradients and moments 4 + 4 + 8 bytes, and autocast's bf16 copy of each matrix
    full, fp32-8bit         the same with moments in 8 bits, but the embeddings'
    full, bf16-stochastic   weights and gradients in bf16, moments in 8 bits
    Adam's step is taken to be fused or tensor by tensor; a foreach step needs one more copy of all trained weights.
    attention: "sdpa", "eager", or "tree" in compiled layers; by default the family's. sequences: also those whose
    answers are projected. dropout: whether the adapters have any.
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
    # bf16 logits, their fp32 copy, and the log-softmax that becomes the gradient.
    logits = sequences * ANSWER_TOKENS * shape.vocab * (2 + 4 + 4)
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


def download_bytes(recipe: Recipe) -> int | None:
    """Size of the download of the base model: 0 if it is a folder or whole in the hub's cache, None if unknown."""
    if Path(recipe.model_id).is_dir() or is_cached(recipe.model_id, recipe.revision):
        return 0
    facts = backbones().get(recipe.backbone)
    return int(facts.download_bytes) if facts is not None and facts.model_id == recipe.model_id else None


def is_cached(model_id: str, revision: str | None = None) -> bool:
    """Whether the hub's cache on this machine holds every weight file of `model_id`; the network is not asked."""
    if _cached_file(model_id, "model.safetensors", revision):
        return True
    index = _cached_file(model_id, "model.safetensors.index.json", revision)
    if index is None:
        return False
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all(_cached_file(model_id, shard, revision) for shard in shards)


def check_disk(path: str | Path, needed_bytes: float, what: str) -> None:
    """UserError when the disk of `path` (which need not exist yet) has less than `needed_bytes` free for `what`."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise UserError(
            f"{what} needs {needed_bytes / GB:.1f} GB, but the disk of {path} has {free / GB:.1f} GB free. "
            "Free some space, or choose another disk: --save_dir for runs, the variable HF_HOME for downloads."
        )


@dataclass(frozen=True)
class Gpu:
    name: str
    total_bytes: int
    free_bytes: int


REFERENCE = Gpu("NVIDIA H200", 141 * GIB, 141 * GIB)


def gpus() -> list[Gpu]:
    """The GPUs that this process may use; none on a CPU machine.

    A process of its own asks, for whoever asks holds memory on each of them until it ends, and the runs would find GPUs
    in exclusive mode taken.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_ask_torch).result()


def _ask_torch() -> list[Gpu]:
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append(Gpu(torch.cuda.get_device_name(index), total, free))
    return found


# Dense bf16 TFLOP/s from the makers' data sheets; the first name found in the device's name counts.
PEAKS = {
    "B200": 2250,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H200": 989,
    "GH200": 989,
    "H100": 989,
    "H20": 148,
    "A100": 312,
    "A40": 150,
    "A30": 165,
    "A10": 125,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 6000 Ada": 364,
    "RTX A6000": 155,
    "RTX 5090": 210,
    "RTX 4090": 165,
    "RTX 3090": 71,
}

# Items a second on one H200 by (method, checkpointing): 8B Llama shape, one item a step, as of 1,133 tokens. Adapters:
# 8,834 tokens a second in compiled rows of one item, the same for NF4 dequantised once. All parameters: in the usual
# layers. Where a pair was not timed, the FLOP rate of its method's other one is taken.
MEASURED_TOKENS = 1133
MEASURED_LINEAR = 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336)
MEASURED = {("qlora", False): 7.80, ("lora", False): 7.80, ("full", True): 2.06}
# One order of the test split, whose items share prompt and dialogues: 156,000 tokens a second, each item's whole.
MEASURED_SCORING = 138


def peak_tflops(device: str) -> float | None:
    """Dense bf16 peak of the GPU called `device`, None for one that is not in the table."""
    for name, peak in PEAKS.items():
        if re.search(rf"\b{re.escape(name)}\b", device, re.IGNORECASE):
            return peak
    return None


def training_seconds(
    shape: Shape, recipe: Recipe, items: int, tokens_per_item: float, device: str, checkpointing: bool
) -> float | None:
    """Estimate of all epochs over `items` items on the GPU called `device`, None for one that is not known.

    FLOPs per linear weight and token: 2 forward, 2 backward through it, 2 for its own gradient, 2 to recompute. The
    rate is the one measured on an H200, one item a step, scaled by the bf16 peak. Evaluations are left out.
    """
    peak, reference = peak_tflops(device), peak_tflops(REFERENCE.name)
    if peak is None or reference is None:
        return None
    timed = (recipe.method, checkpointing)
    if timed not in MEASURED:
        timed = (recipe.method, not checkpointing)
    rate = MEASURED[timed] * MEASURED_TOKENS * MEASURED_LINEAR * flops(*timed) * peak / reference
    work = items * recipe.epoch * tokens_per_item * shape.linear_parameters * flops(recipe.method, checkpointing)
    return work / rate


def scoring_seconds(shape: Shape, items: int, tokens_per_item: float, device: str) -> float | None:
    """Estimate of scoring `items` items in one order, beginnings shared; None for a GPU that is not known."""
    peak, reference = peak_tflops(device), peak_tflops(REFERENCE.name)
    if peak is None or reference is None:
        return None
    rate = MEASURED_SCORING * MEASURED_TOKENS * MEASURED_LINEAR * peak / reference
    return items * tokens_per_item * shape.linear_parameters / rate


@dataclass(frozen=True)
class PlanRow:
    """One run before it starts; None is what cannot be known yet."""

    run: str
    model_id: str
    licence: str | None
    commercial: bool | None
    gated: bool | None
    method: str
    words: str
    """The method as the table shows it."""
    download: int | None
    """Bytes."""
    weights: int | None
    """Bytes of the base model as it is loaded for scoring, which needs little more."""
    settled: Settled | None
    """Training on the GPU at hand, or on one H200 where there is none."""
    cards: Mapping[str, Settled]
    """How the run would be trained, by card."""
    disk: int | None
    """Bytes of the run folder at most."""
    seconds: float | None
    """Training, an evaluation on dev after each epoch, and scoring the test set once."""
    note: str


def plan_rows(
    recipes: Sequence[Recipe], items: Mapping[str, int], mean_tokens: float = MEASURED_TOKENS, gpu: Gpu | None = None
) -> list[PlanRow]:
    """What each recipe needs, for `items` items of each split, on `gpu`; without one on an H200 and by size of card."""
    here = gpu or REFERENCE
    sizes = {here.name: here.free_bytes} if gpu else {str(size): size * GIB for size in CARDS}
    return [_row(recipe, items, mean_tokens, here, sizes) for recipe in recipes]


def _row(recipe: Recipe, items: Mapping[str, int], mean_tokens: float, here: Gpu, sizes: Mapping[str, int]) -> PlanRow:
    shape, facts, place = _known(recipe)
    # Preference pairs have wrong answers, too; the prompt counts once.
    wrong = 0 if recipe.objective != ORPO else 2 if recipe.orpo_pairs == "both" else 1
    trained = mean_tokens + wrong * ANSWER_TOKENS
    longest = round(LONGEST * mean_tokens) + wrong * ANSWER_TOKENS
    settled = weights = disk = seconds = None
    cards: dict[str, Settled] = {}
    if shape is not None:
        # The least that training takes: one item a row. Where there is more, rows are longer.
        choices = recipe.optimizer, recipe.gradient_checkpointing, longest, recipe.lora_r
        keys: dict[str, Any] = {"attention": "tree", "dropout": recipe.lora_dropout > 0, "sequences": 1 + wrong}
        settled = settle(shape, recipe.method, *choices, here.free_bytes, **keys)
        cards = {name: settle(shape, recipe.method, *choices, size, **keys) for name, size in sizes.items()}
        weights = scoring_memory(shape, recipe.method, longest).weights
        disk = run_folder_bytes(shape, recipe.method, settled.optimizer, recipe.lora_r)
        # The time of a miniature goes into launching, which the arithmetic knows nothing of.
        if "train" in items and place != "miniature":
            training = training_seconds(shape, recipe, items["train"], trained, here.name, settled.checkpointing)
            scored = items.get("dev", 0) * recipe.epoch + items.get("test", 0)
            reading = scoring_seconds(shape, scored, mean_tokens, here.name)
            seconds = None if training is None or reading is None else training + reading
    return PlanRow(
        run=recipe.name,
        model_id=recipe.model_id,
        licence=recipe.licence or (facts.licence if facts else None),
        commercial=facts.commercial if facts else None,
        gated=facts.gated if facts else None,
        method=recipe.method,
        words=recipe.method_words,
        download=download_bytes(recipe),
        weights=weights,
        settled=settled,
        cards=cards,
        disk=disk,
        seconds=seconds,
        note="; ".join(text for text in (place, facts.note if facts else "") if text),
    )


def plan_table(rows: Sequence[PlanRow]) -> "Table":
    """The plan as a table to print, with what each base model is below it; what cannot be known is a question mark."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    cards = next((list(row.cards) for row in rows if row.cards), [])
    by_size = cards == [str(size) for size in CARDS]
    place = cards[0] if cards and not by_size else REFERENCE.name
    table = Table(title=f"Plan for one {escape(place)}, estimated", title_justify="left", title_style="bold")
    # Narrow enough for 80 columns.
    table.box, table.collapse_padding, table.pad_edge, table.show_edge = box.SIMPLE_HEAD, True, False, False
    table.add_column("run", overflow="fold", min_width=8)
    table.add_column("method", no_wrap=True)
    for name in ("fetch\nGB", "base\nGiB", "train\nGiB", "disk\nGB", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in cards:
        table.add_column(f"{name}\nGiB" if by_size else "fits", min_width=4)
    for row in rows:
        table.add_row(
            f"[bold]{escape(row.run)}[/]",
            row.words,
            _number(row.download, GB),
            _number(row.weights, GIB),
            _number(row.settled.memory.total if row.settled else None, GIB),
            _number(row.disk, GB),
            _number(row.seconds, 3600),
            *(_way(row.method, row.cards[name]) if row.cards else "?" for name in cards),
        )
    table.add_section()
    download = _sum(list({row.model_id: row.download for row in rows}.values()))
    disk, seconds = _sum([row.disk for row in rows]), _sum([row.seconds for row in rows])
    table.add_row("all", "", _number(download, GB), "", "", _number(disk, GB), _number(seconds, 3600))

    lines = ["fetch: left to download; base: the weights when scoring; train: peak of GPU memory"]
    lines.append("disk: best weights and two checkpoints; the older goes when the newer is whole")
    lines.append("hours: one item after the other; ckpt: with gradient checkpointing")
    if any(row.method == "full" for row in rows):
        lines.append("full by its optimizer: fp32, 8-bit (fp32-8bit), bf16 (bf16-stochastic)")
    if by_size:
        lines.append(f"no GPU here: train, disk, hours are those of one {place}; right: cards by size")
    for row in rows:
        facts = [escape(row.model_id), f"licence {escape(row.licence or '?')}"]
        facts += ["[bold red]no commercial use[/]"] if row.commercial is False else []
        facts += ["[bold red]gated[/]"] if row.gated else []
        facts += [escape(row.note)] if row.note else []
        lines.append(f"[bold]{escape(row.run)}[/]: {', '.join(facts)}")
    page = Table.grid()
    page.add_row(table)
    page.add_row("")
    page.add_row("\n".join(lines))
    return page


def _sum(values: Sequence[float | None]) -> float | None:
    """None when one of the values is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _number(value: float | None, unit: int) -> str:
    """`value` in units of `unit`, with one decimal."""
    if value is None:
        return "?"
    return "0" if value == 0 else f"{value / unit:.1f}" if value >= unit / 20 else "<0.1"


def _way(method: str, way: Settled) -> str:
    if not way.fits:
        return "[red]no[/]"
    short = {"fp32": "fp32", "fp32-8bit": "8-bit", "bf16-stochastic": "bf16"}
    first = short[way.optimizer] if method == "full" else "yes"
    return f"[green]{first}{' ckpt' if way.checkpointing else ''}[/]"


def _known(recipe: Recipe) -> tuple[Shape | None, Backbone | None, str]:
    """(shape, row of the table of backbones, kind of folder) of the base model, as far as known without a download."""
    facts = backbones().get(recipe.backbone)
    folder = Path(recipe.model_id)
    if folder.is_dir():
        shape = _shape_in(folder / "config.json")
        # A folder under a backbone's short name but of another size is its miniature, and not under its licence.
        same = facts is not None and shape is not None and abs(shape.parameters / facts.parameters - 1) < 0.05
        small = facts is not None and shape is not None and not same
        return shape, facts if same else None, "miniature" if small or "miniature" in folder.parts else "local folder"
    if facts is not None and facts.model_id == recipe.model_id:
        return Shape.of_backbone(facts), facts, ""
    config = _cached_file(recipe.model_id, "config.json", recipe.revision)
    return (_shape_in(config) if config else None), None, ""


def _shape_in(config: Path) -> Shape | None:
    try:
        return Shape.of_json(json.loads(config.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # loading the model will say what is wrong with it
        return None


def _cached_file(model_id: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model_id, name, revision=revision)
    except errors.HFValidationError:  # neither a folder nor a hub id
        return None
    return Path(found) if isinstance(found, str) else None


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


def flops(method: str, checkpointing: bool) -> int:
    return (6 if method == "full" else 4) + (2 if checkpointing else 0)
