import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from run import optimize_prompt
from run.optimize_prompt import main
from src import prompt_search
from src.cli import UserError
from src.prompts import load_prompt
from tests import toys
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


def test_a_critic_in_process(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments(place, "local", "--engine", str(place / "critic"), "--steps", "1"))
    assert "step 1, refused: the critic's answer holds no new text" in capsys.readouterr().out
    assert len((place / "local" / "calls.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_a_better_prompt_of_a_real_model(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A critic that proposes texts by number; the toy under test happens to do better under some of them."""

    def proposing(*_: object) -> prompt_search.Ask:
        proposed = iter(range(100))
        return lambda message, system: (
            "말" if "gradient" in system else f"<IMPROVED_VARIABLE>{next(proposed)}번 글</IMPROVED_VARIABLE>"
        )

    monkeypatch.setattr(optimize_prompt, "make_ask", proposing)
    main(arguments(place, "found", "--engine", "scripted", "--steps", "25", "--margin", "0.01"))
    printed = capsys.readouterr().out
    record = json.loads((place / "found" / "search_record.json").read_text(encoding="utf-8"))
    assert record["kept"] and record["prompt"]["accuracy"][0] > record["start"]["accuracy"][0]
    kept = [json.loads((place / f"found/steps/{n:03d}/step.json").read_text())["held_out"] for n in record["kept"]]
    shares = [record["start"]["accuracy"][0], *(one["accuracy"] for one in kept)]
    assert shares == sorted(shares) and len(set(shares)) == len(shares)
    assert "-system: 두 사람의" in printed and "+system: " in printed
    assert load_prompt(place / "found" / "prompt.yaml").system.endswith("번 글")


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
