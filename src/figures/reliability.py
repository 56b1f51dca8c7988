"""Reliability diagrams: of answers given the same probability, how many are right? In English, a panel for each run.

Bröcker and Smith 2007 and Guo et al. 2017 show such diagrams.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from src.figures.canvas import Axes, Figure
from src.figures.plots import LINE
from src.figures.style import BLUE, ORANGE, families

MOST_ACROSS = 3
WIDTHS_INCHES = {1: 5.4, 2: 8.0, 3: 8.0}
"""Panels side by side → width of the figure."""
TITLE_LETTERS = {1: 60, 2: 50, 3: 30}
"""Panels side by side → letters in a line of a panel's title."""
HIGHEST = 1.02
"""Where the axes end, so that a dot at 1 is whole."""
BEFORE: dict[str, Any] = {"color": ORANGE, "markerfacecolor": "white", "zorder": 3}
AFTER: dict[str, Any] = {"color": BLUE, "zorder": 4}
OF_BEFORE, OF_AFTER, PERFECT = "as they are, with 95 % intervals", "after the temperature", "perfectly calibrated"


@dataclass(frozen=True)
class Dot:
    """Items whose answers have about this probability, and the share of right ones with its interval."""

    confidence: float
    accuracy: float
    low: float
    high: float
    items: int


@dataclass(frozen=True)
class Panel:
    """note: a line below the title. after: empty where no temperature was fitted."""

    title: str
    note: str
    before: Sequence[Dot]
    after: Sequence[Dot]


def reliability(panels: Sequence[Panel], heading: str) -> Figure:
    """One panel or more, all with the same axes. The larger a dot, the more items it is of."""
    across = 2 if len(panels) == 4 else min(MOST_ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    titles = [f"{textwrap.fill(panel.title, TITLE_LETTERS[across])}\n{panel.note}" for panel in panels]
    width, lines = WIDTHS_INCHES[across], max(title.count("\n") for title in titles)
    height = 0.9 + down * (width / across + 0.15 * lines)
    figure = Figure(figsize=(width, height), dpi=150, layout="compressed")
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    lowest = _lowest(panels)
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.remove()
            continue
        axes.set(xlim=(lowest, HIGHEST), ylim=(lowest, HIGHEST), aspect="equal")
        axes.set_title(titles[place], loc="center", fontsize=8.5, fontfamily=families())
        _draw(axes, panels[place])
        if place + across >= len(panels):  # the lowest of its column
            axes.set_xlabel("mean probability of the answer", fontsize=9)
            axes.tick_params(labelbottom=True)
        if place % across == 0:
            axes.set_ylabel("share of right answers", fontsize=9)
    figure.suptitle(heading, fontsize=10.5)
    whole = next((place for place, panel in enumerate(panels) if panel.after), 0)
    handles, names = grid.flat[whole].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(3, across + 1), frameon=False, fontsize=9)
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    axes.grid(alpha=0.3)
    axes.plot([0, 1], [0, 1], color=LINE, linestyle="--", linewidth=1, label=PERFECT, zorder=2)
    total = sum(dot.items for dot in panel.before)
    for dots, looks, label in ((panel.before, BEFORE, OF_BEFORE), (panel.after, AFTER, OF_AFTER)):
        for place, dot in enumerate(dots):
            reach = [[dot.accuracy - dot.low], [dot.high - dot.accuracy]]
            size = 3 + 9 * math.sqrt(dot.items / total)
            name = label if place == 0 else "_"
            axes.errorbar(
                dot.confidence, dot.accuracy, reach, fmt="o", markersize=size, elinewidth=1, label=name, **looks
            )


def _lowest(panels: Sequence[Panel]) -> float:
    """Where the axes begin: a tenth below all that is drawn."""
    least = min(min(dot.low, dot.confidence) for panel in panels for dot in [*panel.before, *panel.after])
    return max(0.0, math.floor(least * 10) / 10) - 0.02
