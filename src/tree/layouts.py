"""How the sequences of a run are laid out on the device at hand: the kind of rows, and how many tokens they hold.

On a GPU rows are as long as memory allows. On a CPU, where a tree is computed by blocks (src/tree/branches.py), the
length is the one that takes the fewest multiplications, and what shares too little is read side by side.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence

import torch

from src.model.devices import free_bytes, peak_tflops
from src.model.memory import MemoryPlan, Workload, choose_memory_plan, memory_options, recomputed, scoring_memory
from src.model.recipes import OPTIMIZERS, Recipe
from src.model.shapes import Shape, flops
from src.prompt.encode import Example
from src.tree import compiled as layers
from src.tree.branches import pairs
from src.tree.compiler import SPEEDUP
from src.tree.prefix import BLOCK
from src.tree.rows import WORTHWHILE, Kind, Layout, filled_tokens, lengths_for, sizes, trees, whole_tiles

CPU_TREE, CPU_BATCH = 512, 1024
"""Tokens on a CPU of the shortest rows of a tree (about a dialogue), and of a padded batch: as much as stays in the
caches. Batches of 1,024 tokens took 3, 15 and 17 % less time than of 2,048 in training three of the miniature's
backbones.
"""
CPU_TREES = (CPU_TREE, 768, 1024, 2048)
"""Tokens of a tree's rows to choose from on a CPU."""
CPU_SEEN = 48
"""Prompts by which rows for scoring are chosen on a CPU: laying out all of them several times would take seconds."""
CPU_MASKED = 1.3
"""How many times longer a CPU takes for attention with a mask than for causal attention without: 1.1 at 351 tokens, 1.3
to 1.5 at 640 and 1,024 (torch 2.13, one core).
"""
CPU_ELEMENTWISE = 1150
"""What else a layer does with a token on a CPU (norms, activations, sums), in the time of so many multiplications and
additions for each feature of the hidden state. By this count two of the miniature's backbones read 200 test items in
.63, .46 and .42 of the padded batches' time as a tree in rows of 512, 1,024 and 2,048 tokens; .78, .47 and .47 were
measured of one, .76, .42 and .34 of the other.
"""
CPU_SOFTCAPPED = 1.4
"""How many times longer attention takes whose logits are capped, which has no fused kernel. By this count .66, .49 and
.45 of the padded batches' time; .62, .45 and .35 were measured.
"""
CPU_SURE = 1.1
"""How many times longer padded batches have to take, by that count, and how many times more tokens they have to hold,
before a CPU computes trees instead.
"""
GPU_ROW, GPU_SCORING = 32768, 32768
"""The most tokens of a row on a GPU: more than enough to keep it busy."""
ROOM = 0.6
"""Share of the free memory that a run may take with NF4 weights dequantised; on a fuller card they stay as they are."""
UNPACKING = 1.05
"""About how many times longer a step takes when it unpacks NF4 weights."""
SELECTIVE = 1.03
"""About how many times longer a step takes with selective recomputation, by the bytes that it moves."""
COMPILING_SECONDS = 12
"""Seconds that compiling for another length of rows takes, roughly: 8 to 15 s were seen on the host of an H200. Layers
that are compiled for all lengths take no time for another one: 72 steps of 8 lengths took .68 to .86 s each, by their
tokens alone, the first of a length like the others (H200).
"""
CAPTURED_ROW = 4096
"""Tokens of a row up to which steps are captured as CUDA graphs: longer rows keep a GPU busy without it."""
CAPTURING_SECONDS = 0.16
"""Seconds for each layer that the capture of one more kind of step takes, with the steps before it and the one that it
is compared with: 3.8 s and more were seen on one H100 for 32 layers, 0.5 s of them (64 in NF4: 3.8 s) for the capture
alone.
"""
SEEN = 1024
"""Items of the first steps that the lengths of rows are derived from."""
GroupedSequences = tuple[Sequence[Sequence[int]], Sequence[int] | None]
"""Sequences of an optimizer step, and the group of each where some are to stay in one row."""


@dataclasses.dataclass(frozen=True)
class TrainingSteps:
    """The optimizer steps of a training, as a layout is chosen for them.

    steps             indices of the examples in each optimizer step of an epoch
    logit_positions   number of items in a row → positions whose logits are in memory at once
    cards             how many cards all parameters are sharded over
    """

    recipe: Recipe
    shape: Shape
    examples: Sequence[Example]
    steps: Sequence[Sequence[int]]
    pad_id: int
    logit_positions: Callable[[int], int]
    cards: int = 1

    @property
    def longest(self) -> int:
        """Tokens of the longest item, its answers after one prompt."""
        return max(one.tokens for one in self.examples)

    @property
    def answers(self) -> int:
        """Most sequences of an item."""
        return max(len(one.sequences) for one in self.examples)


@dataclasses.dataclass(frozen=True)
class TrainingLayout:
    """The layout and memory plan of a training.

    sharing_factor   input tokens per computed token
    memory           how the run is kept in memory
    """

    layout: Layout
    sharing_factor: float
    memory: MemoryPlan


def training_layout(training: TrainingSteps, device: torch.device, compiled: bool) -> TrainingLayout:
    """The layout of a training's steps on `device`, and how it is kept in memory.

    compiled: whether layers are compiled for rows (`compiled.make_ready`). Then the layout is the one that fits with
    the fewest multiplications, with the first optimizer that fits.
    """
    some = _first_steps(training.examples, training.steps)
    return _compiled_layout(training, some, device) if compiled else _standard_layout(training, some, device)


def _compiled_layout(training: TrainingSteps, some: list[GroupedSequences], device: torch.device) -> TrainingLayout:
    recipe, shape, pad_id, longest = training.recipe, training.shape, training.pad_id, training.longest
    tokens_in = _input_tokens(some)
    whole = [_sizes(step, Layout("tree", max(longest, GPU_ROW), pad_id)) for step in some]
    worthwhile = tokens_in / sum(map(sum, whole)) >= WORTHWHILE
    shares = recipe.share_prefixes == "on" or (recipe.share_prefixes == "auto" and worthwhile)
    kind: Kind = "tree" if shares else "single"
    # What another length costs, as a share of the first steps in the whole training.
    part = len(some) / max(1, recipe.epoch) / len(training.steps)
    found: list[tuple[tuple[float, ...], Layout, MemoryPlan]] = []
    for budget in row_budgets(max(map(max, whole)) if shares else longest, longest):
        rows = [size for step in some for size in _sizes(step, Layout(kind, budget, pad_id))]
        lengths, once = _training_lengths(training, [*rows, longest], device, part)
        # Rows are filled evenly, so the longest may be well below what was allowed.
        tokens, computed = lengths[-1], filled_tokens(rows, lengths) + once
        items = len(training.steps[0]) * tokens // max(map(sum, whole)) + 1 if shares else 1
        places, repeated = training.logit_positions(items), layers.repeats_keys(device, shape.head_dim)
        work = Workload(
            *(recipe.method, recipe.lora_r, tokens, 1, "tree", recipe.lora_dropout > 0, places),
            repeated=repeated,
            cards=training.cards,
        )
        for option in row_options(recipe, shape, work, free_bytes(device)):
            slower = UNPACKING if recipe.method == "qlora" and not option.dequantised else 1.0
            slower *= SELECTIVE if option.selective else 1.0
            again = statistics.fmean(recomputed(option, shape, size) for size in rows)
            cost = computed * (flops(recipe.method, False) + 2 * again) * slower
            order = (0, OPTIMIZERS.index(option.optimizer), cost) if option.fits else (1, option.memory.total)
            found.append((order, Layout(kind, tokens, pad_id, lengths), option))
    _, layout, memory = min(found, key=lambda one: one[0])
    computed = sum(size for step in some for size in _sizes(step, layout))
    return TrainingLayout(layout, tokens_in / computed, memory)


def _training_lengths(
    training: TrainingSteps, rows: Sequence[int], device: torch.device, part: float
) -> tuple[Sequence[int], int]:
    """(lengths for rows of so many tokens, tokens that are computed in the time that having these lengths takes once).

    Layers that are compiled for all lengths fill rows up to whole tiles. A captured step costs a capture for each
    length, and sharded layers are compiled for each. part: the share of `rows` in the whole training.
    """
    captured = max(rows) <= CAPTURED_ROW
    any_length = layers.any_length(sharded=training.cards > 1)
    if any_length and not captured:
        return whole_tiles(max(rows)), 0
    seconds = CAPTURING_SECONDS * training.shape.layers if any_length else COMPILING_SECONDS
    another = int(part * computed_tokens(seconds, training.shape, training.recipe.method, device))
    lengths = lengths_for(rows, another)
    return lengths, another * len(lengths)


def _standard_layout(training: TrainingSteps, some: list[GroupedSequences], device: torch.device) -> TrainingLayout:
    on_cpu, recipe = device.type == "cpu", training.recipe
    widest = max(len(ids) for one in training.examples for ids in one.sequences) * training.answers
    batch, sequences = widest * recipe.batch_size, training.answers * recipe.batch_size
    positions = training.logit_positions(recipe.batch_size)
    work = Workload(recipe.method, recipe.lora_r, batch, sequences, logit_positions=positions, cards=training.cards)
    free = None if on_cpu else free_bytes(device)
    memory = choose_memory_plan(training.shape, work, recipe.optimizer, recipe.gradient_checkpointing, free)
    most = min(batch, max(CPU_BATCH, widest)) if on_cpu else batch
    padded = Layout("padded", most, training.pad_id, sequences=sequences)
    tree = _cpu_tree(training.shape, some, training.longest, training.pad_id)
    # The answers of an item differ only at their ends: the miniature learns them 2.4 times faster as a tree.
    if on_cpu and (
        recipe.share_prefixes == "on"
        or (recipe.share_prefixes == "auto" and (training.answers > 1 or _pays(training.shape, some, tree, padded)))
    ):
        return TrainingLayout(tree, sharing_factor(training.examples, training.steps, tree), memory)
    return TrainingLayout(padded, 1.0, memory)


def sharing_factor(examples: Sequence[Example], steps: Sequence[Sequence[int]], layout: Layout) -> float:
    """Input tokens per computed token in the layout, over the first steps."""
    some = _first_steps(examples, steps)
    return _input_tokens(some) / sum(size for step in some for size in _sizes(step, layout))


def slowdown(recipe: Recipe, examples: Sequence[Example], steps: Sequence[Sequence[int]], pad_id: int) -> float:
    """About how many times longer the standard layers take to train than compiled ones on a GPU."""
    if recipe.share_prefixes == "off":
        return SPEEDUP
    return _slowdown(sharing_factor(examples, steps, Layout("tree", GPU_ROW, pad_id)))


def scoring_slowdown(prompts: Sequence[Sequence[int]], share: str = "auto") -> float:
    """About how many times longer the standard layers take to score `prompts` than compiled ones on a GPU."""
    if share == "off" or not prompts:
        return SPEEDUP
    return _slowdown(sum(map(len, prompts)) / sum(sizes(prompts, Layout("tree", GPU_SCORING, 0))))


def _slowdown(factor: float) -> float:
    return SPEEDUP * (factor if factor >= WORTHWHILE else 1)


def row_options(recipe: Recipe, shape: Shape, work: Workload, free: int | None) -> list[MemoryPlan]:
    """The ways to train rows of the size of `work`, each with its memory and whether it fits into `free` bytes."""
    switches = (recipe.optimizer, recipe.gradient_checkpointing)
    found = memory_options(shape, work, *switches, free)
    if recipe.method == "qlora":
        for option in memory_options(shape, dataclasses.replace(work, method="lora"), *switches, free):
            fits = free is None or option.memory.total <= ROOM * free
            found.append(dataclasses.replace(option, fits=fits, dequantised=True))
    return found


def shorter(layout: Layout, longest: int) -> Layout | None:
    """Rows of a quarter fewer tokens that still hold `longest` tokens, all of one length where there were few; None
    when there are none.
    """
    least = -(-longest // BLOCK) * BLOCK
    tokens = max(least, int(layout.tokens * 0.75) // BLOCK * BLOCK)
    lengths = whole_tiles(tokens) if isinstance(layout.lengths, range) else (tokens,)
    return dataclasses.replace(layout, tokens=tokens, lengths=lengths) if tokens < layout.tokens else None


def scoring_layout(
    prompts: Sequence[Sequence[int]],
    shape: Shape,
    pad_id: int,
    device: torch.device,
    compiled: bool,
    share: str = "auto",
) -> Layout:
    """The layout for scoring prompts: trees where they save enough, or as `share` ("auto", "on", "off") says."""
    if not compiled:
        padded = Layout("padded", CPU_BATCH, pad_id)
        if share == "off" or (share == "auto" and device.type != "cpu"):
            return padded
        step: GroupedSequences = (prompts[:CPU_SEEN], None)
        tree = _cpu_tree(shape, [step], max(map(len, prompts)), pad_id)
        return tree if share == "on" or _pays(shape, [step], tree, padded) else padded
    tokens = min(GPU_SCORING, scoring_tokens(shape, free_bytes(device)))
    tokens = max(tokens, max(map(len, prompts)))
    rows = sizes(prompts, Layout("tree", tokens, pad_id))
    pays = share == "auto" and sum(map(len, prompts)) >= WORTHWHILE * sum(rows)
    kind: Kind = "tree" if share == "on" or pays else "single"
    if kind == "single":
        rows = list(map(len, prompts))
    return Layout(kind, tokens, pad_id, whole_tiles(max(rows)))


def few_lengths(layout: Layout, prompts: Sequence[Sequence[int]], shape: Shape, device: torch.device) -> Layout:
    """The layout for scoring prompts in layers that are compiled for each length of rows by itself."""
    another = computed_tokens(COMPILING_SECONDS, shape, "scoring", device)
    return dataclasses.replace(layout, lengths=lengths_for(sizes(prompts, layout), another))


def scoring_tokens(shape: Shape, free: int) -> int:
    """Tokens of a row whose activations fit into half of the `free` bytes that the weights leave."""
    each = scoring_memory(shape, "lora", 2**20, "tree").activations / 2**20
    return max(BLOCK, int(free / 2 / each) // BLOCK * BLOCK)


def computed_tokens(seconds: float, shape: Shape, method: str, device: torch.device) -> int:
    """Tokens that are computed in `seconds` at half the GPU's peak, in training by `method` or in "scoring"."""
    peak = peak_tflops(torch.cuda.get_device_name(device)) or 300
    each = 2 if method == "scoring" else flops(method, False)
    return int(seconds * peak * 1e12 / 2 / (each * shape.linear_parameters))


def row_budgets(largest: int, longest: int) -> list[int]:
    """Tokens of a row to choose from: a whole step's, then a quarter fewer each time, down to `longest`."""
    found = [float(largest)]
    while found[-1] * 0.75 > longest:
        found.append(found[-1] * 0.75)
    return sorted({-(-max(int(tokens), longest) // BLOCK) * BLOCK for tokens in [*found, longest]}, reverse=True)


def _first_steps(examples: Sequence[Example], steps: Sequence[Sequence[int]]) -> list[GroupedSequences]:
    return [_sequences([examples[number] for number in step]) for step in steps[: max(1, SEEN // len(steps[0]))]]


def _sequences(examples: Sequence[Example]) -> GroupedSequences:
    pairs = [(ids, item) for item, one in enumerate(examples) for ids in one.sequences]
    return [ids for ids, _ in pairs], [item for _, item in pairs]


def _input_tokens(steps: Sequence[GroupedSequences]) -> int:
    return sum(len(ids) for sequences, _ in steps for ids in sequences)


def _sizes(step: GroupedSequences, layout: Layout) -> list[int]:
    return sizes(step[0], layout, step[1])


def _cpu_tree(shape: Shape, steps: Sequence[GroupedSequences], longest: int, pad_id: int) -> Layout:
    """Of a tree's rows that hold `longest` tokens, those that a CPU computes `steps` in soonest."""
    budgets = sorted({max(tokens, longest) for tokens in CPU_TREES})
    return min((Layout("tree", tokens, pad_id) for tokens in budgets), key=lambda tree: _tree_cost(shape, steps, tree))


def _pays(shape: Shape, steps: Sequence[GroupedSequences], tree: Layout, padded: Layout) -> bool:
    """Whether a CPU computes the tree's rows sooner than padded batches, and since they share."""
    linear, attention = _cpu_costs(shape)
    cost = tokens = 0.0
    for step in steps:
        filled = sum(_sizes(step, padded))
        tokens += filled
        cost += filled * (linear + attention * sum(map(len, step[0])) / len(step[0]))
    shares = CPU_SURE * sum(sum(_sizes(step, tree)) for step in steps) <= tokens
    return shares and CPU_SURE * _tree_cost(shape, steps, tree) <= cost


def _tree_cost(shape: Shape, steps: Sequence[GroupedSequences], tree: Layout) -> float:
    linear, attention = _cpu_costs(shape)
    rows = [row for sequences, groups in steps for row in trees(sequences, tree, groups)]
    return sum(len(row) * linear + attention * CPU_MASKED * pairs(row.depth, row.end) for row in rows)


def _cpu_costs(shape: Shape) -> tuple[float, float]:
    """What a layer of a CPU takes: (for each token, for each pair of tokens in causal attention without a mask), in
    multiplications and additions.
    """
    linear = 2 * shape.linear_parameters / shape.layers + CPU_ELEMENTWISE * shape.hidden_size
    return linear, 4 * shape.query_size * (CPU_SOFTCAPPED if shape.model_type == "gemma2" else 1)
