"""How a training went, in English: loss and learning rate over the steps, and what the evaluations on dev found."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.figures.canvas import Axes, Figure, MaxNLocator
from src.figures.style import BLUE, GREEN, GREY, ORANGE, VERMILLION, families

SMOOTHED = 25
"""The smoothed loss is the mean over a share of the steps: one of so many."""
MOST_DRAWN = 2_000
"""More steps are drawn as means of several, of which the eye sees no difference."""


@dataclass(frozen=True)
class Evaluation:
    """log_loss: of the right option, in nats."""

    step: int
    accuracy: float
    log_loss: float


def running_mean(values: Sequence[float], width: int) -> NDArray[np.float64]:
    """Mean of the `width` values around each, half of them after it, of fewer at both ends: (n,)."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=float)])
    places = np.arange(len(values))
    begins = np.maximum(0, places - (width - 1) // 2)
    ends = np.minimum(len(values), places + width // 2 + 1)
    return np.asarray((sums[ends] - sums[begins]) / (ends - begins), dtype=float)


def training_curves(
    steps: Sequence[tuple[int, float, float | None]], evaluations: Sequence[Evaluation], kept: int, heading: str
) -> Figure:
    """steps: (step, loss, learning rate or None). kept: the step whose weights the run has."""
    figure = Figure(figsize=(8, 6), dpi=150, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.15, 1])
    figure.suptitle(heading, fontsize=10.5, fontfamily=families())
    _draw_loss(above, steps)
    _draw_evaluations(below, evaluations, kept)
    below.set_xlabel("optimizer step")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _draw_loss(axes: Axes, steps: Sequence[tuple[int, float, float | None]]) -> None:
    axes.grid(alpha=0.3)
    axes.set_ylabel("training loss")
    if steps:
        numbers, losses = [step for step, _, _ in steps], [loss for _, loss, _ in steps]
        width = max(1, len(losses) // SMOOTHED, min(10, len(losses) // 8))  # a short training is smoothed, too
        every = max(1, -(-len(losses) // MOST_DRAWN))
        axes.plot(
            numbers[::every], running_mean(losses, every)[::every], color=BLUE, alpha=0.3, linewidth=0.8, label="loss"
        )
        mean = running_mean(losses, width)
        label = f"loss, mean of {width} steps" if width > 1 else "_"
        axes.plot(numbers, mean, color=BLUE, linewidth=1.8 if width > 1 else 1.0, label=label)
        axes.set_ylim(bottom=min(0.0, min(losses)))
    rates = [(step, lr) for step, _, lr in steps if lr is not None]
    if rates:
        right = axes.twinx()
        right.plot(*zip(*rates, strict=True), color=ORANGE, linewidth=1.2, linestyle="--", label="learning rate")
        right.set_ylabel("learning rate")
        right.set_ylim(bottom=0)
        right.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        _one_legend(axes, right, over=True)
    elif steps:
        axes.legend(frameon=False, fontsize=9)


def _draw_evaluations(axes: Axes, evaluations: Sequence[Evaluation], kept: int) -> None:
    axes.grid(alpha=0.3)
    axes.set_ylabel("dev accuracy")
    steps = [one.step for one in evaluations]
    axes.plot(steps, [one.accuracy for one in evaluations], "o-", color=GREEN, markersize=4, label="dev accuracy")
    right = axes.twinx()
    log_losses = [one.log_loss for one in evaluations]
    right.plot(steps, log_losses, "s--", color=VERMILLION, markersize=3.5, linewidth=1.2, label="dev log-loss")
    right.set_ylabel("dev log-loss (nats)")
    right.set_ylim(0, 1.15 * max(log_losses, default=1.0) or 1.0)
    axes.axvline(kept, color=GREY, linestyle=":", linewidth=1.4, label=f"kept: step {kept:,}")
    _one_legend(axes, right, over=False)


def _one_legend(left: Axes, right: Axes, over: bool) -> None:
    """The legend of both scales on the right, in front of their lines. over: at the top, where a loss has fallen; else
    at the bottom, where an accuracy has risen.
    """
    both = [axes.get_legend_handles_labels() for axes in (left, right)]
    handles, names = ([one for part in parts for one in part] for parts in zip(*both, strict=True))
    right.legend(
        handles,
        names,
        loc="upper right" if over else "lower right",
        frameon=True,
        framealpha=0.85,
        edgecolor="none",
        fontsize=9,
    )
