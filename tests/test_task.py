"""The task file, and the orders of its options."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from src import task
from src.console.cli import Parser, UserError
from src.task import Task, load_task

FOUR = """
name: 날씨 추론
categories: [까닭, 결과]
options: [choice_1, choice_2, choice_3, choice_4]
letters: [A, B, C, D]
"""


@pytest.fixture(autouse=True)
def official_afterwards() -> Iterator[None]:
    yield
    task.use(None)


def written(folder: Path, text: str = FOUR) -> Path:
    (folder / "task.yaml").write_text(text, encoding="utf-8")
    return folder / "task.yaml"


def test_the_shipped_task_is_the_competition() -> None:
    found = task.current()
    assert found.categories == ("원인", "후행사건", "전제", "동기", "반응")
    assert found.options == ("inference_1", "inference_2", "inference_3")
    assert found.letters == ("A", "B", "C")
    assert found.official.items == {"train": 758, "dev": 151, "test": 605}
    assert found.orders(6) == ("012", "021", "102", "120", "201", "210")
    assert found.orders(1) == ("012",)


def test_four_options_have_orders_by_the_dozen(tmp_path: Path) -> None:
    found = load_task(written(tmp_path))
    assert len(found.orders(24)) == 24
    assert found.official.items == {}
    for count in (4, 8, 12, 16, 20):
        orders = found.orders(count)
        assert len(set(orders)) == count
        assert orders[0] == "0123"
        # Each option stands equally often under each letter.
        for letter in range(4):
            assert set(Counter(order[letter] for order in orders).values()) == {count // 4}
        assert orders == load_task(written(tmp_path)).orders(count)


@pytest.mark.parametrize("count", [-4, 0, 2, 6, 25, 28])
def test_other_counts_of_orders_are_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(UserError, match=r"--orders: found .* allowed for 4 options: 1, 4, 8, 12, 16, 20, 24"):
        load_task(written(tmp_path)).orders(count)


def test_decomposed_syllables_are_composed(tmp_path: Path) -> None:
    found = load_task(written(tmp_path, unicodedata.normalize("NFD", FOUR)))
    assert found.categories == ("까닭", "결과")


def test_what_is_known_of_the_official_corpus_changes_no_answer(tmp_path: Path) -> None:
    bare = load_task(written(tmp_path))
    known = load_task(written(tmp_path, FOUR + "official: {items: {train: 10}, turns: [2, 0.5]}\n"))
    assert known.official.turns == (2.0, 0.5)
    assert bare.sha256 == known.sha256
    assert bare.sha256 != load_task(written(tmp_path, FOUR.replace("까닭", "원인"))).sha256


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "a task is a mapping"),
        ("name: x", "'categories' is missing"),
        (FOUR + "letter: A", "unknown key 'letter'. Did you mean 'letters'?"),
        (FOUR.replace("C, D]", "C]"), "letters: found 3, allowed: one for each of 4 options"),
        (FOUR.replace("C, D]", "C, C]"), "letters: found ['A', 'B', 'C', 'C'], allowed: a list of different texts"),
        (FOUR.replace("C, D]", "C, DD]"), "allowed: single characters"),
        (FOUR.replace("[까닭, 결과]", "[]"), "categories: found none"),
        (FOUR.replace("결과]", "'까닭 ']"), "allowed: a list of different texts"),
        (FOUR.replace("choice_1", "category"), "options: found category, which every item has for something else"),
        (FOUR.replace("[까닭, 결과]", "[1, 2]"), "categories: found [1, 2]"),
        (FOUR + "official: {items: {train: no}}", "official.items"),
        (FOUR + "official: {turns: 3}", "official.turns"),
        (FOUR + "official: 3", "official: found 3"),
    ],
)
def test_a_faulty_file_is_one_message(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_task(written(tmp_path, text))
    assert words in str(caught.value)


def test_the_flag_changes_the_task_of_the_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("Doc.", "run.test")
    task.add_flag(parser)
    parser.parse_args([])
    assert task.current().name == "대화 맥락 추론"
    parser.parse_args(["--task", str(written(tmp_path))])
    assert task.current() == Task(
        "날씨 추론", ("까닭", "결과"), tuple(f"choice_{n}" for n in (1, 2, 3, 4)), tuple("ABCD")
    )
    with pytest.raises(SystemExit):
        parser.parse_args(["--task", str(tmp_path / "nothing.yaml")])
    assert "cannot be read as a task" in capsys.readouterr().err


def test_official_figures_that_no_corpus_has(tmp_path: Path) -> None:
    text = Path(task.FILE).read_text(encoding="utf-8")
    for number in ("1" + "0" * 400, ".nan", ".inf", "true"):
        path = tmp_path / "task.yaml"
        path.write_text(re.sub(r"turns: \[[^,]*", f"turns: [{number}", text), encoding="utf-8")
        assert number in path.read_text(encoding="utf-8")
        with pytest.raises(UserError, match=r"official\.turns: found"):
            load_task(path)
