"""The logs' fields; inspect_ai itself is not installed here."""

import datetime
import json
from typing import Any

from src.runs.inspect_log import inspect_logs
from src.runs.samples import sample
from tests import toys
from tests.runs.test_samples import SCORES

WHEN = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


def logs(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [json.loads(text) for text in inspect_logs(samples, WHEN).values()]


def test_a_run_and_split_is_a_log_with_its_accuracy() -> None:
    items = toys.items(4)  # their labels are 0, 1, 2, 0
    samples = [sample(run, "dev", one, SCORES, 2, "abc") for run in ("polar", "eeve/x") for one in items]
    files = inspect_logs(samples, WHEN)
    assert list(files) == [f"2026-01-02T03-04-05+00-00_{name}-dev.json" for name in ("polar", "eeve-x")]
    first, second = logs(samples)
    assert (first["eval"]["model"], second["eval"]["model"]) == ("polar", "eeve/x")
    assert first["eval"]["eval_id"] != second["eval"]["eval_id"] and first["eval"]["dataset"]["samples"] == 4
    (score,) = first["results"]["scores"]
    assert score["metrics"]["accuracy"]["value"] == 0.25
    assert [one["scores"]["choice"]["value"] for one in first["samples"]] == ["I", "I", "C", "I"]
    assert [one["target"] for one in first["samples"]] == ["A", "B", "C", "A"]
    assert {one["scores"]["choice"]["answer"] for one in first["samples"]} == {"C"}


def test_a_sample_is_read_on_its_own() -> None:
    (item,) = toys.items(1)
    (log,) = logs([sample("polar", "dev", item, SCORES, 1, "abc")])
    (one,) = log["samples"]
    assert all(text in one["input"] for text in (*item.options, *(turn.text for turn in item.dialogue)))
    assert "▶ 1: 우산도 없는데 비가 쏟아지네." in one["input"] and item.category in one["input"]
    assert one["output"]["choices"][0]["message"]["content"] == f"B. {item.options[1]}" == one["messages"][1]["content"]
    assert one["metadata"]["category"] == item.category and one["metadata"]["margin"] == SCORES.margin


def test_without_labels_there_is_no_accuracy() -> None:
    (log,) = logs([sample("polar", "test", one, None, 0, None) for one in toys.items(2, output="")])
    assert log["results"]["scores"] == [] and [one["scores"] for one in log["samples"]] == [None, None]
    assert [one["target"] for one in log["samples"]] == ["", ""]
