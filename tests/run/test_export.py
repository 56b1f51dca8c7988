import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from run.export import main
from src.console.cli import UserError
from tests.made_runs import make_predictions, make_run, make_split


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A run scored on dev (labelled) and test (not), and a vote with predictions for dev alone."""
    make_split(tmp_path / "data", "dev", 6)
    make_split(tmp_path / "data", "test", 4, labelled=False)
    run = make_run(tmp_path / "results" / "alpha", tmp_path / "data", "dev", [0, 1, 2, 0, 1, 0])
    make_run(run, tmp_path / "data", "test", [0, 0, 0, 0])
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    record |= {"data": {"dev": {"path": str(tmp_path / "data" / "data_dev.json")}}, "prompt": {"sha256": "abc"}}
    (run / "record.json").write_text(json.dumps(record), encoding="utf-8")
    vote = make_run(tmp_path / "results" / "vote", tmp_path / "data", "dev", [0] * 6, scored=False)
    told = {"run": "vote", "splits": {"dev": {"data": str(tmp_path / "data" / "data_dev.json")}}}
    (vote / "record.json").write_text(json.dumps(told), encoding="utf-8")
    return tmp_path


def export(place: Path, *words: str) -> list[dict[str, object]]:
    main([*words, "--results", str(place / "results"), "--out", str(place / "out")])
    text = (place / "out" / "items.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def test_every_item_of_every_run_is_a_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The runs know where their data lies."""
    rows = export(place, "alpha", "vote")
    assert [(row["run"], row["split"]) for row in rows] == [("alpha", "dev")] * 6 + [("alpha", "test")] * 4 + [
        ("vote", "dev")
    ] * 6
    assert [row["right"] for row in rows[:6]] == [True] * 5 + [False] and rows[6]["right"] is None
    assert rows[0]["prompt_sha256"] == "abc" and rows[0]["probabilities"] and rows[-1]["probabilities"] is None
    with (place / "out" / "items.csv").open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 16 and [line["id"] for line in lines] == [row["id"] for row in rows]
    printed = capsys.readouterr().out
    assert "alpha, dev: 6 items of" in printed and "5 of 6 right" in printed and "no labels" in printed


def test_pandas_reads_missed_items_in_one_line(place: Path) -> None:
    pandas = pytest.importorskip("pandas")
    export(place, "alpha", "vote")
    missed = pandas.read_csv(place / "out" / "items.csv").query("right == 0")
    same = pandas.read_json(place / "out" / "items.jsonl", lines=True).query("right == False")
    assert list(missed["id"]) == list(same["id"]) == ["made-0005", *(f"made-{n:04d}" for n in (1, 2, 4, 5))]
    first = missed.iloc[0]
    assert first["run"] == "alpha" and first["prediction"] == "inference_1" and first["label"] == "inference_3"
    assert "집에" in " ".join(missed["dialogue"]) and list(same["options"].iloc[0]) == list(
        first[["option_1", "option_2", "option_3"]]
    )


def test_logs_for_inspect_lie_beside_the_lines(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(place, "alpha", "vote", "--inspect")
    logs = [json.loads(file.read_text(encoding="utf-8")) for file in (place / "out" / "inspect").iterdir()]
    assert sorted((log["eval"]["model"], log["eval"]["task"], len(log["samples"])) for log in logs) == [
        ("alpha", "dev", 6),
        ("alpha", "test", 4),
        ("vote", "dev", 6),
    ]
    assert str(place / "out" / "inspect") in capsys.readouterr().out


def test_a_split_and_other_data_may_be_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(export(place, "alpha", "--split", "test")) == 4
    make_split(place / "labelled", "test", 4)  # the labels came later
    rows = export(place, "alpha", "--split", "test", "--data", str(place / "labelled"))
    assert [row["right"] for row in rows] == [True, False, False, True]
    assert "the file has changed since the run was scored" in capsys.readouterr().out
    with pytest.raises(UserError, match="a file goes with one --split"):
        export(place, "alpha", "--data", str(place / "labelled" / "data_test.json"))
    with pytest.raises(UserError, match=r"not for test\. Let its runs vote: python -m run.vote --split test"):
        export(place, "vote", "--split", "test", "--data", str(place / "data"))


def test_other_items_than_those_scored_are_refused(place: Path) -> None:
    items = make_split(place / "short", "dev", 3)
    with pytest.raises(UserError, match=r"3 of 6 items are not in .*data_dev\.json"):
        export(place, "alpha", "--split", "dev", "--data", str(place / "short"))
    # Options that stand in another order would make a prediction mean another sentence.
    make_predictions(place / "results" / "alpha" / "predictions_dev.json", items, [0, 0, 0])
    turned = json.loads((place / "data" / "data_dev.json").read_text(encoding="utf-8"))
    inner = turned[0]["input"]
    inner["inference_1"], inner["inference_2"] = inner["inference_2"], inner["inference_1"]
    (place / "data" / "data_dev.json").write_text(json.dumps(turned, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(UserError, match=r"1 items of dev have other options, .*, made-0000 first"):
        export(place, "alpha", "--split", "dev")
    assert not (place / "out").exists()


def test_what_is_no_finished_run_is_named(place: Path) -> None:
    with pytest.raises(UserError, match=r"no such run.*Did you mean 'alpha'"):
        export(place, "alpho")
    (place / "results" / "empty").mkdir()
    (place / "results" / "empty" / "record.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="was scored on no split"):
        export(place, "empty")


@pytest.mark.parametrize("name", ["export", "runs", "check_submission"])
def test_help_shows_the_commands_without_torch(name: str) -> None:
    code = (
        f"import sys; from run.{name} import make_parser; assert 'torch' not in sys.modules; make_parser().print_help()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"python -m run.{name}" in done.stdout


def test_a_vote_has_no_orders(place: Path) -> None:
    with pytest.raises(UserError, match="vote has answers alone and no scores, so leave out --orders"):
        export(place, "vote", "--split", "dev", "--orders", "6")
