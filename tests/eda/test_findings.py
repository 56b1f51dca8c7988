"""The questions: each draws a picture that can be read, and says what is there, on odd and on tiny corpora too."""

import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text

from src.data import dump_items, parse_items
from src.eda import corpus as corpora
from src.eda import display, findings
from src.eda.corpus import Corpus, sample_corpus
from src.eda.finding import Finding
from src.eda.measures import length_figures
from src.eda.questions import dialogues
from src.eda.view import View
from src.figures import style as figures
from tests.conftest import make_item

FOR_BOTH = (
    "sizes",
    "odd",
    "items_per_dialogue",
    "lengths",
    "turn_lengths",
    "speakers",
    "targets",
    "categories",
    "options",
    "words",
    "word_cloud",
    "marks",
)
QUESTIONS = [("train", name) for name in (*FOR_BOTH, "labels")] + [("test", name) for name in (*FOR_BOTH, "distances")]


@cache
def tiny() -> Corpus:
    """Few items, and the traps of the official files: a number, a blank, a newline, no label in test."""
    odd = [
        {"speaker": 1 + turn // 2, "utterance": said, "utterance_id": f"u{turn}"}
        for turn, said in enumerate((7, "", "두\n줄", "name1 왔어 ㅋㅋ"))
    ]
    raw = {
        "train": [make_item(n) for n in range(9)],
        "dev": [make_item(n) for n in range(6, 12)],  # shares a dialogue with train
        "test": [make_item(n, output="") for n in range(12, 18)]
        + [make_item(18, conversation=odd, reference_id=["u1", "u3"], inference_1="그렇다 ", output="")],
    }
    splits = {}
    for split, items in raw.items():
        splits[split], problems = parse_items(dump_items(items).encode(), split)
        assert not problems
    return Corpus("own", splits, "0123456789abcdef")


@cache
def view(split: str, sample: bool = False) -> View:
    made = View(sample_corpus() if sample else tiny(), split, "train" if split == "test" else None)
    made.__dict__["encoders"] = {}  # whatever this machine has downloaded
    return made


@cache
def found(split: str, name: str, sample: bool = False) -> Finding:
    question: Callable[[View], Finding] = getattr(findings, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that the font lacks
        finding = question(view(split, sample))
        assert finding.figure is not None
        finding.figure.draw_without_rendering()
    return finding


@pytest.mark.parametrize(("split", "name"), QUESTIONS)
def test_every_question_says_and_draws(split: str, name: str) -> None:
    finding = found(split, name)
    assert finding.says.endswith((".", "다.")) and finding.so.endswith(".")
    for text in (finding.says, finding.so):
        assert not re.search(r"\bnan\b|\binf\b|None|[{}]", text), text
    assert re.search(r"\d|없습니다", finding.says), "no number in it"
    assert finding.figure is not None
    written = [text.get_text() for text in finding.figure.findobj(Text)]
    assert any("resource/data의 말뭉치" in text and "0123456789abcdef" in text for text in written), "which corpus?"
    assert (split == "test") == any("거리" in text for text in written) or name in ("sizes", "odd", "word_cloud")


@pytest.mark.parametrize(("split", "name"), QUESTIONS)
def test_no_text_leaves_the_picture_or_is_too_small(split: str, name: str) -> None:
    figure = found(split, name, sample=True).figure
    assert figure is not None
    width, height = figure.get_size_inches() * figure.dpi
    for text in figure.findobj(Text):
        hidden = text.axes is not None and not text.axes.axison and text.get_text() != text.axes.get_title("left")
        if text.get_text().strip() and text.get_visible() and not hidden:
            box = text.get_window_extent()
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
            # Ticks beyond the limits of their axes are not drawn.
            ticks = [tick for axes in figure.axes for tick in (*axes.get_xticklabels(), *axes.get_yticklabels())]
            assert inside or text in ticks, text
            assert text.get_fontsize() >= 8, text
            assert text.get_fontfamily() == ["NanumGothic"], text


@pytest.mark.parametrize("name", [name for split, name in QUESTIONS if split == "test"])
def test_titles_and_legend_do_not_overlap(name: str) -> None:
    figure = found("test", name, sample=True).figure
    assert figure is not None
    titles = {axes.get_title("left") for axes in figure.axes} | {figure.get_suptitle()}
    boxes = [text.get_window_extent() for text in figure.findobj(Text) if text.get_text() in titles - {""}]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    assert len(boxes) > len(figure.axes)
    for place, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[place + 1 :])


def test_the_largest_picture_is_small() -> None:
    finding = found("train", "word_cloud", sample=True)
    assert finding.figure is not None
    assert len(figures.to_png(finding.figure, "d" * 16, finding.says)) < 400_000


def test_the_published_figures_are_held_against_the_official_train_split(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "발표된 값" not in found("train", "lengths").says
    sizes = {split: len(items) for split, items in tiny().splits.items()}
    monkeypatch.setattr(corpora, "OFFICIAL_ITEMS", sizes)
    assert "다릅니다" in findings.lengths(view("train")).says
    figures_of_tiny = length_figures(tiny().splits["train"])
    published = {name: figures_of_tiny[name][:2] for name in ("turns", "words")}
    monkeypatch.setattr(dialogues, "PUBLISHED", published)
    monkeypatch.setattr(corpora, "PUBLISHED", published)
    says = findings.lengths(view("train")).says
    assert "같습니다" in says and "다릅니다" not in says


def test_sentences_follow_the_numbers() -> None:
    assert "train–dev 1개" in found("train", "sizes").so
    assert "함께 가진 대화가 없으니" in found("train", "sizes", sample=True).so
    assert "빈 발화 1개" in found("test", "odd").says
    assert "숫자인 발화 1개" in found("test", "odd").says
    assert "정답이 없는 문항 7개" in found("test", "odd").says
    labels = [item.label for item in sample_corpus().splits["train"]]
    assert (
        f"1번 {labels.count(0)}, 2번 {labels.count(1)}, 3번 {labels.count(2)}개"
        in found("train", "labels", sample=True).says
    )


def test_without_a_tokenizer_there_is_no_picture() -> None:
    finding = findings.tokens(view("train"))
    assert finding.figure is None
    assert "토크나이저가 없어서" in finding.says


def test_outputs_are_shown_with_the_stamp_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw, metadata: shown.append({"data": data, **metadata}))
    monkeypatch.setenv(display.OUT_VARIABLE, str(tmp_path))
    findings.show(view("train"), found("train", "sizes"))
    assert all(output["cci"]["corpus"] == tiny().sha256 for output in shown)
    assert [list(output["data"]) for output in shown] == [["image/png", "text/plain"], ["text/markdown"]]
    assert [file.name for file in (tmp_path / "train").iterdir()] == ["train_sizes.png"]

    monkeypatch.delenv(display.OUT_VARIABLE)
    assert display.picture_path(view("test"), "x") == Path("resource/results/eda/test/test_x.png")
    assert display.picture_path(view("test", sample=True), "x") == Path("eda/test/test_x.png")
