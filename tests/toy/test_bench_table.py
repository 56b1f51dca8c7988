import dataclasses
import io

from rich.console import Console

from src.toy.bench_cases import CASES
from src.toy.bench_table import add_ratios, table, with_rates

FACTS = {
    "tokenizer": "X",
    "prompt": "entry",
    "train_items": 758,
    "dialogues": 163,
    "turns_mean": 20.8,
    "characters_mean": 393.0,
    "tokens_mean": 701.2,
    "tokens_max": 1195,
    "shared_prompt_tokens": 181,
    "computed_tokens": 211.0,
    "characters_per_token": 1.4,
}
FOUND = {
    **{"items": 10, "sequences": 60, "raw_tokens": 4000, "unique_tokens": 1000, "seconds": 2.0, "warm_seconds": 1.0},
    **{
        "peak_memory_bytes": 3 * 2**30,
        "matmul_flops": 1e12,
        "sustained_matmul_flops": 8e11,
        "linear_parameters": 10**6,
        "note": "[odd] words",
    },
}


def test_rates_and_ratios() -> None:
    cases = {
        "entry": with_rates(dataclasses.asdict(CASES["entry"]) | FOUND | {"seconds": 6.0}),
        "lora-64": with_rates(dataclasses.asdict(CASES["lora-64"]) | FOUND),
        "full-16": with_rates(dataclasses.asdict(CASES["full-16"]) | FOUND),
        "trl": {"failed": "out of memory"},
    }
    found = cases["lora-64"]
    assert (found["items_per_second"], found["sequences_per_second"]) == (5, 30)
    assert (found["raw_tokens_per_second"], found["unique_tokens_per_second"]) == (2000, 500)
    assert found["share_of_peak"] == 4 * 10**6 * 500 / 1e12
    assert found["share_of_sustained"] == 4 * 10**6 * 500 / 8e11
    add_ratios(cases)
    assert [case.get("ratio") for case in cases.values()] == [1.0, 3.0, None, None], "full-16's base was not measured"


def test_the_table_takes_cases_without_a_base_and_failed_ones() -> None:
    cases = {
        "lora-64": with_rates(dataclasses.asdict(CASES["lora-64"]) | FOUND),
        "trl": {"failed": "out of memory"},
    }
    add_ratios(cases)
    versions = {"torch": "2.11.0", "numpy": "2.0", "peft": "0.21.2"}
    record = {
        "device": "NVIDIA H200",
        "versions": versions,
        "backbone": "polar",
        "weights": "random",
        "layers": 64,
        "of_layers": 64,
    }
    output = io.StringIO()
    Console(file=output, width=100).print(table({**record, "cap_gib": 24.0, "corpus": FACTS, "rows": cases}))
    shown = output.getvalue()
    assert "NVIDIA H200, at most 24 GiB: polar, 64 layers, random" in shown and "[odd] words" in shown
    assert "Measured with torch 2.11.0, peft 0.21.2\n" in shown.replace(" \n", "\n").replace("  ", "")
    assert "failed: out of memory" in shown and max(map(len, shown.splitlines())) <= 100
