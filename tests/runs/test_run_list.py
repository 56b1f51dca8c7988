import json
from pathlib import Path

import pytest

from src.runs.facts import Result
from src.runs.run_list import accuracy_text, cells, differing, list_runs, setting_text, table_rows

RECIPE = {"name": "a", "backbone": "polar", "lr": 2e-5, "epoch": 3, "chat_template": None}
DEV = {"accuracy": 0.8, "correct": 8, "items": 10, "orders": 6, "data_sha256": "0123456789abcdef"}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A finished run, a vote, an unfinished and a damaged run, one that left a log alone, and two other folders."""
    records = {
        "alpha": {"recipe": RECIPE, "splits": {"dev": DEV, "test": {"accuracy": None, "items": 4, "orders": 1}}},
        "vote": {"splits": {"dev": DEV | {"accuracy": 0.9, "correct": 9}}},
    }
    for name in ("alpha", "vote", "begun", "damaged", "log-alone", "eda", "export"):
        (tmp_path / name).mkdir()
    for name, record in records.items():
        (tmp_path / name / "record.json").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "begun" / "recipe.yaml").write_text(
        "name: begun\nbackbone: polar\nlr: 0.1\nepoch: 3\n", encoding="utf-8"
    )
    for step in (20, 100):
        (tmp_path / "begun" / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
    (tmp_path / "damaged" / "record.json").write_text("{", encoding="utf-8")
    (tmp_path / "log-alone" / "log.txt").write_text("…", encoding="utf-8")
    return tmp_path


def test_all_runs_are_listed_the_unfinished_and_damaged_as_well(results: Path) -> None:
    states = {entry.name: entry.state for entry in list_runs(results)}
    assert list(states) == ["alpha", "begun", "damaged", "log-alone", "vote"]
    assert states["alpha"] == states["vote"] == "finished" and states["begun"] == "unfinished (checkpoint-100)"
    assert states["damaged"].startswith("damaged record.json (") and states["log-alone"] == "unfinished (log.txt)"
    assert list_runs(results / "nowhere") == []


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"splits": []}',
        '{"splits": {"dev": 1}}',
        '{"recipe": 1}',
        '{"splits": {"dev": {"accuracy": "high"}}}',
        '{"splits": {"dev": {"accuracy": 0.5, "items": "four", "correct": 2}}}',
        '{"splits_6orders": {"dev": {"accuracy": 2.25, "items": 4, "correct": 9}}}',
    ],
)
def test_a_record_of_another_shape_spoils_no_list(results: Path, text: str) -> None:
    (results / "alpha" / "record.json").write_text(text, encoding="utf-8")
    (entry, *_) = list_runs(results)
    assert entry.state.startswith("damaged") and cells(entry, [], [])["dev accuracy"] == ""


def test_only_settings_that_differ_are_shown(results: Path) -> None:
    entries = list_runs(results)
    assert differing(entries) == ["lr"]
    row = table_rows(entries)[0]
    assert row == {
        "run": "alpha",
        "state": "finished",
        "lr": "2e-05",
        "dev accuracy": "0.800 [0.490, 0.943]",
        "dev items": "10",
        "dev orders": "6",
        "dev data": "01234567",
        "dev, 6 orders": "",
        "test accuracy": "no labels",
        "test items": "4",
        "test orders": "1",
        "test data": "",
        "test, 6 orders": "",
    }
    assert setting_text("{{ x }}\n" * 9).startswith("sha256 ") and setting_text(None) == "–"
    assert accuracy_text(None) == "not scored" and accuracy_text(Result(accuracy=0.5)) == "0.500"


def test_each_number_of_orders_has_its_columns(results: Path) -> None:
    record = {"recipe": RECIPE, "splits_3orders": {"dev": DEV | {"orders": 3}}}
    (results / "alpha" / "record.json").write_text(json.dumps(record), encoding="utf-8")
    row = table_rows(list_runs(results))[0]
    assert (row["dev accuracy"], row["dev, 3 orders"], row["dev, 6 orders"]) == (
        "not scored",
        "0.800 [0.490, 0.943]",
        "",
    )


def test_a_run_on_changed_dialogues_says_so(results: Path) -> None:
    (results / "alpha-blanked").mkdir()
    changed = {"recipe": RECIPE, "dialogue": "blanked", "splits": {"dev": DEV}}
    (results / "alpha-blanked" / "record.json").write_text(json.dumps(changed), encoding="utf-8")
    rows = {row["run"]: row for row in table_rows(list_runs(results))}
    assert [rows[name]["dialogue"] for name in ("alpha", "alpha-blanked", "vote")] == ["–", "blanked", ""]
