"""Will it fit, how long will it take, how much disk does it need: answered before anything is downloaded.

What fits follows from the shape of a model (src/model/shapes.py) and from how many tokens its kind of tokenizer makes
of an item (src/plan/kinds.py). Times are scaled from steps that were timed on one GPU: estimates.
"""

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.console.start import find
from src.model.backbones import Backbone, backbones
from src.model.disk import GB, download_bytes
from src.model.hub import cached_file
from src.model.recipes import ORPO, Recipe
from src.model.shapes import ANSWER_TOKENS, GIB, Settled, Shape, flops, run_folder_bytes, scoring_memory, settle
from src.plan.kinds import item_tokens, kind_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

MB = 10**6

CARDS = (24, 48, 80, 141)
"""GiB of the usual cards, the columns of the table where there is no GPU."""


def parameters(recipe: Recipe) -> float | None:
    """Weights of the base model, None where they cannot be known without a download."""
    shape, facts, _ = known(recipe)
    return shape.parameters if shape is not None else facts.parameters if facts is not None else None


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

# Tokens a second that one GPU computes of an 8B Llama shape (bllossom), shared tokens once, by (what is done,
# checkpointing). Where a pair is not here, the FLOP rate of the other one is taken. They are the column "unique tok/s",
# on a card of the reference's peak, of
#     python -m run.bench --rows lora-1 full-1 score-1
# NF4 dequantised once is as fast as bf16. At one item a step the host decides, and short items pay more for it: with
# items of 978 tokens lora-1 made 6,765 to 8,988 on other machines.
RATES = {
    ("qlora", False): 4687,  # lora-1
    ("lora", False): 4687,  # lora-1
    ("full", False): 1795,  # full-1
    ("scoring", False): 39_632,  # score-1
}
RATES_LINEAR = 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336)
"""Linear weights of the model with which they were measured."""


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
    rate is that of one item a step in `RATES`, scaled by the bf16 peak. Evaluations are left out.
    """
    peak, reference = peak_tflops(device), peak_tflops(REFERENCE.name)
    if peak is None or reference is None:
        return None
    timed = (recipe.method, checkpointing)
    if timed not in RATES:
        timed = (recipe.method, not checkpointing)
    rate = RATES[timed] * RATES_LINEAR * flops(*timed) * peak / reference
    work = items * recipe.epoch * tokens_per_item * shape.linear_parameters * flops(recipe.method, checkpointing)
    return work / rate


def scoring_seconds(shape: Shape, items: int, computed_per_item: float, device: str) -> float | None:
    """Estimate of scoring `items` items in one order, each of which adds so many tokens to those that are shared; None
    for a GPU that is not known.
    """
    peak, reference = peak_tflops(device), peak_tflops(REFERENCE.name)
    if peak is None or reference is None:
        return None
    rate = RATES["scoring", False] * RATES_LINEAR * peak / reference
    return items * computed_per_item * shape.linear_parameters / rate


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
    tokens: int | None
    """Of a training item in the mean, as assumed; None for a miniature, whose tokenizer is like no other."""
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
    miniature: bool


def plan_rows(recipes: Sequence[Recipe], items: Mapping[str, int], gpu: Gpu | None = None) -> list[PlanRow]:
    """What each recipe needs, for `items` items of each split, on `gpu`; without one on an H200 and by size of card.
    Items are taken to be as long as the official corpus's are for the kind of tokenizer.
    """
    here = gpu or REFERENCE
    sizes = {here.name: here.free_bytes} if gpu else {str(size): size * GIB for size in CARDS}
    return [_row(recipe, items, here, sizes) for recipe in recipes]


def _row(recipe: Recipe, items: Mapping[str, int], here: Gpu, sizes: Mapping[str, int]) -> PlanRow:
    shape, facts, place = known(recipe)
    kind = kind_of(recipe, shape)
    mean_tokens, longest = item_tokens(kind, recipe.prompt)
    # Preference pairs have wrong answers, too; the prompt counts once.
    wrong = 0 if recipe.objective != ORPO else 2 if recipe.orpo_pairs == "both" else 1
    trained = mean_tokens + wrong * ANSWER_TOKENS
    longest += wrong * ANSWER_TOKENS
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
            reading = scoring_seconds(shape, scored, mean_tokens / kind.scoring_ratio, here.name)
            seconds = None if training is None or reading is None else training + reading
    return PlanRow(
        run=recipe.name,
        model_id=recipe.model_id,
        licence=recipe.licence or (facts.licence if facts else None),
        commercial=facts.commercial if facts else None,
        gated=facts.gated if facts else None,
        method=recipe.method,
        words=recipe.method_words,
        tokens=None if shape is None or place == "miniature" else mean_tokens,
        download=download_bytes(recipe),
        weights=weights,
        settled=settled,
        cards=cards,
        disk=disk,
        seconds=seconds,
        note="; ".join(text for text in (place, facts.note if facts else "") if text),
        miniature=place == "miniature",
    )


def plan_table(rows: Sequence[PlanRow]) -> "RenderableType":
    """The plan as a table to print, with what each base model is below it; what cannot be known is a question mark.
    Of miniatures on a machine without a GPU it says what they take here, which is next to nothing.
    """
    from rich.console import Group

    from src.console.tables import Fitted

    cards = next((list(row.cards) for row in rows if row.cards), [])
    by_size = cards == [str(size) for size in CARDS]
    if by_size and all(row.miniature for row in rows):
        table, lines = _toy_table(rows), ["miniatures: nothing to download, and minutes on a CPU"]
    else:
        table, lines = _gpu_table(rows, cards, by_size)
    return Group(Fitted(table), "", "\n".join([*lines, *map(_facts_line, rows)]))


def _gpu_table(rows: Sequence[PlanRow], cards: Sequence[str], by_size: bool) -> tuple["Table", list[str]]:
    """(table, what its columns mean) for the GPU at hand, or `by_size` of card where there is none."""
    from rich.markup import escape
    from rich.table import Table

    from src.console.tables import frameless

    place = cards[0] if cards and not by_size else REFERENCE.name
    table = frameless(Table(title=f"Plan for one {escape(place)}, estimated", title_justify="left", title_style="bold"))
    for name in ("run", "method"):
        table.add_column(name, no_wrap=True)
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
    return table, lines


def _toy_table(rows: Sequence[PlanRow]) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    from src.console.tables import frameless

    table = frameless(Table(title="Plan for a CPU, estimated", title_justify="left", title_style="bold"))
    table.min_width = len(str(table.title))
    for name in ("run", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("base\nMB", "disk\nMB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(f"[bold]{escape(row.run)}[/]", row.words, _number(row.weights, MB), _number(row.disk, MB))
    table.add_section()
    table.add_row("all", "", "", _number(_sum([row.disk for row in rows]), MB))
    return table


def _facts_line(row: PlanRow) -> str:
    """What the base model of a run is, its licence first of all."""
    from rich.markup import escape

    facts = [escape(row.model_id)]
    facts += [] if row.miniature and not row.licence else [f"licence {escape(row.licence or '?')}"]
    facts += ["[bold red]no commercial use[/]"] if row.commercial is False else []
    facts += ["[bold red]gated[/]"] if row.gated else []
    facts += [f"about {row.tokens:,} tokens an item"] if row.tokens else []
    facts += [escape(row.note)] if row.note else []
    return f"[bold]{escape(row.run)}[/]: {', '.join(facts)}"


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


def known(recipe: Recipe) -> tuple[Shape | None, Backbone | None, str]:
    """(shape, row of the table of backbones, kind of folder) of the base model, as far as known without a download."""
    facts = backbones().get(recipe.backbone)
    folder = Path(find(recipe.model_id))
    if folder.is_dir():
        shape = _shape_in(folder / "config.json")
        # A folder under a backbone's short name but of another size is its miniature, and not under its licence.
        same = facts is not None and shape is not None and abs(shape.parameters / facts.parameters - 1) < 0.05
        small = facts is not None and shape is not None and not same
        return shape, facts if same else None, "miniature" if small or "miniature" in folder.parts else "local folder"
    if facts is not None and facts.model_id == recipe.model_id:
        return Shape.of_backbone(facts), facts, ""
    config = cached_file(recipe.model_id, "config.json", recipe.revision)
    return (_shape_in(config) if config else None), None, ""


def _shape_in(config: Path) -> Shape | None:
    try:
        return Shape.of_json(json.loads(config.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # loading the model will say what is wrong with it
        return None
