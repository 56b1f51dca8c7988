"""One look for all pictures of the EDA: Korean text, colours that everybody can tell apart, a white background.

The font is a file of the package koreanize-matplotlib. The package itself is not imported: it needs distutils, which
Python 3.12 no longer has. The colours are those of Okabe and Ito (2008). Each split has its own.
"""

import io
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from src.figures.canvas import Axes, Figure, LinearSegmentedColormap, font_manager, rcParams

BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#222222",
)
COLOURS = {"train": BLUE, "dev": GREEN, "test": VERMILLION}
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
GREY = "#6B6B6B"
BLUES = LinearSegmentedColormap.from_list("blues", ["#FFFFFF", BLUE])

WIDTH_INCHES, DPI = 8.0, 150
BOLD = 600  # the weight that the file of the bold font names
PNG_COLOURS = 128
"""Colours in a PNG: the eye sees no difference, and the file is a third as large."""
STAMP = "Corpus"
"""The text chunk of a PNG that holds the digest of the corpus it was drawn from."""

KOREAN_FONTS = ("NanumGothic", "Noto Sans CJK KR", "Noto Sans KR", "Malgun Gothic", "Apple SD Gothic Neo")
"""Fonts with Korean letters: ours, and those that systems bring."""

STYLE: dict[str, Any] = {
    "font.family": "NanumGothic",
    "font.size": 10,
    "axes.unicode_minus": False,  # the font has no U+2212
    "axes.titlesize": 10.5,
    "axes.titleweight": BOLD,
    "axes.titlelocation": "left",
    "axes.labelcolor": GREY,
    "axes.labelsize": 9.5,
    "axes.edgecolor": "#B0B0B0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.09,
}


@cache
def font_files() -> tuple[Path, ...]:
    """NanumGothic, plain and bold; matplotlib knows both afterwards."""
    package = find_spec("koreanize_matplotlib")
    assert package is not None and package.submodule_search_locations, "koreanize-matplotlib is not installed"
    folder = package.submodule_search_locations[0]
    files = [Path(folder) / "fonts" / name for name in ("NanumGothic.ttf", "NanumGothicBold.ttf")]
    for file in files:
        font_manager.fontManager.addfont(file)
    return tuple(files)


def regular_font() -> Path:
    """The file of the plain weight, for libraries that take a path."""
    return font_files()[0]


def families() -> list[str]:
    """matplotlib's own font, and after it those with Korean letters that this machine has: names of runs may be Korean,
    and the package with NanumGothic is needed for the EDA alone.
    """
    if find_spec("koreanize_matplotlib") is not None:
        font_files()
    there = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in KOREAN_FONTS if name in there)]


def panels(
    titles: Sequence[str], heading: str, source: str, *, height: float = 3.1, widths: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with axes side by side, a title for each, `heading` above all and `source` (of the data) below."""
    font_files()
    rcParams.update(STYLE)  # type: ignore[arg-type]  # matplotlib lists the keys one by one
    figure = Figure(figsize=(WIDTH_INCHES, height + 0.5), dpi=DPI)
    grid = figure.subplots(1, len(titles), squeeze=False, width_ratios=widths)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
        axes.tick_params(length=0)
    figure.suptitle(heading, x=0.012, ha="left", fontsize=12.5, fontweight=BOLD, color=BLACK)
    figure.supxlabel(source, x=0.988, ha="right", fontsize=8, color=GREY)
    return figure, list(grid[0])


def colour(name: str, index: int = 0) -> str:
    """A split's own colour, or the colour of the series at `index`."""
    return COLOURS.get(name, SERIES[index % len(SERIES)])


def bars(
    axes: Axes,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    form: str = "{:,.0f}",
    label: str = "",
    horizontal: bool = True,
) -> None:
    """Bars for each name, side by side for several series (label → values), each with its number."""
    positions = np.arange(len(names))
    thickness = 0.8 / len(series)
    for order, (name, values) in enumerate(series.items()):
        offset = (order - (len(series) - 1) / 2) * thickness
        draw = axes.barh if horizontal else axes.bar
        drawn = draw(positions + offset, values, thickness * 0.92, color=colour(name, order), label=name)
        axes.bar_label(drawn, [form.format(value) for value in values], padding=3, fontsize=8.5, color="#333333")
    if horizontal:
        axes.set_yticks(positions, names)
        axes.invert_yaxis()
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_xlabel(label)
        axes.margins(x=0.16)
    else:
        axes.set_xticks(positions, names)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_ylabel(label)
        axes.margins(y=0.14)
    _legend(axes)


def histogram(axes: Axes, series: Mapping[str, Sequence[float]], *, label: str, bins: int | Sequence[float]) -> None:
    """Shares of the values in common bins: the first series filled, the others outlined. Lines mark the means."""
    pooled = np.concatenate([np.asarray(values, dtype=float) for values in series.values()])
    edges = np.histogram_bin_edges(pooled, bins)
    for order, (name, values) in enumerate(series.items()):
        own = colour(name, order)
        weights = np.full(len(values), 100 / len(values))
        # The first is filled and the others are outlined, so that splits can be told apart without colour.
        looks = {"alpha": 0.45} if order == 0 else {"histtype": "step", "linewidth": 1.8}
        axes.hist(values, edges.tolist(), weights=weights, color=own, label=name, **looks)
        axes.axvline(float(np.mean(values)), color=own, linewidth=1.6, linestyle="-" if order == 0 else "--")
    axes.set_xlabel(label)
    axes.set_ylabel("비율 (%)")
    axes.margins(y=0.06)
    _legend(axes)


def _legend(axes: Axes) -> None:
    """One legend for the whole figure, beside its heading, where it covers no data."""
    handles, names = axes.get_legend_handles_labels()
    figure = axes.figure
    assert isinstance(figure, Figure)
    if len(names) > 1 and not figure.legends:
        figure.legend(
            handles, names, loc="upper right", ncols=len(names), handlelength=1.2, columnspacing=1.2, borderaxespad=0.3
        )


def heatmap(axes: Axes, counts: NDArray[np.int_], left: Sequence[str], below: Sequence[str]) -> None:
    """Counts (left, below) as cells that darken with the count."""
    top = int(counts.max()) or 1
    axes.imshow(counts, cmap=BLUES, vmin=0, vmax=top * 1.05, aspect="auto")
    axes.set_xticks(range(len(below)), below)
    axes.set_yticks(range(len(left)), left)
    axes.spines[:].set_visible(False)
    for (down, across), count in np.ndenumerate(counts):
        dark = count > 0.75 * top
        axes.text(across, down, f"{count:,}", ha="center", va="center", color="white" if dark else BLACK)


def to_png(figure: Figure, digest: str, description: str) -> bytes:
    """The picture as a PNG that holds the corpus' digest. Equal figures give equal bytes."""
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI, metadata={"Software": None})
    flat = Image.open(raw).convert("RGB").quantize(PNG_COLOURS, dither=Image.Dither.NONE)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(STAMP, digest)
    chunks.add_itxt("Description", description)
    small = io.BytesIO()
    flat.save(small, format="PNG", optimize=True, pnginfo=chunks)
    return small.getvalue()


def stamp_of(png: bytes) -> str | None:
    """The digest that `to_png` put into a picture; None for any other picture."""
    with Image.open(io.BytesIO(png)) as picture:
        return getattr(picture, "text", {}).get(STAMP)
