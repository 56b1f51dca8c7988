"""How a run is laid out, for GPUs that need not be there: 8B shapes, sequences as long as the official ones."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from src.model import memory
from src.model.backbones import backbones
from src.model.memory import MemoryPlan, Workload
from src.model.recipes import Recipe, make_recipe
from src.model.shapes import GIB, Shape
from src.prompt.encode import Example
from src.train.objectives import make_objective
from src.train.order import by_dialogue, epoch_steps
from src.tree import compiled, layouts
from src.tree.layouts import (
    CPU_BATCH,
    CPU_TREES,
    GPU_SCORING,
    TrainingSteps,
    computed_tokens,
    few_lengths,
    row_budgets,
    row_options,
    scoring_layout,
    scoring_tokens,
    training_layout,
)
from src.tree.prefix import BLOCK
from src.tree.rows import AT_ONCE, WORTHWHILE, Layout, filled_tokens, lay_out, lengths_for, sizes
from tests import toys
from tests.made_sequences import corpus

PAD = 7
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BLLOSSOM = Shape.of_backbone(backbones()["bllossom"])
TOY = Shape.of_config(toys.network("qwen2").config)


CORPUS: list[Example] = corpus()
SHORTER: list[Example] = corpus(100, (100, 200), (40, 80))
LONGEST = max(len(one.ids) for one in CORPUS)
Card = Callable[..., None]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """Puts a GPU of so many free GiB into the machine."""

    def put(gib: float, name: str = "NVIDIA H200") -> None:
        monkeypatch.setattr(layouts, "free_bytes", lambda device: int(gib * GIB))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
        hopper = (9, 0) if "H" in name.split()[-1] else (8, 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: hopper)

    return put


def recipe(**changes: Any) -> Recipe:
    values = {"backbone": "bllossom", "method": "lora", "batch_size": 64, "order": "dialogue", "lora_dropout": 0}
    return make_recipe({**values, **changes}, "here")


def laid_out(
    one: Recipe,
    examples: Sequence[Example] = CORPUS,
    shape: Shape = BLLOSSOM,
    device: torch.device = GPU,
    compiled: bool = True,
    cards: int = 1,
) -> tuple[Layout, float, MemoryPlan]:
    steps = epoch_steps(examples, one)
    positions = functools.partial(make_objective(one).logit_positions, examples)
    work = TrainingSteps(one, shape, examples, steps, PAD, positions, cards)
    found = training_layout(work, device, compiled=compiled and device.type == "cuda")
    return found.layout, found.sharing_factor, found.memory


def steps_of(one: Recipe, epoch: int = 0, examples: Sequence[Example] = CORPUS) -> list[list[tuple[int, ...]]]:
    """Sequences by optimizer step, as training draws them dialogue by dialogue."""
    assert one.order == "dialogue"
    order = by_dialogue(examples, f"{one.seed}-{epoch}")
    return [
        [examples[number].ids for number in order[start : start + one.batch_size]]
        for start in range(0, len(order), one.batch_size)
    ]


# On a GPU


def test_a_step_is_one_row_where_it_fits(card: Card) -> None:
    card(141)
    long = recipe(epoch=1000)  # in which a length for each row costs next to nothing
    layout, saved, way = laid_out(long)
    assert [len(sizes(step, layout)) for step in steps_of(long)] == [1, 1, 1]
    assert (layout.kind, layout.pad_id, way.checkpointing, way.fits, way.dequantised) == (
        "tree",
        PAD,
        False,
        True,
        False,
    )
    assert layout.tokens == layout.lengths[-1] and layout.lengths[-1] % BLOCK == 0
    # Of about 1,115 tokens of an item 454 are the system prompt and 450 the dialogue: four share it.
    assert 3 < saved < 3.5
    raw = sum(len(one.ids) for one in CORPUS)
    assert saved == pytest.approx(raw / sum(sum(sizes(step, layout)) for step in steps_of(long)))


def test_a_small_card_keeps_nf4_and_computes_again_or_in_short_rows(card: Card) -> None:
    for gib in (24, 16):
        card(gib)
        layout, _, way = laid_out(recipe(method="qlora"))
        assert way.fits and not way.dequantised and layout.kind == "tree"
        assert way.memory.total <= memory.USABLE * gib * GIB
        assert way.checkpointing or layout.tokens < 4096
    card(4)
    layout, _, way = laid_out(recipe(method="qlora"))
    assert not way.fits and way.checkpointing and layout.tokens == -(-LONGEST // BLOCK) * BLOCK, "the least of all"


def test_quantised_weights_are_unpacked_once_where_there_is_room(card: Card) -> None:
    card(141)
    way = laid_out(recipe(method="qlora"))[2]
    assert way.dequantised and not way.checkpointing and way.memory.total < 0.6 * 141 * GIB
    assert way.memory.weights == pytest.approx(2 * BLLOSSOM.parameters, rel=0.02)
    card(way.memory.total / 0.61 / GIB)
    assert laid_out(recipe(method="qlora"))[2] != way, "with room to spare"
    card(24)
    assert not laid_out(recipe(method="qlora"))[2].dequantised
    for method in ("lora", "full"):
        assert not any(
            one.dequantised
            for one in row_options(
                recipe(method=method), BLLOSSOM, Workload(method, 6, 4096, attention="tree"), 141 * GIB
            )
        )


def test_of_the_optimizers_the_first_that_fits(card: Card) -> None:
    found = []
    for gib in (300, 141, 90, 20):
        card(gib)
        _, _, way = laid_out(recipe(method="full"))
        found.append((way.optimizer, way.fits))
    assert found == [("fp32", True), ("fp32-8bit", True), ("bf16-stochastic", True), ("bf16-stochastic", False)]
    # However short rows make it dearer than the next optimizer would be, and with checkpointing if need be.
    least = memory.training_memory(BLLOSSOM, Workload("full", 6, 1408, 10, "tree"), "fp32", True)
    card(least.total / memory.USABLE / GIB)
    _, _, way = laid_out(recipe(method="full"))
    assert (way.optimizer, way.checkpointing) == ("fp32", True)


def budgets(largest: float) -> list[int]:
    """A whole step's tokens, and a quarter less each time, in whole tiles; last the longest item's."""
    found = []
    while largest > LONGEST:
        found.append(-(-int(largest) // BLOCK) * BLOCK)
        largest *= 0.75
    return [*found, -(-LONGEST // BLOCK) * BLOCK]


def test_all_places_whose_logits_are_made_are_counted(card: Card) -> None:
    card(1000)
    each = 12 * BLLOSSOM.vocab
    supervised = 300
    long = [replace(one, ids=one.ids[: one.answer_start] + (9,) * supervised) for one in CORPUS]
    one_row = recipe(epoch=1000)  # see above
    assert laid_out(one_row)[2].memory.logits >= 64 * memory.ANSWER_TOKENS * each
    assert laid_out(recipe(batch_size=32), long)[2].memory.logits >= 16 * supervised * each
    # 64 of these are more than a row holds: a quarter to a half of them at a time.
    assert 16 * supervised * each <= laid_out(recipe(), long)[2].memory.logits < 40 * supervised * each
    # A row of one item may be that of the longest.
    longer = [*long[1:], replace(long[0], ids=long[0].ids + (9,) * 200)]
    assert laid_out(recipe(batch_size=1), longer)[2].memory.logits == 500 * each
    # What compares answers reads the head in pieces; with the prompt learned, too, its places count. A row of shared
    # prefixes is taken to hold an item more.
    pairs = [replace(one, rejected=((*one.ids[:-1], 8),)) for one in CORPUS]
    for nll, batch_size, places in (("answer", 1, 160), ("answer", 64, AT_ONCE), ("prompt", 1, AT_ONCE)):
        one = recipe(objective="orpo", orpo_nll=nll, batch_size=batch_size)
        assert laid_out(one, pairs)[2].memory.logits == places * each, (nll, batch_size)


WAYS = [(16, "lora"), (24, "qlora"), (32, "lora"), (48, "qlora"), (80, "full"), (141, "full"), (141, "lora")]
"""GiB of a card and a method, by default; the other pairs are thorough."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gib", "method"),
    [
        pytest.param(*pair, marks=[] if pair in WAYS else [pytest.mark.thorough])
        for pair in itertools.product([16, 24, 32, 48, 80, 141], ["lora", "qlora", "full"])
    ],
)
def test_the_cheapest_way_that_fits(gib: float, method: str, card: Card) -> None:
    card(gib)
    one = recipe(method=method)
    steps = steps_of(one)
    largest = max(sizes(step, Layout("tree", 32768, PAD))[0] for step in steps)
    costs = []
    for budget in budgets(largest):
        rows = [size for step in steps for size in sizes(step, Layout("tree", budget, PAD))]
        each = 6 if method == "full" else 4
        another = int(32 * layouts.CAPTURING_SECONDS * 989e12 / 2 / (each * BLLOSSOM.linear_parameters) / one.epoch)
        lengths: Sequence[int] = lengths_for([*rows, LONGEST], another)
        if max(*rows, LONGEST) > 4096:
            lengths, another = range(BLOCK, max(*rows, LONGEST) + BLOCK, BLOCK), 0
        tokens, computed = lengths[-1], sum(min(one for one in lengths if one >= size) for size in rows)
        places = memory.ANSWER_TOKENS * (64 * tokens // largest + 1)
        work = Workload(method, 6, tokens, 1, "tree", one.lora_dropout > 0, places, repeated=True)
        for way in row_options(one, BLLOSSOM, work, gib * GIB):
            again = sum(memory.recomputed(way, BLLOSSOM, size) for size in rows) / len(rows)
            passes = (6 if method == "full" else 4) + 2 * again
            slower = (1.05 if method == "qlora" and not way.dequantised else 1) * (1.03 if way.selective else 1)
            order = ("fp32", "fp32-8bit", "bf16-stochastic").index(way.optimizer)
            if way.fits:
                costs.append((order, (computed + another * len(lengths)) * passes * slower, tokens, way))
    layout, _, way = laid_out(one)
    if not costs:
        assert not way.fits
        return
    assert len({cost[1] for cost in costs}) > 1 or len(costs) == 1
    _, _, tokens, cheapest = min(costs, key=lambda cost: cost[:2])
    assert way == cheapest
    assert layout.tokens == tokens
    assert [sizes(step, layout) for step in steps] == [sizes(step, Layout("tree", tokens, PAD)) for step in steps]


def test_memory_is_that_of_the_rows_not_of_what_they_might_hold(card: Card) -> None:
    # 128 items of some 44,000 tokens, more than a row ever holds: three even rows, each well below that.
    card(141)
    one = recipe(batch_size=128)
    layout, _, way = laid_out(one)
    (step, *_) = steps_of(one)
    rows = sizes(step, layout)
    assert len(rows) > 1 and max(rows) <= layout.tokens
    places = memory.ANSWER_TOKENS * (128 * layout.tokens // sum(sizes(step, Layout("tree", layouts.GPU_ROW, PAD))) + 1)
    work = Workload("lora", 6, layout.tokens, 1, "tree", False, places, repeated=True)
    assert way.memory == memory.training_memory(BLLOSSOM, work, "fp32", way.checkpointing) and not way.selective


def test_a_recipe_that_says_so_checkpoints_or_does_not(card: Card) -> None:
    card(141)
    assert laid_out(recipe(gradient_checkpointing="on"))[2].checkpointing
    card(24)
    layout, _, way = laid_out(recipe(gradient_checkpointing="off"))
    assert not way.checkpointing and way.fits and layout.tokens < 4096
    # Dropout keeps more: rows are as long if what is cheap is computed again.
    card(80)
    (plain, _, keeps), (layout, _, way) = laid_out(recipe()), laid_out(recipe(lora_dropout=0.05))
    assert plain.tokens == layout.tokens and way.selective and not keeps.selective and not way.checkpointing


def pairs(shared: int) -> list[Example]:
    """Pairs of 1,000 tokens, alike in the first `shared`."""
    made = []
    for number in range(8):
        start = tuple(range(1000 * number, 1000 * number + shared))
        made += [
            Example(f"{number}{end}", "012", start + (end,) * (1000 - shared), 999, 0, str(number)) for end in (1, 2)
        ]
    return made


def test_a_tree_that_is_not_worth_it(card: Card) -> None:
    card(141)
    # 2,000 tokens to 2,000 - shared.
    for shared, kind in ((455, "single"), (467, "tree")):
        layout, saved, _ = laid_out(recipe(batch_size=2), pairs(shared))
        assert layout.kind == kind
        assert saved == pytest.approx(2000 / (2000 - shared) if kind == "tree" else 1)
    assert 2000 / (2000 - 455) < WORTHWHILE < 2000 / (2000 - 467)


def test_the_recipe_may_insist(card: Card) -> None:
    card(141)
    little, much = pairs(100), CORPUS
    assert laid_out(recipe(batch_size=2, share_prefixes="on"), little)[0].kind == "tree"
    layout, saved, _ = laid_out(recipe(share_prefixes="off"), much)
    assert (layout.kind, saved) == ("single", 1)
    assert layout.lengths[-1] == -(-LONGEST // BLOCK) * BLOCK


@pytest.mark.parametrize("gib", [24, 141])
def test_rows_of_later_epochs_have_the_lengths_that_were_laid_out_first(
    gib: float, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(gib)
    monkeypatch.setattr(layouts, "SEEN", 32)
    one = recipe(batch_size=32, epoch=15, method="qlora")
    layout, _, _ = laid_out(one)
    assert len(layout.lengths) >= 1 and layout.lengths[-1] >= LONGEST
    for epoch in range(4):
        for step in steps_of(one, epoch):
            for row in lay_out(step, [], layout):
                assert len(row["end"]) in layout.lengths
    (longer,) = lay_out([tuple(range(layout.lengths[-1] + 1))], [], layout)
    assert len(longer["end"]) == layout.lengths[-1] + BLOCK


@pytest.mark.parametrize("share", ["on", "off"])
def test_an_item_longer_than_those_of_the_first_steps(share: str, card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    card(141)
    monkeypatch.setattr(layouts, "SEEN", 2)
    examples = [Example(str(number), "012", (number,) * 300, 299, 0, str(number)) for number in range(8)]
    one = recipe(batch_size=2, share_prefixes=share, epoch=1)
    last = epoch_steps(examples, one)[-1][0]
    examples[last] = Example("long", "012", (last,) * 5000, 4999, 0, str(last))
    layout, _, _ = laid_out(one, examples)
    assert layout.lengths[-1] == layout.tokens == 40 * BLOCK


def test_row_lengths_to_choose_from() -> None:
    # A whole step's, a quarter less each time, the longest item's; in whole tiles.
    assert row_budgets(10_000, 3000) == [10_112, 7552, 5632, 4224, 3200, 3072]
    assert row_budgets(10_000, 9000) == [10_112, 9088]
    assert row_budgets(1000, 1000) == row_budgets(900, 1000) == [1024]


def test_shorter_rows_for_want_of_memory() -> None:
    layout = Layout("tree", 1920, PAD, (1024, 1920), 3)
    found = []
    while (shorter := layouts.shorter(layout, 600)) is not None:
        layout = shorter
        found.append(layout.tokens)
    assert found == [1408, 1024, 768, 640] and layout == Layout("tree", 640, PAD, (640,), 3)
    assert layouts.shorter(Layout("tree", 1280, PAD), 1270) is None


def test_a_longer_run_has_more_lengths(card: Card) -> None:
    card(141)
    found = [len(laid_out(recipe(batch_size=8, epoch=epoch))[0].lengths) for epoch in (1, 20, 10**6)]
    assert found == sorted(found) and found[0] == 1 and found[-1] > 4
    # A slower GPU computes less in the same time.
    card(141, "NVIDIA A100-SXM4-80GB")
    assert computed_tokens(3, BLLOSSOM, "lora", GPU) == int(3 * 312e12 / 2 / 4 / BLLOSSOM.linear_parameters)
    assert computed_tokens(12, BLLOSSOM, "scoring", GPU) == int(12 * 312e12 / 2 / 2 / BLLOSSOM.linear_parameters)
    card(141, "a card of tomorrow")
    assert computed_tokens(3, BLLOSSOM, "full", GPU) == int(3 * 300e12 / 2 / 6 / BLLOSSOM.linear_parameters)


def test_layers_compiled_for_all_lengths_leave_little_to_fill(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    def filling(one: Recipe) -> float:
        layout, _, _ = laid_out(one)
        rows = [size for step in steps_of(one) for size in sizes(step, layout)]
        return filled_tokens(rows, layout.lengths) / sum(rows) - 1

    card(80)
    one = recipe(batch_size=16, epoch=1)
    layout = laid_out(one)[0]
    assert layout.lengths == range(BLOCK, layout.tokens + BLOCK, BLOCK) and layout.tokens > layouts.CAPTURED_ROW
    for step in steps_of(one):
        for row, tokens in zip(lay_out(step, [], layout), sizes(step, layout), strict=True):
            assert tokens <= row["input_ids"].shape[1] < tokens + BLOCK
    little = filling(one)
    monkeypatch.setattr(compiled, "DYNAMIC", False)
    assert little < 0.03 < 0.1 < filling(one)
    assert len(laid_out(one)[0].lengths) == 1
    assert len(laid_out(one, cards=2)[0].lengths) == 1


def test_a_length_costs_little_where_there_is_much_to_learn(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first steps stand for all of them.
    card(141)
    monkeypatch.setattr(layouts, "SEEN", 16)
    few = laid_out(recipe(batch_size=8, epoch=1))[0]
    many = laid_out(recipe(batch_size=8, epoch=1), [*CORPUS] * 400)[0]
    assert len(few.lengths) == 1 and len(many.lengths) > 1


# On a CPU, or a GPU without a compiler


def test_a_cpu_pads_what_shares_little_and_shares_what_shares_much() -> None:
    one = recipe(batch_size=4)
    layout, saved, way = laid_out(one, pairs(100), shape=TOY, device=CPU)
    assert layout == Layout("padded", CPU_BATCH, PAD, sequences=4) and saved == 1 and way.fits
    assert laid_out(recipe(batch_size=1), shape=TOY, device=CPU)[0] == Layout("padded", LONGEST, PAD, sequences=1)
    assert laid_out(one, shape=TOY, device=CPU)[0] == Layout("tree", 2048, PAD), "rows of 1,300 tokens hold one item"
    layout, saved, way = laid_out(one, SHORTER, device=CPU)
    assert layout.kind == "tree" and layout.tokens in CPU_TREES and way.fits
    raw = sum(len(example.ids) for example in SHORTER)
    steps = steps_of(one, examples=SHORTER)
    assert saved == pytest.approx(raw / sum(sum(sizes(step, layout)) for step in steps)) and saved > WORTHWHILE
    # What does not share is not worth a tree.
    assert laid_out(recipe(batch_size=2), pairs(100), device=CPU)[0].kind == "padded"


def test_on_a_cpu_too_the_recipe_may_insist() -> None:
    layout, saved, _ = laid_out(recipe(share_prefixes="on"), shape=TOY, device=CPU)
    assert layout.kind == "tree" and layout.tokens >= LONGEST and saved > 1, "the longest item has room"
    layout, saved, _ = laid_out(recipe(share_prefixes="off"), SHORTER, device=CPU)
    assert layout.kind == "padded" and saved == 1


@pytest.mark.parametrize("share", ["auto", "on", "off"])
def test_a_gpu_without_a_compiler_pads(share: str, card: Card) -> None:
    one = recipe(batch_size=2, method="qlora", share_prefixes=share)
    for gib, checkpointing in ((141, False), (16, True)):
        card(gib)
        layout, saved, way = laid_out(one, compiled=False)
        assert layout == Layout("padded", 2 * LONGEST, PAD, sequences=2) and saved == 1
        assert way.checkpointing == checkpointing and not way.dequantised


# Scoring

PROMPTS = [example.ids[: example.answer_start] for example in CORPUS]


def test_scoring_on_a_cpu() -> None:
    shorter = [example.ids[: example.answer_start] for example in SHORTER]
    assert scoring_layout(shorter, TOY, PAD, CPU, False) == Layout("tree", CPU_TREES[-1], PAD)
    assert scoring_layout(shorter, BLLOSSOM, PAD, CPU, False) == Layout("tree", CPU_TREES[-1], PAD)
    assert scoring_layout(shorter, BLLOSSOM, PAD, GPU, False) == Layout("padded", CPU_BATCH, PAD)
    unlike = [(number,) * 1000 for number in range(20)]
    assert scoring_layout(unlike, BLLOSSOM, PAD, CPU, False).kind == "padded"


def test_scoring_on_a_gpu(card: Card) -> None:
    for gib in (120, 10, 1, 0.01):
        card(gib)
        layout = scoring_layout(PROMPTS, BLLOSSOM, PAD, GPU, True)
        rows = sizes(PROMPTS, layout)
        # Rows of one prompt share nothing.
        assert layout.kind == ("tree" if gib >= 1 else "single") and layout.tokens <= GPU_SCORING
        assert layout.lengths[-1] >= max(rows) and all(length % BLOCK == 0 for length in layout.lengths)
        assert layout.tokens >= max(map(len, PROMPTS)), "each prompt fits"
        taken = memory.scoring_memory(BLLOSSOM, "lora", layout.tokens, "tree").activations
        assert taken <= gib * GIB / 2 or layout.tokens == max(map(len, PROMPTS))
    assert scoring_tokens(BLLOSSOM, 120 * GIB) > GPU_SCORING > scoring_tokens(BLLOSSOM, GIB) >= BLOCK
    assert scoring_tokens(BLLOSSOM, 0) == BLOCK
    card(120)
    # 51,000 tokens in two rows, of one length where layers are compiled for each; unlike prompts have their own rows.
    layout = scoring_layout(PROMPTS, BLLOSSOM, PAD, GPU, True)
    assert len(rows := sizes(PROMPTS, layout)) == 2
    assert few_lengths(layout, PROMPTS, BLLOSSOM, GPU) == replace(layout, lengths=(-(-max(rows) // BLOCK) * BLOCK,))
    unlike = [(number,) * (900 + number) for number in range(20)]
    layout = Layout("single", GPU_SCORING, PAD, range(BLOCK, 1024 + BLOCK, BLOCK))
    assert scoring_layout(unlike, BLLOSSOM, PAD, GPU, True) == layout


# Orders
