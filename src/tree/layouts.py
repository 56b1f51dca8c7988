"""How the sequences of a run are laid out on the device at hand: the kind of rows, and how many tokens they hold.

On a GPU the work is done in rows as long as memory lets them be. On a CPU attention over a tree takes a mask of all
pairs, so that short rows are best, and small models are quicker with padded batches.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence

import torch

from src.model import shapes
from src.model.memory import (
    MemoryPlan,
    Workload,
    choose_memory_plan,
    memory_options,
    scoring_memory,
)
from src.model.recipes import OPTIMIZERS, Recipe
from src.plan import estimates as plan
from src.prompt.encode import Example
from src.tree.compiler import QUICKER
from src.tree.prefix import BLOCK
from src.tree.rows import WORTHWHILE, Layout, lengths_for, sizes

CPU_TREE, CPU_BATCH = 1024, 2048
"""Tokens of a row of a tree, and of a padded batch, on a CPU: about a dialogue, and what stays in the caches."""
CPU_MASKED = 8
"""About how much longer a CPU takes to attend with a mask than without one: seen once, on two busy cores."""
GPU_ROW, GPU_SCORING = 32768, 32768
"""The most tokens of a row on a GPU, which are more than enough to keep it busy."""
ROOM = 0.6
"""Share of the free memory that a run may take with NF4 weights dequantised; on a fuller card they stay as they are."""
COMPILING_SECONDS = 12
"""What another length of rows costs once, roughly, on the host of an H200: 8 to 15 s were seen."""
SEEN = 1024
"""Items of the first steps that are looked at to settle the lengths of rows."""
Step = tuple[Sequence[Sequence[int]], Sequence[int] | None]
"""Sequences of an optimizer step, and the group of each where some are to stay in one row."""


@dataclasses.dataclass(frozen=True)
class TrainingSteps:
    """What a training computes.

    steps             the examples' numbers, by optimizer step, of an epoch
    logit_positions   number of items in a row → positions whose logits are in memory at once
    """

    recipe: Recipe
    shape: shapes.Shape
    examples: Sequence[Example]
    steps: Sequence[Sequence[int]]
    pad_id: int
    logit_positions: Callable[[int], int]


def training_layout(work: TrainingSteps, device: torch.device, compiled: bool) -> tuple[Layout, float, MemoryPlan]:
    """(layout of a step, tokens of its items to one that is computed, how the run is kept in memory).

    compiled: whether rows are computed as `rows.make_ready` has it. The cheapest way that fits, in multiplications; of
    the optimizers, the first that fits.
    """
    recipe, shape, examples, steps, pad_id = work.recipe, work.shape, work.examples, work.steps, work.pad_id
    some = _some(examples, steps)
    raw = _raw(some)
    longest = max(one.tokens for one in examples)
    answers = max(len(one.sequences) for one in examples)
    if not compiled:
        widest = max(len(ids) for one in examples for ids in one.sequences)
        places = work.logit_positions(recipe.batch_size)
        return _usual_layout(recipe, shape, some, longest, widest * answers, answers, places, raw, pad_id, device)
    whole = [_sizes(step, Layout("tree", max(longest, GPU_ROW), pad_id)) for step in some]
    saved = raw / sum(map(sum, whole))
    shares = recipe.share_prefixes == "on" or (recipe.share_prefixes == "auto" and saved >= WORTHWHILE)
    kind = "tree" if shares else "single"
    largest = max(map(max, whole)) if shares else longest
    found: list[tuple[tuple[float, ...], Layout, MemoryPlan]] = []
    for budget in _budgets(largest, longest):
        rows = [size for step in some for size in _sizes(step, Layout(kind, budget, pad_id))]
        # Rows are filled evenly, so the longest may be well below what was allowed.
        tokens = -(-max(*rows, longest) // BLOCK) * BLOCK
        items = len(steps[0]) * tokens // max(map(sum, whole)) + 1 if shares else 1
        for way in row_ways(recipe, shape, tokens, work.logit_positions(items), free_bytes(device)):
            # Unpacking NF4 in every pass costs a little.
            slower = 1.05 if recipe.method == "qlora" and not way.dequantised else 1.0
            cost = sum(rows) * shapes.flops(recipe.method, way.checkpointing) * slower
            fits = (0, OPTIMIZERS.index(way.optimizer), cost)
            found.append((fits if way.fits else (1, way.memory.total), Layout(kind, tokens, pad_id), way))
    _, layout, way = min(found, key=lambda one: one[0])
    rows = [size for step in some for size in _sizes(step, layout)]
    lengths = lengths_for([*rows, longest], compiling_tokens(shape, recipe.method, device) // max(1, recipe.epoch))
    return Layout(kind, lengths[-1], pad_id, lengths), raw / sum(rows), way


def sharing(examples: Sequence[Example], steps: Sequence[Sequence[int]], layout: Layout) -> float:
    """Tokens of the steps' items to one that is computed in the layout, over the first steps."""
    some = _some(examples, steps)
    return _raw(some) / sum(size for step in some for size in _sizes(step, layout))


def slower(recipe: Recipe, examples: Sequence[Example], pad_id: int) -> float:
    """About how many times longer the usual layers take to train than compiled ones on a GPU."""
    if recipe.share_prefixes == "off":
        return QUICKER
    shared = sharing(examples, epoch_steps(examples, recipe), Layout("tree", GPU_ROW, pad_id))
    return QUICKER * (shared if shared >= WORTHWHILE else 1)


def scoring_slower(prompts: Sequence[Sequence[int]], share: str = "auto") -> float:
    """About how many times longer the usual layers take to score `prompts` than compiled ones on a GPU."""
    if share == "off" or not prompts:
        return QUICKER
    shared = sum(map(len, prompts)) / sum(sizes(prompts, Layout("tree", GPU_SCORING, 0)))
    return QUICKER * (shared if shared >= WORTHWHILE else 1)


def row_ways(recipe: Recipe, shape: shapes.Shape, tokens: int, places: int, free: int | None) -> list[MemoryPlan]:
    """Ways to train in rows of `tokens` tokens, the logits of `places` of which are made at a time."""
    dropout = recipe.lora_dropout > 0
    work = Workload(recipe.method, recipe.lora_r, tokens, attention="tree", dropout=dropout, logit_positions=places)
    found = memory_options(shape, work, recipe.optimizer, recipe.gradient_checkpointing, free)
    if recipe.method == "qlora":
        in_bf16 = dataclasses.replace(work, method="lora")
        for way in memory_options(shape, in_bf16, recipe.optimizer, recipe.gradient_checkpointing, free):
            fits = free is None or way.memory.total <= ROOM * free
            found.append(MemoryPlan(way.optimizer, way.checkpointing, way.memory, fits, dequantised=True))
    return found


def shorter(layout: Layout, longest: int) -> Layout | None:
    """Rows of a quarter less tokens, all of one length, that still hold `longest` tokens; None when there are none."""
    least = -(-longest // BLOCK) * BLOCK
    tokens = max(least, int(layout.tokens * 0.75) // BLOCK * BLOCK)
    return dataclasses.replace(layout, tokens=tokens, lengths=(tokens,)) if tokens < layout.tokens else None


def scoring_layout(
    prompts: Sequence[Sequence[int]],
    shape: shapes.Shape,
    pad_id: int,
    device: torch.device,
    compiled: bool,
    share: str = "auto",
) -> Layout:
    """How prompts are read: as trees where that saves enough, or as `share` ("auto", "on", "off") has it, in rows of
    few lengths.
    """
    if not compiled:
        tree = Layout("tree", max(CPU_TREE, max(map(len, prompts))), pad_id)
        padded = Layout("padded", CPU_BATCH, pad_id)
        pays = share == "auto" and device.type == "cpu" and _pays(shape, [(prompts, None)], tree, padded)
        return tree if share == "on" or pays else padded
    tokens = min(GPU_SCORING, scoring_tokens(shape, free_bytes(device)))
    tokens = max(tokens, max(map(len, prompts)))
    rows = sizes(prompts, Layout("tree", tokens, pad_id))
    pays = share == "auto" and sum(map(len, prompts)) >= WORTHWHILE * sum(rows)
    kind = "tree" if share == "on" or pays else "single"
    if kind == "single":
        rows = list(map(len, prompts))
    return Layout(kind, tokens, pad_id, lengths_for(rows, compiling_tokens(shape, "scoring", device)))


def scoring_tokens(shape: shapes.Shape, free: int) -> int:
    """Tokens of a row whose activations fit into half of `free` bytes, which count what the weights leave."""
    each = scoring_memory(shape, "lora", 2**20, "tree").activations / 2**20
    return max(BLOCK, int(free / 2 / each) // BLOCK * BLOCK)


def free_bytes(device: torch.device) -> int:
    """GPU memory that this process may still take, a limit set by `set_per_process_memory_fraction` heeded."""
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return min(free + held, allowed) - torch.cuda.memory_allocated(device)


def compiling_tokens(shape: shapes.Shape, method: str, device: torch.device) -> int:
    """Tokens that are computed in the time that compiling for another length takes, at half the GPU's peak."""
    peak = plan.peak_tflops(torch.cuda.get_device_name(device)) or 300
    each = 2 if method == "scoring" else shapes.flops(method, False)
    return int(COMPILING_SECONDS * peak * 1e12 / 2 / (each * shape.linear_parameters))


def epoch_steps(examples: Sequence[Example], recipe: Recipe, devices: int = 1) -> list[list[int]]:
    """Numbers of the examples, by optimizer step of one device, in an epoch drawn as the recipe has it."""
    order = list(range(len(examples)))
    if recipe.order == "dialogue":
        order = by_dialogue(examples, f"{recipe.seed}-0")
    else:
        random.Random(recipe.seed).shuffle(order)
    step = recipe.batch_size * recipe.gradient_accumulation_steps
    return [order[start : start + step] for start in range(0, max(1, len(order) // devices), step)]


def by_dialogue(examples: Sequence[Example], seed: str) -> list[int]:
    """Numbers of the examples: dialogues in a random order, and the items of each in a random order."""
    rng = random.Random(seed)
    groups: dict[str, list[int]] = {}
    for number, one in enumerate(examples):
        groups.setdefault(one.dialogue, []).append(number)
    dialogues = list(groups.values())
    return [number for group in rng.sample(dialogues, len(dialogues)) for number in rng.sample(group, len(group))]


def _some(examples: Sequence[Example], steps: Sequence[Sequence[int]]) -> list[Step]:
    return [_sequences([examples[number] for number in step]) for step in steps[: max(1, SEEN // len(steps[0]))]]


def _raw(steps: Sequence[Step]) -> int:
    return sum(len(ids) for sequences, _ in steps for ids in sequences)


def _sequences(examples: Sequence[Example]) -> Step:
    pairs = [(ids, item) for item, one in enumerate(examples) for ids in one.sequences]
    return [ids for ids, _ in pairs], [item for _, item in pairs]


def _sizes(step: Step, layout: Layout) -> list[int]:
    return sizes(step[0], layout, step[1])


def _budgets(largest: int, longest: int) -> list[int]:
    """Tokens of a row to choose from: a whole step's, then a quarter less each time, down to the longest sequence's."""
    found = [float(largest)]
    while found[-1] * 0.75 > longest:
        found.append(found[-1] * 0.75)
    return sorted({-(-max(int(tokens), longest) // BLOCK) * BLOCK for tokens in [*found, longest]}, reverse=True)


def _usual_layout(
    recipe: Recipe,
    shape: shapes.Shape,
    some: list[Step],
    longest: int,
    widest: int,
    answers: int,
    places: int,
    raw: int,
    pad_id: int,
    device: torch.device,
) -> tuple[Layout, float, MemoryPlan]:
    on_cpu = device.type == "cpu"
    batch, sequences = widest * recipe.batch_size, answers * recipe.batch_size
    free = None if on_cpu else free_bytes(device)
    work = Workload(recipe.method, recipe.lora_r, batch, sequences, logit_positions=places)
    way = choose_memory_plan(shape, work, recipe.optimizer, recipe.gradient_checkpointing, free)
    most = min(batch, max(CPU_BATCH, widest)) if on_cpu else batch
    padded = Layout("padded", most, pad_id, sequences=sequences)
    tree = Layout("tree", max(CPU_TREE, longest), pad_id)
    wanted = recipe.share_prefixes
    # The answers of an item differ in their ends alone: the miniature's are learned 2.4 times faster as a tree.
    if on_cpu and (wanted == "on" or (wanted == "auto" and (answers > 1 or _pays(shape, some, tree, padded)))):
        return tree, raw / sum(sum(_sizes(step, tree)) for step in some), way
    return padded, 1.0, way


def _pays(shape: shapes.Shape, steps: Sequence[Step], tree: Layout, padded: Layout) -> bool:
    """Whether a CPU computes the tree's rows in less multiplications than the padded batches, of which those of masked
    attention count more.
    """
    linear, attention = 2 * shape.linear_parameters / shape.layers, 4 * shape.query_size
    tree_cost = padded_cost = 0.0
    for step in steps:
        tree_cost += sum(rows * (linear + attention * CPU_MASKED * rows) for rows in _sizes(step, tree))
        batches = _sizes(step, padded)
        mean = sum(map(len, step[0])) / len(step[0])
        padded_cost += sum(batches) * (linear + attention * mean)
    return WORTHWHILE * tree_cost <= padded_cost
