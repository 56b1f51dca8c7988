"""Our own cases of `run.bench`: the training of `run.train` and the scoring of `run.test`, timed."""

import functools
import itertools
import json
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from src import task
from src.data import parse_items
from src.model import ranks
from src.model.load import add_adapter
from src.model.memory import recomputed
from src.model.recipes import Recipe, make_recipe
from src.model.shards import shard
from src.prompt.encode import Example
from src.score.letters import LetterScorer
from src.score.shared import score_shared
from src.toy import corpus
from src.toy.bench_cases import GROWTH, LORA, Case
from src.toy.bench_clock import Clock, endless_arguments, train_by_clock
from src.toy.bench_inputs import SEED, lengthened, mixed_lengths
from src.toy.bench_setting import Setting
from src.train.arguments import has_fp32_masters
from src.train.checkpoints import Place
from src.train.fixed_rows import Signature, signature
from src.train.guard import check_rows_against_single
from src.train.log import lengths_words
from src.train.objectives import Objective, make_objective
from src.train.order import epoch_steps
from src.train.ranks import step_shares
from src.train.sharded import choose_layout
from src.train.trainer import Encoded, LetterTrainer, make_trainer
from src.tree import layouts
from src.tree.compiled import rows_on_gpu
from src.tree.rows import Layout, sizes

SCORED_ON_CPU = 24
"""Items of the scoring cases on a CPU; a GPU gets the whole test split."""
ROW_ON_CPU = 4096
"""Tokens of its rows on a CPU."""
MOST_WARM = 60
"""Most steps of warm-up, in case rows of some length never come up."""
QUIET = 8
"""Captured steps that the warm-up goes on for after one of a new kind."""


def recipe_of(case: Case, setting: Setting) -> Recipe:
    """The recipe that a case stands for."""
    values = {
        "backbone": setting.short,
        "method": case.method,
        "lora_dropout": case.dropout,
        "batch_size": max(case.items, ranks.world()),
        "order": "dialogue" if case.items > 1 else "shuffled",
        "objective": case.objective,
        "epoch": 8,
        "fsdp": "on" if case.sharded else "off",
        "seed": SEED,
        **LORA,
        **({"orpo_nll": "prompt", "loss_per": "token"} if case.name == "orpo-16-trl-loss" else {}),
    }
    return make_recipe(values, "bench")


class CountedSteps(TrainerCallback):
    """Tells the clock what each of our steps computes, in the order in which they are laid out. The clock warms up
    until rows of all lengths have been compiled, and captured steps of `QUIET` in a row were of a kind seen before.
    Layers that are compiled once for all lengths are compiled for each number of copies of a row's keys.
    """

    def __init__(self, clock: Clock, trainer: LetterTrainer) -> None:
        self.clock, self.trainer, few = clock, trainer, trainer.layout.lengths
        self.any_length = isinstance(few, range)
        self.compiled: set[int] = set()
        self.missing = set() if self.any_length else set(few)
        self.kinds: set[Signature] = set()
        self.steps: deque[tuple[int, int, int, set[int], Signature]] = deque()
        collate: Any = trainer.data_collator

        def watched(examples: list[Example]) -> Any:
            batch = collate(examples)
            rows = batch["rows"]
            # A pair counts as two sequences, though both pairs of an item share the right answer's.
            pairs = [(one.ids, wrong) for one in examples for wrong in one.rejected]
            raw = sum(map(len, itertools.chain(*pairs))) if pairs else sum(len(one.ids) for one in examples)
            # Where rows begin with one token, the first one's subtree is all of the row but its padding.
            trees = bool(rows) and "end" in rows[0]  # a rank may have no items of a last step
            computed = sum(int(row["end"][0]) for row in rows) if trees else raw
            forms = {row["copies"][1] if self.any_length else row["input_ids"].shape[1] for row in rows}
            kind = signature(rows) if trainer.layout.lengths else ()
            self.steps.append((len(pairs) or len(examples), raw, computed, forms, kind))
            return batch

        trainer.data_collator = watched

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        items, raw, unique, forms, kind = self.steps.popleft()
        clock, fresh = self.clock, self.trainer.graphs is not None and kind not in self.kinds
        new = forms - self.compiled
        if ranks.is_first() and (fresh or new):
            what = "copies of keys" if self.any_length else "tokens"
            print(
                f"warm-up: step {clock.laps + 1} has new rows, {new or forms} {what}, done after {clock.age:.0f} s",
                flush=True,
            )
        self.compiled |= forms
        self.missing -= forms
        self.kinds.add(kind)
        if clock.laps < clock.warm and clock.laps + 1 < MOST_WARM:
            more = max(ranks.gathered(QUIET if fresh else 1 if self.missing or (self.any_length and new) else 0))
            clock.warm = max(clock.warm, clock.laps + 1 + more) if more else clock.warm
        clock.count(items, raw, unique)
        control.should_training_stop = clock.lap()


def our_training(case: Case, setting: Setting, clock: Clock) -> str:
    """`case.items` items a step, with the layout, memory plan, guard and loop of `run.train`."""
    recipe, device = recipe_of(case, setting), setting.device
    objective = make_objective(recipe)
    examples = objective.examples(setting.encoder, setting.train)
    steps = step_shares(examples, epoch_steps(examples, recipe))
    positions = functools.partial(objective.logit_positions, examples)
    work = layouts.TrainingSteps(recipe, setting.shape, examples, steps, setting.encoder.pad_id, positions)
    chosen = choose_layout(work, device, rows_on_gpu(device))
    memory = chosen.memory
    # NF4 weights dequantised once are bf16 weights; their values do not matter here.
    nf4 = setting.dtype if case.method == "qlora" and not memory.dequantised else None
    network = setting.model(
        torch.float32 if has_fp32_masters(recipe, memory) else setting.dtype, setting.attention, nf4=nf4, double=True
    )
    if case.method != "full":
        network = add_adapter(network, recipe)
    elif memory.cards > 1:
        shard(network, device, setting.dtype)
    if case.items == 1:  # nothing is shared, and what counts is how long the timed items are
        examples = one_of_each_kind(examples, objective, chosen.layout) + mixed_lengths(examples)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(network, recipe, Encoded(setting.encoder, examples), Place.at(Path(folder)), chosen)
        for name, value in endless_arguments(device).items():
            if name != "bf16":
                setattr(trainer.args, name, value)
        if case.items == 1:
            trainer.args.train_sampling_strategy = "sequential"
        clock.guard = guard = check_rows_against_single(trainer)
        train_by_clock(trainer, clock, CountedSteps(clock, trainer))
    tokens = int(clock.counts["unique_tokens"]) / clock.steps if case.items == 1 else trainer.layout.tokens
    again = recomputed(trainer.memory or memory, setting.shape, tokens)
    clock.facts = {
        "optimizer": trainer.optimizer_name,
        "dequantised": memory.dequantised,
        "recomputed": again,
        "captured": trainer.captured,
        # With many items a step, steps are about equally long.
        **(clock.seconds_by_tokens() if case.items == 1 and not ranks.several() else {}),
    }
    notes = [
        f"{trainer.layout.kind} rows{lengths_words(trainer.layout)}",
        memory.optimizer if case.method == "full" else "",
        f"sharded over {memory.cards}" if memory.cards > 1 else "",
        "dequantised once" if memory.dequantised else "",
        f"checkpointing of {again:.0%} of the layers" if again else "",
        trainer.captured if device.type == "cuda" else "",
        "" if guard is None or guard["agree"] else f"guard failed: {guard}",
    ]
    return ", ".join(text for text in notes if text)


def one_of_each_kind(examples: Sequence[Example], objective: Objective, layout: Layout) -> list[Example]:
    """An example for each kind of step of one item, so that the warm-up has had them all; none on a CPU, where nothing
    is compiled.
    """
    kinds = {signature(objective.collate([one], layout)): one for one in examples} if layout.lengths else {}
    return list(kinds.values())


def our_scoring(case: Case, setting: Setting, clock: Clock) -> str:
    """The test split in `case.orders` orders; a step is one pass over it."""
    network = setting.model_for_scoring()
    items = setting.test if setting.device.type == "cuda" else setting.test[:SCORED_ON_CPU]
    examples = setting.encoder.for_scoring(items, task.current().orders(case.orders))
    prompts = [one.ids for one in examples]
    ready = rows_on_gpu(setting.device)
    layout = layouts.scoring_layout(prompts, setting.shape, setting.encoder.pad_id, setting.device, ready)
    raw = sum(map(len, prompts))
    unique = raw if layout.kind == "padded" else sum(sizes(prompts, layout))
    scorer = LetterScorer(network, setting.encoder.letter_ids or (), setting.encoder.pad_id)
    clock.begin()
    for _ in itertools.count():
        how = score_shared(examples, scorer.score).how
        computed = raw if how.kind == "padded" else unique
        clock.count(len(items), raw, computed if ranks.is_first() else 0, len(examples))  # the clock adds up ranks'
        if clock.lap():
            break
    clock.guard = how.as_record()["guard"]
    notes = [f"{len(items)} items, {how.kind} rows{lengths_words(layout)}", setting.scored_in]
    return ", ".join(text for text in notes if text)


def our_growth(case: Case, setting: Setting, clock: Clock) -> str:
    """Trees of more and more test splits, each of other dialogues, scored twice and timed the second time.

    Fills `clock.points`. A CPU takes the first `SCORED_ON_CPU` items of each split, and trees even where it would be
    quicker without them.
    """
    network, cuda = setting.model_for_scoring(), setting.device.type == "cuda"
    shape, pad_id = setting.shape, setting.encoder.pad_id
    asked: dict[str, Any] = {} if cuda else {"kind": "tree", "batch_tokens": ROW_ON_CPU}
    scorer = LetterScorer(network, setting.encoder.letter_ids or (), pad_id)
    prompts: list[Example] = []
    clock.warm, clock.least, clock.limit = 1, len(GROWTH), 0.0
    clock.begin()
    clock.lap()
    for times in range(1, GROWTH[-1] + 1):
        raw = lengthened(corpus.make_corpus(SEED + times)["test"], "test", SEED + times)
        items = [replace(item, id=f"{times}-{item.id}") for item in parse_items(json.dumps(raw).encode(), "made")[0]]
        prompts += setting.encoder.for_scoring(items if cuda else items[:SCORED_ON_CPU])
        if times not in GROWTH:
            continue
        ids = [one.ids for one in prompts]
        layout = Layout("tree", ROW_ON_CPU, pad_id)
        if cuda:
            layout = layouts.scoring_layout(ids, shape, pad_id, setting.device, rows_on_gpu(setting.device))
        unique = sum(sizes(ids, layout))
        for _ in range(2):
            started = time.monotonic()
            how = scorer.score(prompts, **asked).how
        clock.points.append((unique, time.monotonic() - started))
        clock.count(len(prompts), sum(map(len, ids)), unique)
        clock.lap()
    clock.seconds = sum(seconds for _, seconds in clock.points)
    clock.guard = how.as_record()["guard"]
    return ", ".join(f"{tokens:,} tokens {seconds:.1f} s" for tokens, seconds in clock.points)
