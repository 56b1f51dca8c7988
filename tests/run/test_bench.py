"""run.bench on a CPU: its flags, its processes, what it prints and leaves."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from run import bench as command
from src.console.cli import UserError, run_main
from src.data import Item, dump_items, parse_items
from src.files.writing import write_json, write_text
from src.plan import speeds
from src.prompt.prompts import load_prompt
from src.toy import bench, bench_inputs
from src.toy.bench_cases import CASES
from tests import toys  # one thread


@pytest.fixture(scope="module")
def few() -> list[Item]:
    """The shortest of the lengthened items."""
    train = parse_items(json.dumps(bench_inputs.make_corpus()["train"]).encode(), "train")[0]
    return sorted(train, key=lambda item: sum(len(turn.text) for turn in item.dialogue))[:10]


def test_help_and_mistakes() -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    for argv, words in (
        (["--backbone", "polr"], "Did you mean 'polar'"),
        (["--device", "cpu", "--rows", "lora64"], "Did you mean 'lora-64'"),
        (["--seconds", "0"], "above 0"),
        (["--device", "cpu", "--cap", "24"], "the GPU's"),
        (["--device", "gpu"], "allowed: cpu, cuda"),
        (["--device", "cpu", "--layers", "8"], "--layers: found 8, but bllossom has 4 here"),
        (["--row", "entry"], "^--row: found 'entry'. .* starts for itself, .* single rows: --rows entry$"),
        (["--row", "entry", "--json", "x.json"], "single rows: --rows entry$"),
    ):
        with pytest.raises(UserError, match=words):
            command.main(argv)


def test_measured_steps_are_kept_for_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "speeds.yaml"
    write_text(table, speeds.SPEEDS.read_text(encoding="utf-8"))
    monkeypatch.setattr(speeds, "SPEEDS", table)
    row = {**asdict(CASES["score-1"]), "steps": 2, "unique_tokens": 1000, "seconds": 3.0}
    place = {"backbone": "polar", "cap_gib": None, "layers": 64, "of_layers": 64}
    record = {
        "device": "NVIDIA H200",
        **place,
        "versions": dict.fromkeys(speeds.VERSIONS, "1"),
        "rows": {"score-1": row},
    }
    write_json(tmp_path / "bench.json", record)
    assert command.main(["--keep", str(tmp_path / "bench.json")]) == 0
    assert "score-1, polar, NVIDIA H200, not captured: 1.5000 s for 500 tokens" in capsys.readouterr().out
    kept, before = speeds.measured(table), speeds.measured()
    assert len(kept) == len(before) + 1 and {(one.seconds, one.tokens) for one in kept if one.backbone == "polar"} >= {
        (1.5, 500.0)
    }
    assert table.read_text(encoding="utf-8").startswith("# Steps of one item")
    write_json(tmp_path / "bench.json", [1])
    with pytest.raises(UserError, match="is no record of"):
        command.main(["--keep", str(tmp_path / "bench.json")])


@pytest.mark.slow
def test_one_failing_row_is_a_line_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], few: list[Item]
) -> None:
    """The whole command, its rows in this process instead of one each."""
    make_corpus = {split: [item.source for item in few] for split in ("train", "test")}
    monkeypatch.setattr(bench_inputs, "make_corpus", lambda: make_corpus)
    monkeypatch.setattr(bench, "matmul_rates", lambda device: (1e12, 0.9e12))

    def run_job(job: list[str], log: Path, *rest: Any) -> str:
        if "score-6" in job:
            return "ValueError: a bug (exit 1)"
        if "score-1" in job:
            return f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB (exit 1, see {log})"
        assert job[1:3] == ["-m", "run.bench"]
        return "" if run_main(lambda: command.main(job[3:])) == 0 else "failed"

    monkeypatch.setattr(command, "run_job", run_job)
    path = tmp_path / "bench.json"
    argv = ["--device", "cpu", "--layers", "1", "--seconds", "0.01", "--json", str(path)]
    code = command.main([*argv, "--rows", "score-6", "entry-score", "score-1"])
    record = json.loads(path.read_text(encoding="utf-8"))
    assert code == 1 and list(record["rows"]) == ["entry-score", "score-1", "score-6"]
    assert record["rows"]["score-6"] == {"failed": "ValueError: a bug (exit 1)"}
    assert record["rows"]["score-1"] == {"failed": "out of memory"}
    assert record["rows"]["entry-score"]["ratio"] == 1.0
    assert record["layers"] == 1 and record["of_layers"] == 4 and "torch" in record["versions"]
    shown = capsys.readouterr().out
    assert "failed: out of memory" in shown and "1 layers of 4" in shown
    assert max(map(len, shown.replace(str(path), "").splitlines())) <= 100
    # What does not fit is a line of the table; the command did what it could.
    assert command.main([*argv, "--rows", "entry-score", "score-1"]) == 0


def test_the_process_of_a_row_writes_its_numbers(
    few: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "matmul_rates", lambda device: (1e12, 0.9e12))
    for split in ("train", "test"):
        write_text(tmp_path / f"{split}.json", dump_items([item.source for item in few[:3]]))
    tokenizer = bench_inputs.train_tokenizer(few, load_prompt("entry"), bench_inputs.kind_for("bllossom"))
    write_text(tmp_path / "tokenizer.json", tokenizer.to_str())
    argv = ["--row", "entry-score", "--corpus", str(tmp_path), "--json", str(tmp_path / "row.json"), "--device", "cpu"]
    command.main([*argv, "--layers", "1", "--seconds", "0.01"])
    assert json.loads((tmp_path / "row.json").read_text(encoding="utf-8"))["name"] == "entry-score"


assert toys  # imported for what it sets
