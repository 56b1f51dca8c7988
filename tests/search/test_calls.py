from pathlib import Path

import pytest

from src.console.cli import UserError
from src.search.calls import Calls, after_thoughts


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("네", "네"),
        ("<think>\n생각\n</think>\n\n네", "네"),
        ("생각\n</think>네", "네"),  # the template wrote the opening tag
        ("<think>The tag <IMPROVED_VARIABLE> must hold it</think>\n<IMPROVED_VARIABLE>글</IMPROVED_VARIABLE>", None),
        ("<think>write </think>, then <IMPROVED_VARIABLE></think><IMPROVED_VARIABLE>글</IMPROVED_VARIABLE>", None),
        ("<think>x</think><IMPROVED_VARIABLE>글</IMPROVED_VARIABLE>", None),
        ("<think>The tag <IMPROVED_VARIABLE></think>모르겠어요", "모르겠어요"),
        ("이 글은 <think>를 말합니다", "이 글은 <think>를 말합니다"),
    ],
)
def test_what_comes_after_the_thoughts_counts(answer: str, found: str | None) -> None:
    assert after_thoughts(answer) == (found or "<IMPROVED_VARIABLE>글</IMPROVED_VARIABLE>")


def test_a_new_text_may_speak_of_thoughts() -> None:
    text = "<IMPROVED_VARIABLE>답은 </think> 뒤에 쓰세요.</IMPROVED_VARIABLE>"
    assert after_thoughts(f"<think>x</think>\n{text}") == text
    assert after_thoughts(text) == text


def test_thoughts_without_an_end_stop_the_search_and_are_not_kept(tmp_path: Path) -> None:
    calls = Calls(lambda message, system: "<think>음, <IMPROVED_VARIABLE>", tmp_path / "calls.jsonl", 5)
    with pytest.raises(UserError, match=r"ends within its thoughts \(<think>음.*--answer_tokens"):
        calls("질문")
    assert calls.count == 0 and not (tmp_path / "calls.jsonl").exists()


@pytest.mark.parametrize(
    "answer", ["하나\u2028둘", "하나\u2029둘\x85셋\x0b\x0c\x1c\x1d\x1e넷", "\r\n하나\r", "\ud800반쪽"]
)
def test_every_answer_is_read_back_as_it_was(tmp_path: Path, answer: str) -> None:
    first = Calls(lambda message, system: answer, tmp_path / "calls.jsonl", 5)
    found = first("질문")
    assert found == answer.replace("\ud800", "?")

    def never(message: str, system: str) -> str:
        raise AssertionError("asked twice")

    assert Calls(never, tmp_path / "calls.jsonl", 5)("질문") == found


@pytest.mark.parametrize("cut", [1, 3, 40])
def test_a_line_that_a_kill_cut_off_costs_that_call_alone(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "calls.jsonl"
    calls = Calls(lambda message, system: f"{message}에 대한 답", file, 9)
    calls("하나"), calls("둘")
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])  # within a Korean letter, too
    again = Calls(lambda message, system: f"{message}에 대한 답", file, 9)
    assert again.count == (2 if cut == 1 else 1)
    again("둘"), again("셋")
    assert Calls(lambda message, system: "", file, 9).count == 3


def test_lines_that_are_no_calls_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "calls.jsonl").write_text('7\n{"key": 1}\nnull\n["a"]\n\n', encoding="utf-8")
    assert Calls(lambda message, system: "", tmp_path / "calls.jsonl", 5).count == 0
