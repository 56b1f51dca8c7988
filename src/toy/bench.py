"""What `run.bench` measures: a function for each row of its table, and the clock that counts and times its steps.

What is measured with, a corpus and backbones of the true sizes, is made by src/toy/bench_inputs.py.

A row is a way to train or to score: the entry's, stock Hugging Face as its commands were; TRL's `SFTTrainer` with its
defaults; and ours. `ours_training` and `ours_scoring` are the only places that know ours.
"""

import itertools
import json
import math
import resource
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import is_flash_attn_2_available

from src.data import Item, parse_items
from src.model import load as models
from src.model import shapes
from src.model.recipes import ORPO, Recipe, make_recipe
from src.prompt.encode import Encoder, Example
from src.prompt.prompts import ORDERS
from src.score.letters import LetterScorer
from src.toy import corpus
from src.toy.bench_inputs import SEED, lengthened, make_model
from src.train.guard import guarded
from src.train.pairs import text_pairs
from src.train.trainer import LetterTrainer, make_trainer, mixed, training_examples
from src.tree import layouts
from src.tree.rows import Layout, rows_on_gpu, sizes

LORA = {"lora_r": 6, "lora_alpha": 8}
"""The entry's published shape, in every row with adapters."""
SCORED_ON_CPU = 24
"""Items of the scoring rows on a CPU; a GPU gets the whole test split."""


@dataclass(frozen=True)
class Row:
    """One way to train or to score.

    kind: "training" or "scoring"; base: the entry's row that its ratio is taken to
    items: items of an optimizer step; orders: orders that each item is scored in
    flops: useful FLOPs per linear weight and computed token; recomputing is work, but no use
    cpu: whether a CPU measures it without being asked; asked: whether it is only measured when it is
    """

    name: str
    kind: str
    base: str
    flops: int
    what: str
    method: str = "lora"
    items: int = 1
    dropout: float = 0.0
    orders: int = 1
    objective: str = "answer"
    cpu: bool = True
    asked: bool = False


# Laid out by hand: a row is its values and its sentence, then what differs from the defaults.
ROWS = {
    row.name: row
    for row in (
        Row("entry", "training", "entry", 4,
            "the entry's run.train: NF4 with fp16 compute, eager attention, checkpointing, one item a step, all logits",
            method="qlora", dropout=0.05),
        Row("entry-full", "training", "entry-full", 6,
            "the entry's run.train_base: all parameters, AdamW in bf16, checkpointing, one item a step, all logits",
            method="full"),
        Row("trl", "training", "entry", 4, "TRL's SFTTrainer, its defaults, prompt and completion, LoRA on bf16",
            dropout=0.05),
        Row("lora-64", "training", "entry", 4, "ours: LoRA, 64 items a step by dialogue, dropout 0",
            items=64, cpu=False),
        Row("lora-64-dropout", "training", "entry", 4, "ours: LoRA, 64 items a step by dialogue, dropout .05",
            items=64, dropout=0.05, cpu=False),
        Row("qlora-64", "training", "entry", 4, "ours: QLoRA, 64 items a step by dialogue, dropout 0",
            method="qlora", items=64, cpu=False),
        Row("lora-16", "training", "entry", 4, "ours: LoRA, 16 items a step by dialogue, dropout 0", items=16),
        Row("lora-1", "training", "entry", 4, "ours: LoRA, one item a step, dropout 0"),
        Row("full-1", "training", "entry-full", 6, "ours: all parameters, one item a step", method="full", asked=True),
        Row("full-16", "training", "entry-full", 6, "ours: all parameters, 16 items a step by dialogue",
            method="full", items=16),
        Row("trl-orpo", "training", "trl-orpo", 4, "TRL's ORPOTrainer, its defaults, LoRA on bf16; items are pairs",
            dropout=0.05, objective=ORPO, asked=True),
        Row("orpo-16", "training", "trl-orpo", 4,
            "ours: ORPO, LoRA, 16 items a step by dialogue, both pairs of each; items are pairs",
            items=16, dropout=0.05, objective=ORPO, asked=True),
        Row("orpo-16-trl-loss", "training", "trl-orpo", 4,
            "the same with the loss that TRL has: over the prompt, too, and per token",
            items=16, dropout=0.05, objective=ORPO, asked=True),
        Row("orpo-full-16", "training", "orpo-full-16", 6,
            "ours: ORPO, all parameters, 16 items a step by dialogue, both pairs of each; items are pairs",
            method="full", items=16, objective=ORPO, asked=True),
        Row("entry-score", "scoring", "entry-score", 2, "the entry's run.test: one item a forward, all logits, bf16"),
        Row("score-1", "scoring", "entry-score", 2, "ours: the test split in one order"),
        Row("score-6", "scoring", "entry-score", 2, "ours: the test split in six orders, each counted", orders=6),
        Row("growth", "scoring", "entry-score", 2, "ours: 1 to 16 test splits in one order", cpu=False, asked=True),
    )
}  # fmt: skip


# Measuring

COUNTS = ("items", "sequences", "raw_tokens", "unique_tokens")


class Clock:
    """Counts and times steps: `warm` of them first, then `least` or more until `seconds` are over.

    The caller calls `begin` when the model is made, tells with `count` (or lets `watch` see) what a step computes, and
    calls `lap` when it is done.
    """

    def __init__(self, device: torch.device, seconds: float, warm: int = 1, least: int = 2) -> None:
        self.device, self.limit, self.warm, self.least = device, seconds, warm, least
        self.laps = 0
        self.warm_seconds = self.seconds = 0.0
        self.counts: dict[str, Any] = dict.fromkeys(COUNTS, 0)
        self.points: list[tuple[int, float]] = []
        """Of the row that measures how time grows: (tokens computed, seconds)."""
        self.guard: dict[str, Any] | None = None
        """What the guard of our rows found."""

    def begin(self) -> None:
        """Starts the warm-up. Peak memory counts from here, so that it is of training and not of making weights."""
        self._wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._started = time.monotonic()

    def count(self, items: Any, raw: Any, unique: Any = None, sequences: Any = None) -> None:
        """Adds to this step: items; their sequences, by default as many; the sum of the sequences' lengths; tokens
        computed, by default the same. Padding counts nowhere. Tensors are read at the end, so that nothing waits.
        """
        new = (items, items if sequences is None else sequences, raw, raw if unique is None else unique)
        self.counts = {name: self.counts[name] + one for name, one in zip(COUNTS, new, strict=True)}

    def watch(self, network: Any) -> None:
        """Counts what goes into `network`: rows of `attention_mask`, or rows that `position_ids` cuts."""

        def see(module: Any, positional: Any, inputs: dict[str, Any]) -> None:
            ids, mask, positions = (inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
            assert ids is not None, list(inputs)
            items = ids.shape[0] if positions is None else (positions == 0).sum()
            self.count(items, ids.numel() if mask is None else mask.sum())

        network.register_forward_pre_hook(see, with_kwargs=True)

    def lap(self) -> bool:
        """Ends a step; True when it was the last one."""
        self.laps += 1
        if self.laps < self.warm:
            return False
        if self.laps == self.warm:
            self._wait()
            self.warm_seconds = time.monotonic() - self._started
            self._started = time.monotonic()
            self.counts = dict.fromkeys(COUNTS, 0)
            return False
        if self.steps < self.least or time.monotonic() - self._started < self.limit:
            return False
        self._wait()
        self.seconds = time.monotonic() - self._started
        return True

    @property
    def steps(self) -> int:
        """Timed steps so far."""
        return self.laps - self.warm

    def result(self) -> dict[str, Any]:
        """Counts, seconds and the peak memory in bytes: of the GPU, or of the whole process on a CPU."""
        assert self.seconds > 0, "the last lap has not been"
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "steps": self.steps,
            **{name: int(count) for name, count in self.counts.items()},
            "seconds": self.seconds,
            "warm_seconds": self.warm_seconds,
            "peak_memory_bytes": peak,
            **({"points": self.points} if self.points else {}),
            **({"guard": self.guard} if self.guard else {}),
        }

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def matmul_peak(device: torch.device) -> float:
    """FLOP/s of a square product in the compute dtype, 8192 wide on a GPU: the median of ten after ten."""
    size = 8192 if device.type == "cuda" else 1024
    one, other = (torch.randn(size, size, device=device, dtype=models.compute_dtype(device)) for _ in range(2))
    times = []
    for _ in range(20):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        one @ other
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times[10:])


@dataclass(frozen=True)
class Setting:
    """What the rows of a call share. train, test: the lengthened splits."""

    short: str
    config: Any
    device: torch.device
    encoder: Encoder
    train: Sequence[Item]
    test: Sequence[Item]

    @property
    def fastest(self) -> str:
        """The fastest attention that transformers has for the backbone without further packages."""
        return shapes.FAMILIES[self.config.model_type].attention

    @property
    def dtype(self) -> torch.dtype:
        return models.compute_dtype(self.device)

    def model(self, dtype: torch.dtype, attention: str, nf4: torch.dtype | None = None, double: bool = False) -> Any:
        return make_model(self.config, self.device, dtype, attention, nf4, double)

    @cached_property
    def kept_for_scoring(self) -> str:
        """ "NF4" where weights in bf16 leave too little of the GPU to score with, else ""."""
        if self.device.type == "cpu":
            return ""
        return (
            "NF4" if 2 * shapes.Shape.of_config(self.config).parameters > 0.85 * layouts.free_bytes(self.device) else ""
        )

    def for_scoring(self) -> Any:
        nf4 = self.dtype if self.kept_for_scoring else None
        return self.model(self.dtype, self.fastest, nf4=nf4, double=True).eval()


def measure(row: Row, setting: Setting, seconds: float) -> dict[str, Any]:
    """Runs one row in this process and returns its counts, seconds, peaks and a note on what ran."""
    peak = matmul_peak(setting.device)
    warm, least = WARM_AND_LEAST[row.kind]
    clock = Clock(setting.device, seconds, warm if setting.device.type == "cuda" else 1, least)
    function = FUNCTIONS.get(row.name) or (ours_training if row.kind == "training" else ours_scoring)
    note = function(row, setting, clock)
    return {
        **asdict(row),
        **clock.result(),
        "matmul_flops": peak,
        "linear_parameters": shapes.Shape.of_config(setting.config).linear_parameters,
        "note": note,
    }


# The entry: stock Hugging Face


def entry_training(row: Row, setting: Setting, clock: Clock) -> str:
    """One item a step as Hugging Face's `Trainer` takes it: `labels` on the whole sequence, so all logits are made."""
    device, cuda = setting.device, setting.device.type == "cuda"
    if row.method == "full":
        network = setting.model(torch.bfloat16 if cuda else setting.dtype, setting.fastest)
        network.gradient_checkpointing_enable()
    else:
        network = setting.model(setting.dtype, "eager", nf4=torch.float16 if cuda else setting.dtype)
        network = get_peft_model(prepare_model_for_kbit_training(network), _lora(row))
    network.train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-5, weight_decay=0.0, fused=True)
    clock.watch(network)
    clock.begin()
    for one in itertools.cycle(spread(setting.encoder.for_training(setting.train))):
        ids = torch.tensor([one.ids], device=device)
        labels = ids.clone()
        labels[:, : one.answer_start] = -100
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            loss = network(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if clock.lap():
            break
    return ""


def entry_scoring(row: Row, setting: Setting, clock: Clock) -> str:
    """One item a forward, the logits of every token, three of them read. In NF4 where bf16 would not fit."""
    network = setting.for_scoring()
    clock.watch(network)
    clock.begin()
    with torch.no_grad():
        for one in itertools.cycle(spread(setting.encoder.for_scoring(setting.test))):
            logits = network(input_ids=torch.tensor([one.ids], device=setting.device)).logits[0, -1]
            assert setting.encoder.letter_ids is not None
            [logits[letter].item() for letter in setting.encoder.letter_ids]
            if clock.lap():
                break
    return setting.kept_for_scoring


def spread(examples: Sequence[Example]) -> list[Example]:
    """`examples` in an order of which every stretch holds short and long ones alike, so that seconds stand for all."""
    by_length = sorted(examples, key=lambda one: len(one.ids))
    stride = max(1, round(0.618 * len(by_length)))
    while math.gcd(stride, len(by_length)) > 1:
        stride += 1
    return [by_length[place * stride % len(by_length)] for place in range(len(by_length))]


def _lora(row: Row) -> LoraConfig:
    return LoraConfig(
        r=LORA["lora_r"],
        lora_alpha=LORA["lora_alpha"],
        lora_dropout=row.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


# TRL


def trl_training(row: Row, setting: Setting, clock: Clock) -> str:
    """`SFTTrainer` with its defaults. Its cut at 1,024 tokens is off, since it would cut the answers."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    cuda = setting.device.type == "cuda"
    padding_free = cuda and setting.config.model_type != "gemma2" and is_flash_attn_2_available()
    attention = "flash_attention_2" if padding_free else setting.fastest
    network = setting.model(setting.dtype, attention)
    rendered = [setting.encoder.prompt.render(item) for item in setting.train]
    pairs = [
        {
            "prompt": list(one.messages),
            "completion": [{"role": "assistant", "content": one.answers[item.label or 0]}],
        }
        for one, item in zip(rendered, setting.train, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder, max_length=None, padding_free=padding_free, **_never_ending(setting.device)
        )
        arguments._n_gpu = min(1, arguments.n_gpu)
        trainer = SFTTrainer(
            model=network,
            args=arguments,
            train_dataset=Dataset.from_list(pairs),
            processing_class=setting.encoder.tokenizer,
            peft_config=_lora(row),
        )
        clock.watch(trainer.model)
        _train(trainer, clock)
    form = "padding-free" if padding_free else "padded"
    batch = f"{arguments.per_device_train_batch_size} items a step"
    missing = "" if padding_free or not cuda else "; no flash-attention package for padding-free"
    return f"{batch}, {form}, {attention}, checkpointing{missing}"


def trl_orpo(row: Row, setting: Setting, clock: Clock) -> str:
    """`ORPOTrainer` with its defaults, on the right answer against each wrong one. Its cut is off, since it would cut
    the answers; its batch is halved where memory asks for it.
    """
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    encoder, recipe = setting.encoder, ours_recipe(row, setting)
    pairs = list(text_pairs(setting.train, recipe, encoder.prompt, encoder.chat_text, encoder.turn_end))
    longest = max(len(ids) for one in training_examples(recipe, encoder, setting.train) for ids in one.sequences)

    def see(module: Any, positional: Any, inputs: dict[str, Any]) -> None:
        # Right and wrong answers of the pairs stand one below the other.
        ids = inputs["input_ids"] if "input_ids" in inputs else positional[0]
        clock.count(len(ids) // 2, inputs["attention_mask"].sum())

    with tempfile.TemporaryDirectory() as folder:
        arguments = ORPOConfig(
            output_dir=folder,
            max_length=longest + 1,  # without one it takes 512
            auto_find_batch_size=True,
            **_never_ending(setting.device),
        )
        arguments._n_gpu = min(1, arguments.n_gpu)
        trainer = ORPOTrainer(
            model=setting.model(setting.dtype, setting.fastest),
            args=arguments,
            train_dataset=Dataset.from_list(pairs),
            processing_class=encoder.tokenizer,
            peft_config=_lora(row),
        )
        assert trainer.model is not None
        trainer.model.register_forward_pre_hook(see, with_kwargs=True)
        _train(trainer, clock)
    batch = trainer._train_batch_size
    halved = " (halved for memory)" if batch < arguments.per_device_train_batch_size else ""
    return f"{batch} pairs a step{halved}, padded, {setting.fastest}, checkpointing"


class _Laps(TrainerCallback):
    """Ends training when the clock says so."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        control.should_training_stop = self.clock.lap()


def _train(trainer: Any, clock: Clock) -> None:
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Laps(clock))
    clock.begin()
    trainer.train()


def _never_ending(device: torch.device) -> dict[str, Any]:
    """Arguments of a `Trainer` that steps until it is stopped and leaves nothing behind."""
    return {
        "max_steps": 10**6,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
        "use_cpu": device.type == "cpu",
        "bf16": device.type == "cuda",
        "dataloader_pin_memory": device.type == "cuda",
    }


# Ours


def ours_recipe(row: Row, setting: Setting) -> Recipe:
    """The recipe that asks for the row."""
    values = {
        "backbone": setting.short,
        "method": row.method,
        "lora_dropout": row.dropout,
        "batch_size": row.items,
        "order": "dialogue",
        "objective": row.objective,
        "epoch": 8,
        "seed": SEED,
        **LORA,
        **({"orpo_nll": "prompt", "loss_per": "token"} if row.name == "orpo-16-trl-loss" else {}),
    }
    return make_recipe(values, "bench")


class _Steps(TrainerCallback):
    """Tells the clock what each of our steps computes, in the order they are laid out. It warms up until rows of all
    lengths have been compiled.
    """

    def __init__(self, clock: Clock, trainer: LetterTrainer) -> None:
        self.clock, self.lengths = clock, set(trainer.layout.lengths)
        self.steps: deque[tuple[int, int, int, set[int]]] = deque()
        collate: Any = trainer.data_collator

        def watched(examples: list[Example]) -> Any:
            batch = collate(examples)
            rows = batch["rows"]
            # A pair is two sequences, though the right answer's is in both of an item's.
            pairs = [(one.ids, wrong) for one in examples for wrong in one.rejected]
            raw = sum(map(len, itertools.chain(*pairs))) if pairs else sum(len(one.ids) for one in examples)
            # Where rows begin with one token, the first one's subtree is all of the row but what fills it up.
            computed = sum(int(row["end"][0]) for row in rows) if "end" in rows[0] else raw
            lengths = {row["input_ids"].shape[1] for row in rows}
            self.steps.append((len(pairs) or len(examples), raw, computed, lengths))
            return batch

        trainer.data_collator = watched

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        items, raw, unique, lengths = self.steps.popleft()
        self.lengths -= lengths
        if self.lengths and self.clock.laps + 1 < MOST_WARM:
            self.clock.warm = max(self.clock.warm, self.clock.laps + 2)
        self.clock.count(items, raw, unique)
        control.should_training_stop = self.clock.lap()


def ours_training(row: Row, setting: Setting, clock: Clock) -> str:
    """`row.items` items a step, with the layout, memory plan, guard and loop of `run.train`."""
    recipe, device = ours_recipe(row, setting), setting.device
    examples = training_examples(recipe, setting.encoder, setting.train)
    shape = shapes.Shape.of_config(setting.config)
    steps = layouts.epoch_steps(examples, recipe)
    layout, _, way = layouts.training_layout(
        recipe, shape, examples, steps, setting.encoder.pad_id, device, rows_on_gpu(device)
    )
    # Dequantised once, NF4 is weights in bf16: any will do.
    nf4 = setting.dtype if row.method == "qlora" and not way.dequantised else None
    network = setting.model(
        torch.float32 if mixed(recipe, way) else setting.dtype, setting.fastest, nf4=nf4, double=True
    )
    if row.method != "full":
        network = models.add_adapter(network, recipe)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(network, recipe, setting.encoder, examples, [], [], Path(folder), layout, way)
        for name, value in _never_ending(device).items():
            if name != "bf16":
                setattr(trainer.args, name, value)
        clock.guard = guard = guarded(trainer, way.checkpointing)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Steps(clock, trainer))
        clock.begin()
        trainer.train()
    ways = [
        f"{trainer.layout.kind} rows{_of(trainer.layout)}",
        way.optimizer if row.method == "full" else "",
        "dequantised once" if way.dequantised else "",
        "checkpointing" if way.checkpointing else "",
        "" if guard is None or guard["agree"] else f"guard failed: {guard}",
    ]
    return ", ".join(text for text in ways if text)


def ours_scoring(row: Row, setting: Setting, clock: Clock) -> str:
    """The test split in `row.orders` orders; a step is one pass over it."""
    network = setting.for_scoring()
    items = setting.test if setting.device.type == "cuda" else setting.test[:SCORED_ON_CPU]
    examples = setting.encoder.for_scoring(items, ORDERS[: row.orders])
    prompts = [one.ids for one in examples]
    shape, ready = shapes.Shape.of_config(setting.config), rows_on_gpu(setting.device)
    layout = layouts.scoring_layout(prompts, shape, setting.encoder.pad_id, setting.device, ready)
    raw = sum(map(len, prompts))
    unique = raw if layout.kind == "padded" else sum(sizes(prompts, layout))
    scorer = LetterScorer(network, setting.encoder.letter_ids or (), setting.encoder.pad_id)
    clock.begin()
    for _ in itertools.count():
        how = scorer.score(examples).how
        clock.count(len(items), raw, raw if how.kind == "padded" else unique, len(examples))
        if clock.lap():
            break
    clock.guard = how.as_record()["guard"]
    ways = [f"{len(items)} items, {how.kind} rows{_of(layout)}", setting.kept_for_scoring]
    return ", ".join(text for text in ways if text)


def _of(layout: Layout) -> str:
    """The rows' lengths, as words behind `rows`."""
    return f" of {'/'.join(map(str, layout.lengths))}" if layout.lengths else ""


def ours_growth(row: Row, setting: Setting, clock: Clock) -> str:
    """Trees of ever more test splits, of other dialogues each, scored twice and timed the second time; `clock.points`.

    A CPU takes the first `SCORED_ON_CPU` items of each split, and rows of several, where it would be quicker without.
    """
    network, cuda = setting.for_scoring(), setting.device.type == "cuda"
    shape, pad_id = shapes.Shape.of_config(setting.config), setting.encoder.pad_id
    asked: dict[str, Any] = {} if cuda else {"kind": "tree", "batch_tokens": ROW_ON_CPU}
    scorer: LetterScorer | None = None
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
        scorer = scorer or LetterScorer(network, setting.encoder.letter_ids or (), pad_id)
        for _ in range(2):
            started = time.monotonic()
            how = scorer.score(prompts, **asked).how
        clock.points.append((unique, time.monotonic() - started))
        clock.count(len(prompts), sum(map(len, ids)), unique)
        clock.lap()
    clock.seconds = sum(seconds for _, seconds in clock.points)
    clock.guard = how.as_record()["guard"]
    return ", ".join(f"{tokens:,} tokens {seconds:.1f} s" for tokens, seconds in clock.points)


GROWTH = (1, 2, 4, 8, 16)
"""Test splits that the row `growth` scores."""
ROW_ON_CPU = 4096
"""Tokens of its rows on a CPU."""
MOST_WARM = 40
"""Steps of warm-up at most, should a length not come up."""
WARM_AND_LEAST = {"training": (2, 2), "scoring": (1, 1)}
"""Steps of warm-up, and timed steps at least. A CPU has nothing to compile: it warms up with one."""
FUNCTIONS: dict[str, Callable[[Row, Setting, Clock], str]] = {
    "entry": entry_training,
    "entry-full": entry_training,
    "trl": trl_training,
    "entry-score": entry_scoring,
    "trl-orpo": trl_orpo,
    "growth": ours_growth,
}
"""The rows with a function of their own."""
