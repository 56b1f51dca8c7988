import dataclasses
import itertools
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from run import optimize_prompt
from run.optimize_prompt import main
from src import task
from src.console.cli import UserError
from src.data import load_items
from src.prompt.encode import Encoder
from src.prompt.prompts import load_prompt
from src.score.letters import LetterScorer
from src.search import endpoint
from src.search.calls import Ask
from src.search.prompt_search import split
from src.search.settings import SearchSettings
from tests import toys
from tests.made_endpoint import Server, completion
from tests.made_runs import make_split

SERVE = "import sys; from transformers.cli.transformers import main; sys.argv = ['transformers', *sys.argv[1:]]; main()"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data/` with dev alone, and `critic/`, a toy with room for what a critic is asked."""
    place = tmp_path_factory.mktemp("search")
    make_split(place / "data", "dev", 24)
    toys.save("qwen2it", place / "critic", max_position_embeddings=16384)
    return place


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[str]:
    """The address of a real `transformers serve` on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["serve", str(place / "critic"), "--host", "127.0.0.1", "--port", f"{port}", "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-c", SERVE, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        for _ in range(240):
            assert process.poll() is None, process.stdout.read().decode()  # type: ignore[union-attr]
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                time.sleep(0.25)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def arguments(place: Path, out: str, *more: str) -> list[str]:
    flags = ["--run", str(place / "critic"), "--prompt", "korean", "--data", str(place / "data"), "--device", "cpu"]
    return [*flags, "--out", str(place / out), "--answer_tokens", "8", "--batch_size", "2", *more]


@pytest.mark.slow
@pytest.mark.thorough
def test_textgrad_through_a_real_server(place: Path, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    engine = ("--engine", server, "--engine_model", str(place / "critic"))
    main(arguments(place, "served", *engine, "--steps", "2", "--categories"))
    printed = capsys.readouterr().out
    out = place / "served"
    calls = [json.loads(line) for line in (out / "calls.jsonl").read_text(encoding="utf-8").splitlines()]
    # A toy writes nothing of use: its steps are refused, and say why.
    assert printed.count("refused: the critic's answer holds no new text") == 2 and "No new prompt was kept." in printed
    assert calls and all(call["answer"] for call in calls)
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("search.json", "search_record.json", "calls.jsonl", "steps"),
        *("prompt.yaml", "prompt.diff", "accuracy.png"),
    }
    assert {path.name for path in (out / "steps").iterdir()} == {"000", "001", "002"}
    record = json.loads((out / "search_record.json").read_text(encoding="utf-8"))
    assert record["calls"] == len(calls) and record["kept"] == [] and (out / "prompt.diff").read_text() == ""
    assert set(record["data"]["learned_from"]) | set(record["data"]["held_out"]) == {f"made-{n:04d}" for n in range(24)}
    found = load_prompt(out / "prompt.yaml")
    assert (found.name, found.system) == ("served", load_prompt("korean").system)
    # The same command makes nothing anew; another search is not mixed with it.
    main(arguments(place, "served", *engine, "--steps", "2", "--categories"))
    assert f"2 steps are done; {len(calls)} calls" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds another search: seed was 0, now 1"):
        main(arguments(place, "served", *engine, "--seed", "1", "--categories"))


def test_an_odd_endpoint_keeps_what_was_done(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused at once, then after step 0, then gone on with; what opens the endpoint's door is written nowhere."""
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.0)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    server = Server()

    def command(path: str) -> list[str]:
        url = f"http://user:geheim@{server.place}{path}?api_key=auchgeheim"
        return arguments(place, "odd", "--engine", url, "--engine_model", "m", "--steps", "1")

    server.replies = [(200, b"<html>web ui</html>")]
    with pytest.raises(UserError, match="answered with a web page"):
        main(command("/"))
    assert not (place / "odd").exists(), "told before anything is loaded or written"
    server.replies = [(200, b'{"choices": null, "error": {"message": "upstream overloaded"}}')]
    with pytest.raises(UserError, match=r"answered without choices: upstream overloaded 3 times.*goes on") as caught:
        main(command("/wrong"))
    assert (place / "odd" / "steps" / "000" / "step.json").is_file() and "asked again in" in capsys.readouterr().err
    # No call was answered so far: the address may be mended.
    new = "대화를 끝까지 읽고\u2028알맞은 문장의 기호만 답하세요."
    server.replies = [
        (200, completion(f"<think>음</think>좋지\u2028않습니다. <IMPROVED_VARIABLE>{new}</IMPROVED_VARIABLE>"))
    ]
    for _ in range(2):
        asked = len(server.seen)
        main(command("/v1"))
    assert len(server.seen) == asked, "nothing is asked twice"
    assert load_prompt(place / "odd" / "steps" / "001" / "prompt.yaml").system == new
    printed = "".join(capsys.readouterr()) + str(caught.value)
    stored = "".join(
        file.read_text(encoding="utf-8")
        for file in (place / "odd").rglob("*.*")
        if file.is_file() and file.suffix != ".png"
    )
    assert "geheim" not in printed + stored and f"http://***@{server.place}/v1?api_key=***" in stored
    with pytest.raises(UserError, match="holds another search: engine was"):
        main(command("/v2"))
    server.close()


def test_settings_of_the_critic_are_checked_before_all_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, told in [
        (("--engine", "localhost:8000/v1", "--engine_model", "m"), "is no address; allowed: http://HOST:PORT/v1"),
        (("--engine", "http://u:geheim/x@h/v1", "--engine_model", "m"), r"http://\*\*\*@h/v1 is no address"),
        (("--engine", "x", "--temperature", "nan"), "--temperature nan: allowed"),
        (("--engine", "x", "--answer_tokens", "0"), "--answer_tokens 0, .*allowed: 1 or more"),
        (("--engine", "x", "--answer_seconds", "inf"), "--answer_seconds inf"),
        (("--engine", "http://localhost:1/v1", "--engine_model", "m", "--key_env", "NO_KEY"), "NO_KEY holds no key"),
    ]:
        with pytest.raises(UserError, match=told):
            main([*arguments(place, "checked"), *words])
    assert not (place / "checked").exists()


def test_a_damaged_search_is_named(place: Path) -> None:
    for number, text in enumerate(["{", "[]", "{}"]):
        folder = place / f"damaged-{number}"
        folder.mkdir()
        (folder / "search.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"search\.json is damaged"):
            main(arguments(place, folder.name, "--engine", "x"))


def test_a_critic_in_process(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments(place, "local", "--engine", str(place / "critic"), "--steps", "1"))
    assert "step 1, refused: the critic's answer holds no new text" in capsys.readouterr().out
    assert len((place / "local" / "calls.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_a_better_prompt_of_a_real_model(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The toy under test happens to do better under some texts than under others: a critic that proposes a worse and a
    better one is refused and followed.
    """
    items = load_items(place / "data" / "data_dev.json")
    parts = split(items, SearchSettings())
    model, prompt = toys.network("qwen2it", max_position_embeddings=16384), load_prompt("korean")

    def right(text: str) -> tuple[int, int]:
        encoder = Encoder(toys.tokenizer("qwen2it"), dataclasses.replace(prompt, system=text), name="qwen2it")
        examples = encoder.for_scoring(items)
        scores = LetterScorer(model, encoder.letter_ids or (), encoder.pad_id).score(examples).items
        hit = {item.id: one.prediction == item.label for item, one in zip(items, scores, strict=True)}
        learned, held = (sum(hit[item.id] for item in part) for part in parts)
        return learned, held

    found = {text: right(text) for text in (f"{number}번 글" for number in range(12))}
    start, better, worse = next(
        (start, better, worse)
        for start, better, worse in itertools.permutations(found, 3)
        if found[better][0] >= found[start][0] > found[worse][0] and found[better][1] > found[start][1]
    )
    raw = yaml.safe_load(prompt.text) | {"system": start}
    (place / "start.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    answers = iter(["말", worse, "말", better])

    def proposing(*_: object) -> Ask:
        return lambda message, system: (
            next(answers) if "gradient" in system else f"<IMPROVED_VARIABLE>{next(answers)}</IMPROVED_VARIABLE>"
        )

    monkeypatch.setattr(optimize_prompt, "load_ask", proposing)
    flags = ("--engine", "scripted", "--steps", "2", "--margin", "0.01", "--prompt", str(place / "start.yaml"))
    main(arguments(place, "found", *flags))
    printed = capsys.readouterr().out
    record = json.loads((place / "found" / "search_record.json").read_text(encoding="utf-8"))
    asked = json.loads((place / "found" / "search.json").read_text(encoding="utf-8"))
    assert asked["task"] == record["search"]["task"] == task.current().sha256
    assert record["kept"] == [2] and record["prompt"]["step"] == 2 and record["calls"] == 4
    for key, text in (("start", start), ("prompt", better)):
        assert record[key]["accuracy"][0] == pytest.approx(found[text][1] / len(parts[1]))
    assert "step 1, refused: worse on the items it learns from" in printed
    assert f"-system: {start}\n" in printed and f"+system: {better}\n" in printed
    assert load_prompt(place / "found" / "prompt.yaml").system == better


def test_what_stays_on_this_machine(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    hosted = ("--engine", "https://api.example.org/v1", "--engine_model", "m", "--key_env", "SOME_KEY")
    with pytest.raises(UserError, match="SOME_KEY holds no key"):
        main(arguments(place, "hosted", *hosted))
    monkeypatch.setenv("SOME_KEY", "secret")
    with pytest.raises(UserError, match=r"would be sent there.*--send_items"):
        main(arguments(place, "hosted", *hosted))
    with pytest.raises(UserError, match="needs --engine_model"):
        main(arguments(place, "hosted", "--engine", "http://localhost:1/v1"))
    assert not (place / "hosted").exists()


def test_test_data_is_never_touched(place: Path) -> None:
    with pytest.raises(SystemExit):
        main(arguments(place, "test", "--engine", "x", "--split", "test"))
    make_split(place / "unlabelled", "dev", 3, labelled=False)
    with pytest.raises(UserError, match="3 items have no label"):
        main(arguments(place, "test", "--engine", "x", "--data", str(place / "unlabelled")))
