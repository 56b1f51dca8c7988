"""The table of measured steps, and how a record of run.bench gets into it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from src.console.cli import UserError
from src.files.writing import write_text
from src.model.backbones import backbones
from src.model.devices import peak_tflops
from src.plan import speeds
from src.toy.bench_cases import CASES

VERSIONS = {name: "1.0" for name in (*speeds.VERSIONS, "numpy")}
RUN = {"steps": 10, "unique_tokens": 7004, "seconds": 1.0}
TRAINED = {**RUN, "optimizer": "fp32", "dequantised": False, "recomputed": 0.25, "captured": "captured"}


def record(**rows: dict[str, Any]) -> dict[str, Any]:
    found = {name.replace("_", "-"): values for name, values in rows.items()}
    made = {name: dataclasses.asdict(CASES[name]) | values for name, values in found.items()}
    place = {"device": "NVIDIA H100 80GB HBM3", "backbone": "polar", "cap_gib": 24.0, "layers": 64, "of_layers": 64}
    return {**place, "versions": VERSIONS, "rows": made}


def test_the_table_is_of_known_backbones_rows_and_cards() -> None:
    steps = speeds.measured()
    assert len({step.key for step in steps}) == len(steps)
    for step in steps:
        assert step.backbone in backbones() and step.row in CASES and peak_tflops(step.card)
        assert set(step.versions) == set(speeds.VERSIONS)
        assert 0 <= (step.fixed_seconds or 0) <= step.seconds and step.tokens > 0
    assert {speeds.SCORING, "full", "lora"} <= {step.method for step in steps}


def test_the_text_of_the_table_is_its_file() -> None:
    text = speeds.text_of(speeds.measured(), speeds.SPEEDS)
    assert text.startswith("# ") and text == speeds.SPEEDS.read_text(encoding="utf-8")


def test_rows_of_a_record_are_kept() -> None:
    made = record(qlora_1=TRAINED | {"fixed_seconds": 0.0312345}, lora_64=TRAINED, score_1=RUN, entry=RUN)
    steps = speeds.kept([], made)
    assert [step.row for step in steps] == ["qlora-1", "score-1"], "only ours with one item a step, and score-1"
    one, scoring = steps
    assert (one.tokens, one.seconds, one.fixed_seconds) == (700.4, 0.1, 0.03123)
    assert (one.method, one.objective, one.dropout, one.unpacks) == ("qlora", "answer", 0.05, True)
    assert one.recomputed == 0.25 and one.captured and one.cap_gib == 24.0 and "numpy" not in one.versions
    assert (scoring.method, scoring.fixed_seconds, scoring.unpacks) == (speeds.SCORING, None, False)
    once = record(qlora_1=TRAINED | {"fixed_seconds": 0.0, "dequantised": True, "captured": "not captured"})
    (other,) = speeds.kept([], once)
    assert not other.unpacks and not other.captured


def test_a_new_measurement_takes_the_place_of_the_same_step() -> None:
    old = speeds.kept([], record(qlora_1=TRAINED | {"fixed_seconds": 0.0}, score_1=RUN))
    new = record(qlora_1=TRAINED | {"fixed_seconds": 0.0, "seconds": 2.0})
    assert [step.seconds for step in speeds.kept(old, new)] == [0.2, 0.1]
    apart = record(qlora_1=TRAINED | {"fixed_seconds": 0.0, "captured": "no"})
    for changed in (apart, new | {"cap_gib": None}, new | {"backbone": "eeve"}):
        assert len(speeds.kept(old, changed)) == 3, "another step"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "CPU, one thread"}, "a record of CPU, one thread has no place here"),
        ({"layers": 8}, "8 layers of 64"),
        ({"rows": {"qlora-1": {"failed": "out of memory"}}}, "no row of ours with one item"),
        ({"rows": record(score_1=RUN | {"guard": {"agree": False}})["rows"]}, "no row of ours with one item"),
    ],
)
def test_what_the_plan_cannot_go_by_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        speeds.kept([], record(qlora_1=TRAINED | {"fixed_seconds": 0.0}) | changes)


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    whole = dataclasses.asdict(speeds.measured()[0])
    for values, words in (
        ({**whole, "seconds": "fast"}, "entry 1: seconds: found 'fast'"),
        ({**whole, "more": 1}, "its keys are not"),
    ):
        path = tmp_path / f"{words[:5]}.yaml"
        write_text(path, speeds.dump_yaml([values]))
        with pytest.raises(UserError, match=words):
            speeds.measured(path)
