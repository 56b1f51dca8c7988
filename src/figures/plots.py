"""Plots of numbers that commands measured, in English and without fonts of our own."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.console.cli import UserError
from src.figures.canvas import Axes, Figure, MaxNLocator
from src.figures.style import BLUE, GREY
from src.files.writing import advice

LINE = "#999999"


@dataclass(frozen=True)
class Point:
    """A measured share with the ends of its interval. filled: kept; the marker of a refused one is hollow."""

    x: float
    share: float
    low: float
    high: float
    filled: bool


def growth(points: Sequence[tuple[int, float]], heading: str, label: str) -> Figure:
    """Seconds over tokens computed, with the line through the origin that fits best. label: of the points."""
    tokens, seconds = zip(*points, strict=True)
    slope = sum(x * y for x, y in points) / sum(x * x for x in tokens)
    figure, axes = _figure("tokens computed, shared ones once", "seconds")
    axes.plot([0, max(tokens)], [0, slope * max(tokens)], color=LINE, label=f"{1 / slope:,.0f} tokens a second")
    axes.plot(tokens, seconds, "o", color=BLUE, label=label)
    axes.set(xlim=0, ylim=0)
    axes.set_title(heading, loc="center", fontsize=9)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False)
    return figure


def accuracy_by_step(points: Sequence[Point], in_use: Sequence[float]) -> Figure:
    """Accuracy of the prompts that were scored, over the steps of a search. in_use: that of the prompt kept after each
    step.
    """
    figure, axes = _figure("step", "accuracy on held-out items, 95 % interval")
    for point in points:
        looks = {"color": BLUE} if point.filled else {"color": GREY, "markerfacecolor": "white"}
        reach = [[point.share - point.low], [point.high - point.share]]
        axes.errorbar(point.x, point.share, reach, fmt="o", capsize=3, **looks)  # type: ignore[arg-type]
    axes.step(range(len(in_use)), in_use, where="post", color=BLUE, label="prompt in use")
    axes.plot([], [], "o", color=GREY, markerfacecolor="white", label="refused")
    axes.set(ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", frameon=False)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Writes the figure as a PNG, whole or not at all. Makes the folders that are missing."""
    temporary = path.with_name(f".{path.name}.tmp.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. {advice(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _figure(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    return figure, axes
