"""What a reliability diagram shows: a dot with its interval for each bin, where the numbers say."""

import io
import warnings

import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from src.figures import style
from src.figures.reliability import OF_AFTER, OF_BEFORE, PERFECT, Dot, Panel, reliability

BEFORE = [Dot(0.5, 0.4, 0.3, 0.55, 40), Dot(0.9, 0.7, 0.6, 0.8, 20)]
AFTER = [Dot(0.45, 0.4, 0.3, 0.55, 40), Dot(0.75, 0.7, 0.6, 0.8, 20)]


def shown(axes: Axes) -> list[tuple[float, float, float, float, bool]]:
    """(x, y, lower end, upper end, whether filled) of each dot."""
    found = []
    for drawn in axes.containers:
        assert isinstance(drawn, ErrorbarContainer)
        dot, _, (bar,) = drawn.lines
        ((x, low), (_, high)) = bar.get_segments()[0]
        assert [x] == list(dot.get_xdata())
        found.append((x, float(dot.get_ydata()[0]), low, high, dot.get_markerfacecolor() != "white"))
    return found


def panel(number: int, after: bool = True) -> Panel:
    return Panel(f"run {number}", "ECE", BEFORE, AFTER if after else [])


def test_every_dot_is_where_the_numbers_say() -> None:
    (axes,) = reliability([panel(0)], "60 items").axes
    wanted = [(dot.confidence, dot.accuracy, dot.low, dot.high, False) for dot in BEFORE]
    wanted += [(dot.confidence, dot.accuracy, dot.low, dot.high, True) for dot in AFTER]
    assert [one[:4] for one in shown(axes)] == [pytest.approx(one[:4]) for one in wanted]
    assert [one[4] for one in shown(axes)] == [one[4] for one in wanted]
    line = next(line for line in axes.lines if line.get_label() == PERFECT)
    assert line.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert axes.get_xlim() == axes.get_ylim() and axes.get_aspect() == 1.0, "the diagonal is one"
    assert axes.get_xlim()[0] < 0.3 and axes.get_xlim()[1] > 1
    larger, smaller = (drawn.lines[0].get_markersize() for drawn in axes.containers[:2])
    assert larger > smaller, "40 items and 20"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_each_run_has_a_panel_with_named_axes(count: int) -> None:
    figure = reliability([panel(number, after=number > 0) for number in range(count)], "heading")
    assert [axes.get_title().splitlines() for axes in figure.axes] == [
        [f"run {number}", "ECE"] for number in range(count)
    ]
    across = {1: 1, 2: 2, 3: 3, 4: 2, 9: 3}[count]
    for place, axes in enumerate(figure.axes):
        assert (axes.get_xlabel() != "") == (place + across >= count), "below the lowest of each column"
        assert (axes.get_ylabel() != "") == (place % across == 0), "left of each row"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ([PERFECT, OF_BEFORE] if count == 1 else [PERFECT, OF_BEFORE, OF_AFTER])


def unseen(axis: Axis) -> list[Text]:
    """Labels of ticks beyond the axis' ends, and those of an axis that is labelled elsewhere."""
    low, high = axis.get_view_interval()
    ticks = axis.get_major_ticks()
    return [tick.label1 for tick in ticks if not (low <= tick.get_loc() <= high and tick.label1.get_visible())] + [
        tick.label2 for tick in ticks
    ]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Texts that lie on each other, and those that leave the picture."""
    figure.savefig(io.BytesIO(), format="png")
    ticks = [label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in unseen(axis)]
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text not in ticks]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    found = [
        (one, other)
        for place, (one, box) in enumerate(boxes)
        for other, own in boxes[place + 1 :]
        if box.overlaps(own) and box.width * box.height > 0
    ]
    whole = figure.bbox
    return found + [(one, "edge") for one, box in boxes if box.x0 < whole.x0 - 1 or box.x1 > whole.x1 + 1]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, *(pytest.param(count, marks=pytest.mark.thorough) for count in (2, 3)), 8])
def test_no_text_lies_on_another(count: int) -> None:
    long = "a-run-with-a-name-that-is-longer-than-its-panel-is-wide-by-far"
    panels = [Panel(long, "T 12.34, ECE 0.123 → 0.045", BEFORE, AFTER)] * count
    assert overlaps(reliability(panels, "151 items; temperatures (T) fitted out of fold")) == []


@pytest.mark.slow
def test_a_korean_name_has_its_letters() -> None:
    figure = reliability([Panel("폴라-다섯째", "ECE", BEFORE, [])], "heading")
    assert "NanumGothic" in style.families() and style.families()[0] == "DejaVu Sans"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of letters that no font has
        raw = io.BytesIO()
        figure.savefig(raw, format="png")
    assert Image.open(raw).width >= 700
