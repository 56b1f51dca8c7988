"""run.bench on a CPU: the clock, the rows, the table."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from rich.console import Console

from run import bench as command
from src.console.cli import UserError, run_main
from src.data import dump_items, parse_items
from src.files.writing import write_text
from src.model.shapes import Shape
from src.prompt.prompts import load_prompt
from src.score import letters as scores
from src.toy import bench
from src.toy import bench_inputs as standins
from src.tree.rows import Layout
from tests import toys  # one thread

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def train() -> list[Any]:
    return parse_items(json.dumps(standins.make_corpus()["train"]).encode(), "train")[0]


@pytest.fixture(scope="module")
def setting(train: list[Any]) -> bench.Setting:
    """A few short items and the smallest model."""
    prompt = load_prompt("entry")
    encoder = standins.make_encoder(standins.train_tokenizer(train, prompt, standins.kind_for("bllossom")), prompt)
    few = sorted(train, key=lambda item: sum(len(turn.text) for turn in item.dialogue))[:16]
    return bench.Setting("bllossom", standins.model_config("bllossom", "cpu", 1), CPU, encoder, few, few[:3])


def test_the_clock_leaves_the_warm_up_out() -> None:
    clock = bench.Clock(CPU, seconds=0.0, warm=2, least=3)
    clock.begin()
    for last in (False, False, False, False, True):
        clock.count(1, torch.tensor(10), unique=4, sequences=6)
        assert clock.lap() == last
    found = clock.result()
    assert [found[name] for name in ("steps", *bench.COUNTS)] == [3, 3, 18, 30, 12]
    assert found["seconds"] > 0 and found["peak_memory_bytes"] > 2**20


def test_every_stretch_of_spread_examples_is_of_mean_length(train: list[Any], setting: bench.Setting) -> None:
    examples = setting.encoder.for_scoring(train[:200])
    spread = bench.spread(examples)
    assert sorted(one.id for one in spread) == sorted(one.id for one in examples)
    mean = sum(len(one.ids) for one in examples) / len(examples)
    for start in range(0, 180, 20):
        assert sum(len(one.ids) for one in spread[start : start + 20]) / 20 == pytest.approx(mean, rel=0.04)


def test_rows_have_a_row_to_compare_with() -> None:
    for row in bench.ROWS.values():
        assert bench.ROWS[row.base].kind == row.kind and bench.ROWS[row.base].flops == row.flops
        assert row.base == row.name or row.base.startswith(("entry", "trl-orpo"))


@pytest.mark.parametrize(
    "name", ["entry", "entry-full", "trl", "lora-1", "full-1", "full-16", "entry-score", "score-6"]
)
def test_a_row_counts_what_it_computes(name: str, setting: bench.Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "matmul_peak", lambda device: 1e12)
    monkeypatch.setattr(bench, "WARM_AND_LEAST", {"training": (1, 1), "scoring": (1, 1)})
    row = bench.ROWS[name]
    found = command.with_rates(bench.measure(row, setting, 0.0))
    items = {"trl": 8, "score-6": len(setting.test)}.get(name, row.items)
    assert found["items"] == items * found["steps"] and found["sequences"] == items * row.orders * found["steps"]
    assert 400 < found["raw_tokens"] / found["sequences"] < 1000
    assert 0 < found["unique_tokens"] <= found["raw_tokens"]
    assert found["items_per_second"] > 0 and 0 < found["share_of_peak"] < 1


def test_growth_is_that_of_trees(setting: bench.Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "matmul_peak", lambda device: 1e12)
    monkeypatch.setattr(bench, "GROWTH", (1, 2))
    monkeypatch.setattr(bench, "SCORED_ON_CPU", 3)
    kinds = []
    lay_out = scores.lay_out
    monkeypatch.setattr(scores, "lay_out", lambda *given: kinds.append(given[2].kind) or lay_out(*given))
    found = bench.measure(bench.ROWS["growth"], setting, 0.0)
    assert kinds == ["tree", "padded", "padded", *["tree"] * 4], "once held against prompts one by one"
    assert found["guard"]["agree"]
    (one, _), (two, _) = found["points"]
    # Two splits are two rows, each with what all items begin with; what is shared makes them shorter than their items.
    assert 1.8 * one < two < 2.2 * one and found["unique_tokens"] == one + two < found["raw_tokens"] / 1.2
    assert found["items"] == 3 + 6
    command.draw_growth(found["points"], "heading", tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_what_was_read_one_by_one_after_all_was_not_shared(
    setting: bench.Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "matmul_peak", lambda device: 1e12)
    monkeypatch.setattr(bench.layouts, "scoring_layout", lambda *given: Layout("tree", 4096, 0))
    for kind in ("tree", "padded"):
        found = scores.Scored([], scores.HowRead(kind))
        monkeypatch.setattr(scores.LetterScorer, "score", lambda *given, found=found: found)
        found = bench.measure(bench.ROWS["score-6"], setting, 0.0)
        assert (found["unique_tokens"] == found["raw_tokens"]) == (kind == "padded") and f"{kind} rows" in found["note"]


@pytest.mark.parametrize("name", ["trl-orpo", "orpo-16"])
def test_preference_pairs_are_counted_alike(name: str, setting: bench.Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "matmul_peak", lambda device: 1e12)
    monkeypatch.setattr(bench, "WARM_AND_LEAST", {"training": (1, 1), "scoring": (1, 1)})
    found = bench.measure(dataclasses.replace(bench.ROWS[name], items=4), setting, 0.0)
    assert found["items"] == found["sequences"] == 8 * found["steps"], "8 pairs are TRL's batch"
    # Two pairs are four sequences, of which the tree computes hardly more than one.
    assert 1000 < found["raw_tokens"] / found["items"] < 2000
    shared = found["raw_tokens"] / found["unique_tokens"]
    assert shared == 1 if name == "trl-orpo" else shared > 4


def test_qlora_is_quantised(setting: bench.Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "matmul_peak", lambda device: 1e12)
    monkeypatch.setattr(bench, "WARM_AND_LEAST", {"training": (1, 1), "scoring": (1, 1)})
    packed: list[int] = []
    add_adapter = bench.models.add_adapter

    def see(network: Any, recipe: Any) -> Any:
        linear = [module for module in network.modules() if isinstance(module, Linear4bit)]
        packed.append(sum(2 * module.weight.numel() for module in linear))
        assert all(module.weight.quant_state.nested for module in linear), "the scales are quantised as well"
        return add_adapter(network, recipe)

    monkeypatch.setattr(bench.models, "add_adapter", see)
    for name in ("qlora-64", "lora-64"):
        bench.measure(dataclasses.replace(bench.ROWS[name], items=2), setting, 0.0)
    assert packed == [Shape.of_config(setting.config).linear_parameters, 0]


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
        (["--row", "entry"], "^--row: found 'entry'; .* starts for itself, .* single rows: --rows entry$"),
        (["--row", "entry", "--json", "x.json"], "single rows: --rows entry$"),
    ):
        with pytest.raises(UserError, match=words):
            command.main(argv)


def test_one_failing_row_is_a_line_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], train: list[Any]
) -> None:
    """The whole command, its rows in this process instead of one each."""
    few = sorted(train, key=lambda item: sum(len(turn.text) for turn in item.dialogue))[:10]
    make_corpus = {split: [item.source for item in few] for split in ("train", "test")}
    monkeypatch.setattr(standins, "make_corpus", lambda: make_corpus)
    monkeypatch.setattr(bench, "matmul_peak", lambda device: 1e12)

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


def test_the_table_takes_rows_without_a_base(setting: bench.Setting) -> None:
    row = dataclasses.asdict(bench.ROWS["lora-64"]) | dict.fromkeys(bench.COUNTS, 10) | {"seconds": 2.0}
    row |= {"warm_seconds": 1.0, "peak_memory_bytes": 3 * 2**30, "matmul_flops": 1e12, "linear_parameters": 10**6}
    rows = {"lora-64": command.with_rates({**row, "note": "[odd] words"})}
    command.add_ratios(rows)
    assert rows["lora-64"]["ratio"] is None and rows["lora-64"]["items_per_second"] == 5
    facts = {"tokenizer": "X", **standins.corpus_statistics(setting.encoder, setting.train, setting.test)}
    record = {"device": "NVIDIA H200", "backbone": "polar", "weights": "random", "layers": 64, "of_layers": 64}
    output = Console(file=io.StringIO(), width=100)
    output.print(command.table({**record, "cap_gib": 24.0, "corpus": facts, "rows": rows}))
    assert isinstance(output.file, io.StringIO)
    shown = output.file.getvalue()
    assert "NVIDIA H200, at most 24 GiB: polar, 64 layers, random" in shown and "[odd] words" in shown


def test_the_rows_process_writes_its_numbers(
    setting: bench.Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "matmul_peak", lambda device: 1e12)
    for split in ("train", "test"):
        write_text(tmp_path / f"{split}.json", dump_items([item.source for item in setting.test]))
    write_text(tmp_path / "tokenizer.json", setting.encoder.tokenizer.backend_tokenizer.to_str())
    argv = ["--row", "entry-score", "--corpus", str(tmp_path), "--json", str(tmp_path / "row.json"), "--device", "cpu"]
    command.main([*argv, "--layers", "1", "--seconds", "0.01"])
    assert json.loads((tmp_path / "row.json").read_text(encoding="utf-8"))["name"] == "entry-score"


assert toys  # imported for what it sets
