import json
import time
from collections.abc import Callable, Iterator

import pytest

from src.console.cli import UserError
from src.search import endpoint
from src.search.calls import AnswerSettings
from src.search.endpoint import Endpoint
from tests.made_endpoint import Server, completion

SETTINGS = AnswerSettings(temperature=0.5, max_tokens=64, seed=3)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Nobody waits between two tries, and the proxies of the environment lead nowhere."""
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.0)
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
    assert Endpoint(server.url, "some", None, SETTINGS, told.append)("질문", "지시") == "네"
    assert len(server.seen) == 4 and server.seen[0]["messages"] == server.seen[3]["messages"]
    assert server.seen[3]["messages"] == [
        {"role": "system", "content": "지시"},
        {"role": "user", "content": "질문"},
    ]
    assert (server.seen[0]["temperature"], server.seen[0]["max_tokens"], server.seen[0]["seed"]) == (0.5, 64, 3)
    assert len(told) == 3 and "503" in told[1] and "asked again in 0 s (4 of 7)" in told[2]


def test_a_server_that_asks_for_time_gets_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 60.0)
    waits: list[float] = []
    monkeypatch.setattr(endpoint.time, "sleep", waits.append)
    server.headers, server.replies = {"Retry-After": "7"}, [(429, b"{}"), (200, completion("네"))]
    assert Endpoint(server.url, "some", None, SETTINGS)("질문", "") == "네"
    assert waits == [7.0]


@pytest.mark.slow
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
    message = message_of(Endpoint(server.url, "some", "geheim", SETTINGS))
    assert [part for part in told if part not in message] == [], message
    assert len(server.seen) == tries and message.count("same command") == 1
    assert "the same command goes on" in message and len(message) < 700 and "geheim" not in message


def test_a_second_try_mends_an_odd_answer(server: Server) -> None:
    server.replies = [(200, completion("abc")[:40]), (200, completion(None)), (200, completion("네"))]
    assert Endpoint(server.url, "some", None, SETTINGS)("질문", "") == "네"
    # The same seed would bring the same empty answer.
    assert [one["seed"] for one in server.seen] == [3, 4, 5]


def test_an_answer_in_parts_is_put_together(server: Server) -> None:
    server.replies = [(200, completion([{"type": "text", "text": "네"}, {"type": "text", "text": ", 그래요"}]))]
    assert Endpoint(server.url, "some", None, SETTINGS)("질문", "") == "네, 그래요"


def test_a_hung_server_is_told_of(server: Server) -> None:
    server.replies = [5.0]
    started = time.monotonic()
    message = message_of(Endpoint(server.url, "some", None, AnswerSettings(0.5, 64, 3, seconds=0.2)))
    assert "gave no answer within 0.2 s 2 times" in message and "--answer_seconds" in message
    assert time.monotonic() - started < 4


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.0)
    critic = Endpoint("http://127.0.0.1:9/v1", "some", None, SETTINGS)
    message = message_of(critic)
    assert "cannot be reached" in message and "refused" in message and "7 times" in message
    with pytest.raises(UserError, match="cannot be reached"):
        critic.check()


def test_what_is_plain_at_once_is_told_before_anything_is_loaded(server: Server) -> None:
    critic = Endpoint(server.url, "some", "geheim", SETTINGS)
    for status, body, told in [
        (200, b" <html></html>", "web page"),
        (401, b"{}", "--key_env"),
    ]:
        server.replies = [(status, body)]
        with pytest.raises(UserError, match=told):
            critic.check()
    for reply in [(200, b'{"data": []}'), (404, b""), (429, b""), (500, b"<html>"), (200, b"{"), None]:
        server.replies = [reply]
        critic.check()
    assert {one["path"] for one in server.seen} == {"/v1/models"}


def test_a_password_and_a_query_reach_the_server_alone(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    url = f"http://user:p%40ss%2Fword@{server.place}/v1?api_key=s3cret&api-version=2"
    server.replies = [(200, completion("네"))]
    critic = Endpoint(url, "some", None, SETTINGS, told.append)
    assert critic("질문", "") == "네"
    assert server.seen[0]["path"] == "/v1/chat/completions?api_key=s3cret&api-version=2"
    assert server.seen[0]["key"] == "Basic dXNlcjpwQHNzL3dvcmQ="
    said = json.dumps({"error": {"message": f"you are p@ss/word or p%40ss%2Fword at {url} with s3cret"}}).encode()
    for reply in [(200, said), (503, said), (400, said), (200, completion(None, reasoning=f"{url}")), None]:
        server.replies = [reply]
        told.append(message_of(critic))
    shown = "\n".join(told) + "".join(capsys.readouterr())
    assert f"http://***@{server.place}/v1?api_key=***&api-version=2" in shown
    assert not [word for word in ("p@ss", "p%40ss", "s3cret", "word@") if word in shown]


def test_an_environment_that_breaks_the_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:9")
    with pytest.raises(UserError, match=r"the connection cannot be made \(.*ALL_PROXY"):
        Endpoint("https://api.example.org/v1", "some", "k", SETTINGS)
