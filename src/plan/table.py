"""The plan as a table to print: what each run needs, and what its base model is."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.model.devices import REFERENCE
from src.model.disk import GB
from src.model.memory import MemoryPlan
from src.model.recipes import BF16_STOCHASTIC, FP32, FP32_8BIT
from src.model.shapes import GIB
from src.plan.communication import COUNTS
from src.plan.estimates import CARDS, TOGETHER, USUAL, Estimate
from src.plan.speeds import measured, measured_with

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

MB = 10**6
SHORT = {FP32: "fp32", FP32_8BIT: "8bit", BF16_STOCHASTIC: "bf16"}
"""Optimizers in a cell."""


def plan_table(estimates: Sequence[Estimate]) -> "RenderableType":
    """The table, with a line about each base model below it. A question mark stands for what cannot be known. That of
    miniatures alone is short: neither GPU memory nor hours matter for them.
    """
    from rich.console import Group
    from rich.markup import escape

    from src.console.tables import Fitted

    if estimates and all(one.miniature for one in estimates):
        place = ", ".join(sorted({str(Path(one.model_id).parent) for one in estimates}))
        told = f"toy models from {place}: nothing to download, and a minute or less each on a CPU core"
        return Group(Fitted(_toy_table(estimates)), "", escape(told))
    cards = next((list(one.cards) for one in estimates if one.cards), [])
    by_size = cards == [*map(str, CARDS), TOGETHER]
    table, lines = _gpu_table(estimates, cards, by_size)
    lines += [*_elsewhere(estimates), *_communication(estimates)] if by_size else []
    return Group(Fitted(table), "", "\n".join([*lines, *map(_facts_line, estimates)]))


def _gpu_table(estimates: Sequence[Estimate], cards: Sequence[str], by_size: bool) -> tuple["Table", list[str]]:
    """(table, what its columns mean) for the GPU at hand, or `by_size` of card where there is none."""
    from rich.markup import escape

    place = cards[0] if cards and not by_size else REFERENCE.name
    table = _titled(f"Plan for one {escape(place)}, estimated")
    for name in ("fetch\nGB", "base\nGiB", "train\nGiB", "disk\nGB", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in cards:
        table.add_column(f"{name}\nGiB" if by_size else "fits", min_width=4)
    for one in estimates:
        table.add_row(
            f"[bold]{escape(one.run)}[/]",
            one.method_words,
            _number(one.download, GB),
            _number(one.weights, GIB),
            _number(one.training.memory.total if one.training else None, GIB),
            _number(one.disk, GB),
            _number(one.seconds, 3600),
            *(
                _fits_cell(one.method, one.cards[name], f"{one.gpus}× " * (one.gpus > 1 and not by_size))
                if one.cards
                else "?"
                for name in cards
            ),
        )
    table.add_section()
    download = _sum(list({one.model_id: one.download for one in estimates}.values()))
    disk, seconds = _sum([one.disk for one in estimates]), _sum([one.seconds for one in estimates])
    table.add_row("all", "", _number(download, GB), "", "", _number(disk, GB), _number(seconds, 3600))
    return table, _legend(place, by_size, full=any(one.method == "full" for one in estimates))


def _legend(place: str, by_size: bool, full: bool) -> list[str]:
    lines = [
        "fetch: left to download; base: the weights when scoring; train: peak of GPU memory",
        "disk: best weights and two checkpoints; the older goes when the newer is whole",
        "hours: one item after the other; ckpt: with gradient checkpointing",
        f"hours are scaled from steps measured on {measured_with(measured())}",
    ]
    if full:
        names = [short if short == name else f"{short} ({name})" for name, short in SHORT.items()]
        lines.append(f"full by its optimizer: {', '.join(names)}")
    if by_size:
        lines.append(f"no GPU here: train, disk, hours are those of one {place}; right: cards by size")
        lines.append(f"{TOGETHER}: two cards share the run; full by FSDP2, with the GiB that each has at its peak")
    return lines


def _elsewhere(estimates: Sequence[Estimate]) -> list[str]:
    """The line on the usual cards: hours of the runs that fit on each."""
    found = []
    for name, size in USUAL.items():
        there = [one.elsewhere[name] for one in estimates if name in one.elsewhere]
        if there:
            found.append(f"{name} ({size} GiB) {_number(sum(there), 3600)} for {len(there)} of {len(estimates)} runs")
    return [f"hours elsewhere, of what fits: {'; '.join(found)}"] if found else []


def _communication(estimates: Sequence[Estimate]) -> list[str]:
    """Lines on what cards that share a run tell each other; the slowest of the runs of each kind stands for them."""
    found = []
    for full, words in ((True, "full, sharded: a row"), (False, "adapters: a step")):
        some = [one for one in estimates if one.communication and (one.method == "full") == full]
        if not some:
            continue
        slowest = max(some, key=lambda one: max(map(max, one.communication.values())))
        counts = "/".join(map(str, COUNTS))
        told = [
            f"{link} {'/'.join(f'{seconds:.2g}' for seconds in times)} s"
            for link, times in slowest.communication.items()
        ]
        found.append(f"{words} communicates on {counts} cards at least, by bytes (not measured): {', '.join(told)}")
    return found


def _toy_table(estimates: Sequence[Estimate]) -> "Table":
    from rich.markup import escape

    table = _titled("Plan for toy models, estimated")
    table.min_width = len(str(table.title))
    for name in ("base\nMB", "disk\nMB"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in estimates:
        table.add_row(f"[bold]{escape(one.run)}[/]", one.method_words, _number(one.weights, MB), _number(one.disk, MB))
    table.add_section()
    table.add_row("all", "", "", _number(_sum([one.disk for one in estimates]), MB))
    return table


def _titled(title: str) -> "Table":
    """A table with the columns that every plan has."""
    from rich.table import Table

    from src.console.tables import frameless

    table = frameless(Table(title=title, title_justify="left", title_style="bold"))
    for name in ("run", "method"):
        table.add_column(name, no_wrap=True)
    return table


def _fits_cell(method: str, plan: MemoryPlan, many: str = "") -> str:
    if not plan.fits:
        return "[red]no[/]"
    first = SHORT[plan.optimizer] if method == "full" else "yes"
    each = f" {_number(plan.memory.total, GIB)}" if plan.cards > 1 else ""
    return f"[green]{many}{first}{' ckpt' if plan.checkpointing else ''}{each}[/]"


def _facts_line(one: Estimate) -> str:
    """Facts about the base model of a run, its licence first."""
    from rich.markup import escape

    facts = [escape(one.model_id)]
    facts += [] if one.miniature and not one.licence else [f"licence {escape(one.licence or '?')}"]
    facts += ["[bold red]no commercial use[/]"] if one.commercial is False else []
    facts += ["[bold red]gated[/]"] if one.gated else []
    facts += [f"about {one.tokens:,} tokens an item"] if one.tokens else []
    facts += [escape(one.note)] if one.note else []
    return f"[bold]{escape(one.run)}[/]: {', '.join(facts)}"


def _sum(values: Sequence[float | None]) -> float | None:
    """None when one of the values is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _number(value: float | None, unit: int) -> str:
    """`value` in units of `unit`, with one decimal."""
    if value is None:
        return "?"
    return "0" if value == 0 else f"{value / unit:.1f}" if value >= unit / 20 else "<0.1"
