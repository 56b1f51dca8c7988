"""The questions: each draws a picture that can be read, and says what is there, on odd and on tiny corpora too."""

import dataclasses
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text

from src import task
from src.data import dump_items, parse_items
from src.eda import display, findings
from src.eda.corpus import Corpus, sample_corpus
from src.eda.finding import Finding
from src.eda.measures import length_figures
from src.eda.view import View
from src.figures import style
from tests.conftest import make_item
from tests.eda.made import corpus_of, weather

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
ON_TEST = [("test", name) for name in (*FOR_BOTH, "distances")]
QUESTIONS = [
    *(pytest.param("train", name, marks=pytest.mark.thorough) for name in FOR_BOTH),  # those of test without distances
    ("train", "labels"),
    *ON_TEST,
]


@pytest.fixture(autouse=True)
def shipped_task_afterwards() -> Iterator[None]:
    yield
    task.use(None)


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
    return ask(view(split, sample), name)


def ask(view: View, name: str, drawn: bool = True) -> Finding:
    question: Callable[[View], Finding] = getattr(findings, name)
    if not drawn:
        return question(view)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that the font lacks
        finding = question(view)
        assert finding.figure is not None
        finding.figure.draw_without_rendering()
    return finding


@pytest.mark.slow
@pytest.mark.parametrize(("split", "name"), QUESTIONS)
def test_every_question_says_and_draws(split: str, name: str) -> None:
    finding = found(split, name)
    assert finding.says.endswith(".") and finding.so.endswith(".")
    for text in (finding.says, finding.so):
        assert not re.search(r"\bnan\b|\binf\b|None|[{}]", text), text
    assert re.search(r"\d|없습니다", finding.says), "no number in it"
    assert finding.figure is not None
    written = [text.get_text() for text in finding.figure.findobj(Text)]
    assert any("resource/data의 말뭉치" in text and "0123456789abcdef" in text for text in written), "which corpus?"
    assert (split == "test") == any("거리" in text for text in written) or name in ("sizes", "odd", "word_cloud")


@pytest.mark.slow
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


@pytest.mark.parametrize("name", [name for _, name in ON_TEST])
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
    assert len(style.to_png(finding.figure, "d" * 16, finding.says)) < 400_000


def told_of_lengths(official: task.Official) -> str:
    """What `lengths` says of the tiny train split if this is known of the official corpus."""
    task.use(dataclasses.replace(task.current(), official=official))
    return findings.lengths(view("train")).says


def test_the_published_figures_are_held_against_the_official_train_split() -> None:
    sizes = {split: len(items) for split, items in tiny().splits.items()}
    (turns, words) = (length_figures(tiny().splits["train"])[name][:2] for name in ("turns", "words"))
    assert "발표된 값" not in found("train", "lengths").says
    assert "다릅니다" in told_of_lengths(task.Official(sizes, (20.8, 4.8), words))
    says = told_of_lengths(task.Official(sizes, turns, words))
    assert "같습니다" in says and "다릅니다" not in says
    assert "발표된 값" not in told_of_lengths(task.Official(sizes))
    assert "발표된 값" not in told_of_lengths(task.Official())


@pytest.mark.slow
@pytest.mark.parametrize(("split", "name"), QUESTIONS)
def test_another_task_is_asked_every_question(split: str, name: str) -> None:
    """Four options, other categories one of which never comes up, and no official corpus."""
    finding = asked_of(4, split, name)
    assert "공식" not in finding.says + finding.so and "발표된" not in finding.says
    assert not re.search(r"\bnan\b|원인|inference|3\.3 %", finding.says + finding.so)


@cache
def view_of(options: int, split: str) -> View:
    """Of a corpus of the task with so many options, which is the current one."""
    made = View(corpus_of(weather(options)), split, "train" if split == "test" else None)
    made.__dict__["encoders"] = {}
    return made


def asked_of(options: int, split: str, name: str, drawn: bool = True) -> Finding:
    task.use(weather(options))
    finding = ask(view_of(options, split), name, drawn)
    assert finding.figure is not None
    return finding


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "orders", "chance"), [(2, 2, "50.0 %"), (3, 6, "33.3 %"), (4, 4, "25.0 %"), (9, 9, "11.1 %")]
)
def test_places_and_chance_are_those_of_the_task(options: int, orders: int, chance: str) -> None:
    finding = asked_of(options, "train", "labels", drawn=False)
    counted = [[number % options for number in range(12)].count(place) for place in range(options)]
    assert ", ".join(f"{place}번 {count}개" for place, count in enumerate(counted, start=1)) in finding.says
    assert f"`--orders {orders}`" in finding.so
    assert weather(options).orders(orders)
    assert f"무작위로 고르면 {chance}" in asked_of(options, "train", "options", drawn=False).so


def test_the_mix_of_categories_is_that_of_the_task() -> None:
    finding = asked_of(4, "train", "categories")
    assert "까닭(50.0 %)" in finding.says and "예보(0.0 %)" in finding.says


def test_no_tokens_are_counted_without_a_prompt_for_the_task() -> None:
    task.use(weather(4))
    other = View(corpus_of(weather(4)), "train")
    other.__dict__["encoders"] = {}
    assert "이 과제의 유형" in findings.tokens(other).says


def test_sentences_follow_the_numbers() -> None:
    assert "train–dev 1개" in found("train", "sizes").so
    assert "겹치는 대화가 없으므로" in found("train", "sizes", sample=True).so
    assert "빈 발화 1개" in found("test", "odd").says
    assert "숫자인 발화 1개" in found("test", "odd").says
    assert "정답이 없는 문항 7개" in found("test", "odd").says
    labels = [item.label for item in sample_corpus().splits["train"]]
    assert (
        f"1번 {labels.count(0)}개, 2번 {labels.count(1)}개, 3번 {labels.count(2)}개"
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
