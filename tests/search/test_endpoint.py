import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from src.console.cli import UserError
from src.search import critics
from src.search.critics import Calls, Endpoint, Wish, behind_thoughts
from tests.made_endpoint import Server, completion

WISH = Wish(temperature=0.5, max_tokens=64, seed=3)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Nobody waits between two tries, and the proxies of the environment lead nowhere."""
    monkeypatch.setattr(critics, "LONGEST_WAIT", 0.0)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server = Server()
    yield server
    server.close()


def message_of(ask: Callable[[str, str], str]) -> str:
    """The UserError's message: one line that names the endpoint and says that the command goes on."""
    with pytest.raises(UserError) as caught:
        ask("질문", "지시")
    message = str(caught.value)
    assert "\n" not in message and "127.0.0.1" in message
    return message


def test_network_faults_and_busy_servers_are_tried_again(server: Server) -> None:
    server.replies = [None, (503, b""), (429, b"{}"), (200, completion("네"))]
    told: list[str] = []
    assert Endpoint(server.url, "some", None, WISH, told.append)("질문", "지시") == "네"
    assert len(server.seen) == 4 and server.seen[0]["messages"] == server.seen[3]["messages"]
    assert server.seen[3]["messages"] == [
        {"role": "system", "content": "지시"},
        {"role": "user", "content": "질문"},
    ]
    assert (server.seen[0]["temperature"], server.seen[0]["max_tokens"], server.seen[0]["seed"]) == (0.5, 64, 3)
    assert len(told) == 3 and "503" in told[1] and "asked again in 0 s (4 of 7)" in told[2]


def test_a_server_that_asks_for_time_gets_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(critics, "LONGEST_WAIT", 60.0)
    waits: list[float] = []
    monkeypatch.setattr(critics.time, "sleep", waits.append)
    server.headers, server.replies = {"Retry-After": "7"}, [(429, b"{}"), (200, completion("네"))]
    assert Endpoint(server.url, "some", None, WISH)("질문", "") == "네"
    assert waits == [7.0]


@pytest.mark.parametrize(
    ("status", "body", "tries", "told"),
    [
        (
            200,
            b"<!doctype html><html>web ui</html>",
            1,
            ["answered with a web page", "web ui", "Is this the base address"],
        ),
        (200, b"", 3, ["answered with no JSON (an empty body) 3 times"]),
        (200, b"data: {}", 3, ["answered with no JSON (data: {})"]),
        (200, completion("abc")[:40], 3, ["JSON that is cut off or damaged ("]),
        (200, b'{"a": \xff}', 3, ["JSON that is cut off or damaged ("]),
        (200, b"[" * 100_000, 3, ["JSON that is cut off or damaged ("]),
        (200, b'{"choices": []}', 3, ['without choices: {"choices": []}']),
        (
            200,
            b'{"choices": null, "error": {"message": "upstream overloaded", "code": 502}}',
            3,
            ["overloaded (code 502)"],
        ),
        (200, b'{"error": "no such model"}', 3, ["without choices: no such model"]),
        (200, b'["a"]', 3, ["without choices: "]),
        (200, b"3", 3, ["without choices: 3"]),
        (200, b'{"choices": "x"}', 3, ["without choices: "]),
        (200, b'{"choices": [{"text": "x"}]}', 3, ["a choice that has no message"]),
        (200, b'{"choices": [7]}', 3, ["a choice that has no message"]),
        (200, completion(None), 3, ["no content (finish_reason stop)"]),
        (200, completion(None, refusal="I will not"), 3, ["I will not"]),
        (200, completion("  "), 3, ["no content"]),
        (200, completion(7), 3, ["a content that is no text (7)"]),
        (200, completion(None, "length", reasoning_content="생각 중"), 3, ["thoughts alone", "생각 중", "now 64"]),
        (200, completion("", reasoning="생각 중"), 3, ["thoughts alone"]),
        (400, b'{"error": {"message": "too long"}}', 1, ["400 too long.", "--batch_size"]),
        (401, b'{"error": {"message": "Incorrect API key: geheim"}}', 1, ["401 Incorrect API key: ***.", "--key_env"]),
        (404, b'{"detail": "Not Found"}', 1, ["404 Not Found.", "--engine_model"]),
        (429, b'{"error": {"message": "slow down"}}', 7, ["429 slow down 7 times.", "Wait until"]),
        (500, b"<html>Bad gateway</html>", 7, ["500 <html>Bad gateway</html> 7 times."]),
    ],
)
def test_odd_answers_are_one_line(server: Server, status: int, body: bytes, tries: int, told: list[str]) -> None:
    server.replies = [(status, body)]
    message = message_of(Endpoint(server.url, "some", "geheim", WISH))
    assert [part for part in told if part not in message] == [], message
    assert len(server.seen) == tries and message.count("same command") == 1
    assert "the same command goes on" in message and len(message) < 700 and "geheim" not in message


def test_a_second_try_mends_an_odd_answer(server: Server) -> None:
    server.replies = [(200, completion("abc")[:40]), (200, completion(None)), (200, completion("네"))]
    assert Endpoint(server.url, "some", None, WISH)("질문", "") == "네"
    # The same seed would bring the same empty answer.
    assert [one["seed"] for one in server.seen] == [3, 4, 5]


def test_an_answer_in_parts_is_put_together(server: Server) -> None:
    server.replies = [(200, completion([{"type": "text", "text": "네"}, {"type": "text", "text": ", 그래요"}]))]
    assert Endpoint(server.url, "some", None, WISH)("질문", "") == "네, 그래요"


def test_a_hung_server_is_told_of(server: Server) -> None:
    server.replies = [5.0]
    started = time.monotonic()
    message = message_of(Endpoint(server.url, "some", None, Wish(0.5, 64, 3, seconds=0.2)))
    assert "gave no answer within 0.2 s 2 times" in message and "--answer_seconds" in message
    assert time.monotonic() - started < 4


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(critics, "LONGEST_WAIT", 0.0)
    endpoint = Endpoint("http://127.0.0.1:9/v1", "some", None, WISH)
    message = message_of(endpoint)
    assert "cannot be reached" in message and "refused" in message and "7 times" in message
    with pytest.raises(UserError, match="cannot be reached"):
        endpoint.check()


def test_what_is_plain_at_once_is_told_before_anything_is_loaded(server: Server) -> None:
    endpoint = Endpoint(server.url, "some", "geheim", WISH)
    for status, body, told in [
        (200, b" <html></html>", "web page"),
        (401, b"{}", "--key_env"),
    ]:
        server.replies = [(status, body)]
        with pytest.raises(UserError, match=told):
            endpoint.check()
    for reply in [(200, b'{"data": []}'), (404, b""), (429, b""), (500, b"<html>"), (200, b"{"), None]:
        server.replies = [reply]
        endpoint.check()
    assert {one["path"] for one in server.seen} == {"/v1/models"}


def test_a_password_and_a_query_reach_the_server_alone(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    url = f"http://user:p%40ss%2Fword@{server.place}/v1?api_key=s3cret&api-version=2"
    server.replies = [(200, completion("네"))]
    endpoint = Endpoint(url, "some", None, WISH, told.append)
    assert endpoint("질문", "") == "네"
    assert server.seen[0]["path"] == "/v1/chat/completions?api_key=s3cret&api-version=2"
    assert server.seen[0]["key"] == "Basic dXNlcjpwQHNzL3dvcmQ="
    said = json.dumps({"error": {"message": f"you are p@ss/word or p%40ss%2Fword at {url} with s3cret"}}).encode()
    for reply in [(200, said), (503, said), (400, said), (200, completion(None, reasoning=f"{url}")), None]:
        server.replies = [reply]
        told.append(message_of(endpoint))
    shown = "\n".join(told) + "".join(capsys.readouterr())
    assert f"http://***@{server.place}/v1?api_key=***&api-version=2" in shown
    assert not [word for word in ("p@ss", "p%40ss", "s3cret", "word@") if word in shown]


def test_an_environment_that_breaks_the_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:9")
    with pytest.raises(UserError, match=r"the connection cannot be made \(.*ALL_PROXY"):
        Endpoint("https://api.example.org/v1", "some", "k", WISH)


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
def test_what_stands_behind_the_thoughts_counts(answer: str, found: str | None) -> None:
    assert behind_thoughts(answer) == (found or "<IMPROVED_VARIABLE>글</IMPROVED_VARIABLE>")


def test_a_new_text_may_speak_of_thoughts() -> None:
    text = "<IMPROVED_VARIABLE>답은 </think> 뒤에 쓰세요.</IMPROVED_VARIABLE>"
    assert behind_thoughts(f"<think>x</think>\n{text}") == text
    assert behind_thoughts(text) == text


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
