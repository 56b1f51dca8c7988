"""Pictures of the page, as SVG: shapes with classes, to which the page's style gives the colours of light and dark.

Shapes have attributes and no style of their own, which the page's policy would forbid. Every number that is drawn is
also written somewhere near, or in the picture's title.
"""

import math
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from src.worth.calibration import Measured

Interval = tuple[float, float]


def picture(width: float, height: float, shapes: Sequence[str], title: str, name: str = "") -> Markup:
    """title: what a reader hears who sees no picture. name: a class."""
    return Markup(
        f'<svg class="chart {name}" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'role="img"><title>{escape(title)}</title>{"".join(shapes)}</svg>'
    )


def line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{name}"/>'


def rect(x: float, y: float, width: float, height: float, name: str, opacity: float | None = None) -> str:
    faint = "" if opacity is None else f' fill-opacity="{opacity:.2f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0, width):.1f}" height="{height:.1f}" class="{name}"{faint}/>'


def circle(x: float, y: float, radius: float, name: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" class="{name}"/>'


def words(x: float, y: float, text: str, name: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{name}">{escape(text)}</text>'


def dot_and_interval(value: float, interval: Interval, scale: Interval, title: str, zero: bool = False) -> Markup:
    """A dot with its interval on a scale that is the same for all pictures of a column. zero: with a line at 0."""
    width, height, margin = 190.0, 20.0, 6.0
    low, high = scale

    def place(share: float) -> float:
        return margin + (width - 2 * margin) * (share - low) / ((high - low) or 1)

    middle = height / 2
    shapes = [line(margin, middle, width - margin, middle, "axis")]
    if zero:
        shapes.append(line(place(0), 1, place(0), height - 1, "zero"))
    shapes += [
        line(place(interval[0]), middle, place(interval[1]), middle, "reach"),
        circle(place(value), middle, 4.2, "dot"),
    ]
    return picture(width, height, shapes, title, "interval")


def scale_of(values: Sequence[float], step: float = 0.1) -> Interval:
    """The nearest multiples of `step` that hold all values."""
    return math.floor(min(values) / step) * step, math.ceil(max(values) / step) * step


def bar(value: float, interval: Interval, title: str) -> Markup:
    """A share, 0..1, as a bar from 0 with its interval."""
    width, height = 96.0, 14.0
    shapes = [
        rect(0, 2, width, 10, "ground"),
        rect(0, 2, width * value, 10, "bar"),
        line(width * interval[0], 7, width * interval[1], 7, "whisker"),
    ]
    return picture(width, height, shapes, title, "bar-chart")


def reliability(before: "Measured", after: "Measured | None", title: str) -> Markup:
    """Share of right answers over their mean probability. The larger a dot, the more items it is of."""
    size, left, below = 190.0, 26.0, 20.0
    drawn = [before, *([after] if after else [])]
    least = min(min(one.confidence, one.share.interval[0]) for measured in drawn for one in measured.bins)
    low = max(0.0, math.floor(least * 5) / 5)

    def x(share: float) -> float:
        return left + (size - left - 8) * (share - low) / (1 - low)

    def y(share: float) -> float:
        return size - below - (size - below - 8) * (share - low) / (1 - low)

    shapes = [
        rect(x(low), y(1), x(1) - x(low), y(low) - y(1), "ground"),
        line(x(low), y(low), x(1), y(1), "diagonal"),
    ]
    for share in (low, 1.0):
        shapes.append(words(left - 5, y(share) + 4, f"{100 * share:.0f}", "tick", "end"))
        shapes.append(words(x(share), size - 5, f"{100 * share:.0f}", "tick", "middle" if share == low else "end"))
    for measured, name in ((before, "before"), (after, "after")):
        for one in measured.bins if measured else ():
            radius = 2 + 6 * math.sqrt(one.share.total / before.items)
            shapes.append(
                line(x(one.confidence), y(one.share.interval[0]), x(one.confidence), y(one.share.interval[1]), name)
            )
            shapes.append(circle(x(one.confidence), y(one.share.accuracy), radius, name))
    return picture(size, size, shapes, title, "reliability")


def curve(
    losses: Sequence[tuple[int, float]],
    accuracies: Sequence[tuple[int, float]],
    rates: Sequence[tuple[int, float]],
    title: str,
) -> Markup:
    """Training loss as a line (left axis, from 0), accuracy as dots (right axis, 0 to 100), and the learning rate as a
    broken line from 0 to its largest value, which is written beside it.
    """
    width, height, left, right, top, below = 300.0, 150.0, 34.0, 34.0, 10.0, 20.0
    last = max([step for step, _ in [*losses, *accuracies, *rates]], default=1) or 1
    most = max((loss for _, loss in losses), default=1.0) or 1.0

    def x(step: float) -> float:
        return left + (width - left - right) * step / last

    def y(share: float) -> float:
        return height - below - (height - below - top) * share

    shapes = [line(left, y(0), width - right, y(0), "axis"), line(left, y(1), width - right, y(1), "guide")]
    shapes += [line(left, y(0.5), width - right, y(0.5), "guide")]
    shapes += [words(left - 5, y(share) + 4, f"{most * share:.2g}", "tick loss", "end") for share in (0, 1)]
    shapes += [words(width - right + 5, y(share) + 4, f"{100 * share:.0f}%", "tick accuracy") for share in (0, 1)]
    shapes += [
        words(left, height - 5, "0", "tick", "middle"),
        words(x(last), height - 5, f"{last:,}", "tick", "middle"),
    ]
    if rates and (highest := max(rate for _, rate in rates)) > 0:
        places = " ".join(f"{x(step):.1f},{y(rate / highest):.1f}" for step, rate in rates)
        shapes.append(f'<polyline points="{places}" class="rate-line"/>')
        shapes.append(words(x(last / 2), height - 5, f"lr {highest:.2g}", "tick rate", "middle"))
    if losses:
        points = " ".join(f"{x(step):.1f},{y(loss / most):.1f}" for step, loss in losses)
        shapes.append(f'<polyline points="{points}" class="loss-line"/>')
    shapes += [circle(x(step), y(share), 3.4, "accuracy-dot") for step, share in accuracies]
    return picture(width, height, shapes, title, "curve")


def matrix(names: Sequence[str], above: Sequence[Sequence[float]], below: Sequence[Sequence[float]] | None) -> Markup:
    """Shares between every two names: above the diagonal in one colour, below it in another, or the same mirrored.

    A cell is as dark as its share lies between the least and the largest of its half.
    """
    cell, top, count = 40.0, 22.0, len(names)
    label = 34.0 + 7.2 * max(_letters(name) for name in names)
    pairs = [(row, column) for row in range(count) for column in range(count) if row != column]
    halves = {True: above, False: above if below is None else below}
    found = {(row, column): halves[row < column][min(row, column)][max(row, column)] for row, column in pairs}
    ends = {
        upper: [share for (row, column), share in found.items() if (row < column) == upper] for upper in (True, False)
    }
    shapes = []
    for place, name in enumerate(names):
        middle = top + cell * place + cell / 2 + 4
        shapes.append(words(0, middle, f"{place + 1}", "tick"))
        shapes.append(words(22, middle, name, "name"))
        shapes.append(words(label + cell * place + cell / 2, 14, f"{place + 1}", "tick", "middle"))
    for (row, column), share in found.items():
        upper = row < column
        low, high = min(ends[upper]), max(ends[upper])
        strength = 0.08 + 0.5 * (share - low) / ((high - low) or 1)
        x, y = label + cell * column, top + cell * row
        name = "heat" if upper or below is None else "heat fault"
        shapes.append(rect(x + 1, y + 1, cell - 2, cell - 2, name, strength))
        shapes.append(words(x + cell / 2, y + cell / 2 + 4, f"{100 * share:.0f}", "cell", "middle"))
    title = "; ".join(f"{names[row]}, {names[column]} {share:.1%}" for (row, column), share in found.items())
    return picture(label + cell * count, top + cell * count, shapes, title, "matrix")


def _letters(text: str) -> int:
    """How many Latin letters it is about as wide as."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)
