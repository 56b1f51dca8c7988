"""How pictures look, and what their files hold."""

import io

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from src.figures import style


def test_pictures_are_white_and_stamped() -> None:
    figure, (axes,) = style.panels(["왼쪽"], "제목", "자료")
    style.bars(axes, ["가", "나"], {"train": [1, 2], "test": [2, 1]})
    png = style.to_png(figure, "d" * 16, "무엇")
    assert style.stamp_of(png) == "d" * 16
    assert png == style.to_png(figure, "d" * 16, "무엇")
    assert png != style.to_png(figure, "e" * 16, "무엇")
    picture = Image.open(io.BytesIO(png))
    assert picture.width == 1200
    assert "transparency" not in picture.info
    edge = np.asarray(picture.convert("RGB"))[[0, -1], :]
    assert (edge == 255).all(), "a dark background would show"


def test_another_picture_has_no_stamp() -> None:
    raw = io.BytesIO()
    Image.new("RGB", (4, 4)).save(raw, format="PNG")
    assert style.stamp_of(raw.getvalue()) is None


@pytest.mark.parametrize("horizontal", [True, False])
def test_every_bar_has_its_number(horizontal: bool) -> None:
    figure, (axes,) = style.panels(["왼쪽"], "제목", "자료")
    style.bars(axes, ["가", "나"], {"train": [1.25, 2], "test": [2, 1234]}, form="{:,.1f}", horizontal=horizontal)
    written = [text.get_text() for text in figure.findobj(Text)]
    assert {"1.2", "2.0", "1,234.0", "가", "나"} <= set(written)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["train", "test"]


def test_a_heatmap_writes_every_count() -> None:
    _, (axes,) = style.panels(["왼쪽"], "제목", "자료")
    style.heatmap(axes, np.array([[0, 1234, 2], [3, 4, 5]]), ["위", "아래"], ["가", "나", "다"])
    assert [text.get_text() for text in axes.texts] == ["0", "1,234", "2", "3", "4", "5"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["위", "아래"]


def test_splits_differ_in_lightness_too() -> None:
    """Without colour the three splits still differ, in pairs: 0.2126 R + 0.7152 G + 0.0722 B of linear light."""

    def lightness(colour: str) -> float:
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        return float(np.dot((0.2126, 0.7152, 0.0722), [channel**2.2 for channel in channels]))

    assert abs(lightness(style.COLOURS["train"]) - lightness(style.COLOURS["test"])) > 0.05
    assert len(set(style.COLOURS.values())) == 3
