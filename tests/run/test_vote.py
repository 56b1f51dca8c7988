import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from run.vote import main
from src import task
from src.console.cli import UserError
from src.data import load_items, sha256
from src.files.paths import record_path
from src.files.writing import write_json
from src.vote.voting import RULE
from tests.made_runs import add_orders, make_predictions, make_run, make_split, name_data, stored


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Four items in two splits (dev labels 0 1 2 0); three runs that agree on the first item and tie on the last."""
    for split in ("dev", "test"):
        make_split(tmp_path / "data", split, 4, labelled=split == "dev")
    for run, answers, margin, accuracy in (
        ("alpha", [0, 1, 2, 0], 1.0, 0.5),
        ("beta", [0, 1, 1, 1], 2.0, 0.75),
        ("gamma", [0, 2, 2, 2], 1.5, 0.25),
    ):
        make_run(tmp_path / "results" / run, tmp_path / "data", "test", answers, margin=margin, dev_accuracy=accuracy)
    return tmp_path


def vote(place: Path, *arguments: str) -> None:
    main([*arguments, "--data", str(place / "data"), "--results", str(place / "results")])


def outputs(path: Path) -> list[str]:
    return [item["output"] for item in json.loads(path.read_text(encoding="utf-8"))]


def record_of(out: Path, split: str = "test") -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "record.json").read_text(encoding="utf-8"))
    return record["splits"][split]  # type: ignore[no-any-return]


def test_all_runs_vote_and_leave_three_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vote(place)
    out = place / "results" / "vote"
    assert sorted(path.name for path in out.iterdir()) == ["predictions_test.json", "record.json", "votes_test.jsonl"]

    # The input, `output` filled, nothing else changed.
    data = json.loads((place / "data" / "data_test.json").read_text(encoding="utf-8"))
    submission = json.loads((out / "predictions_test.json").read_text(encoding="utf-8"))
    assert [item | {"output": ""} for item in submission] == data
    assert outputs(out / "predictions_test.json") == ["inference_1", "inference_2", "inference_3", "inference_2"]

    votes = [json.loads(line) for line in (out / "votes_test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in votes] == [item["id"] for item in data]
    assert votes[3] == {
        "id": data[3]["id"],
        "answer": "inference_2",
        "counts": [1, 1, 1],
        "tied": ["inference_1", "inference_2", "inference_3"],
        "decided_by": "log-probability",
        "runs": {"alpha": "inference_1", "beta": "inference_2", "gamma": "inference_3"},
    }

    record = record_of(out)
    assert [voter["run"] for voter in record["voters"]] == ["alpha", "beta", "gamma"]
    beta = record["voters"][1]
    assert beta["sha256"] == sha256(place / "results" / "beta" / "scores_test.jsonl")
    assert (beta["scores"], beta["dev_accuracy"], beta["agreement"], beta["accuracy"]) == (True, 0.75, 0.75, None)
    assert record["rule"] == RULE
    assert record["decided_by"] == {"majority": 3, "log-probability": 1}
    assert record["data_sha256"] == sha256(place / "data" / "data_test.json")
    assert (record["accuracy"], record["missing"], record["unanimous"]) == (None, {}, 0.25)
    assert record["pairs"][0] == {"runs": ["alpha", "beta"], "agreement": 0.5}
    assert "python" in record["versions"]

    printed = capsys.readouterr().out
    assert " ".join(RULE.split()) in " ".join(printed.split())
    assert "decided by majority: 3, log-probability: 1" in printed
    assert f"{data[3]['id']} │ 1–1–1         │ inference_2" in printed
    assert "predictions_test.json" in printed and "next: hand in" in printed


def test_order_of_the_arguments_changes_nothing(place: Path) -> None:
    vote(place, "alpha", "beta", "gamma", "--out", str(place / "one"))
    vote(place, "gamma", "alpha", str(place / "results" / "beta"), "--out", str(place / "other"))
    assert (place / "one" / "predictions_test.json").read_bytes() == (
        place / "other" / "predictions_test.json"
    ).read_bytes()


def test_a_file_from_elsewhere_votes_without_scores(place: Path) -> None:
    items = load_items(place / "data" / "data_test.json")
    elsewhere = make_predictions(place / "elsewhere.json", items, [2, 2, 2, 2])
    vote(place, "alpha", str(elsewhere))
    record = record_of(place / "results" / "vote")
    assert record["voters"][1]["run"] == str(elsewhere)
    assert record["voters"][1]["scores"] is False
    # Only alpha has scores, so it wins the three ties.
    assert outputs(place / "results/vote/predictions_test.json") == [
        "inference_1",
        "inference_2",
        "inference_3",
        "inference_1",
    ]


def test_without_arguments_the_unfinished_are_left_out_aloud(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(place / "results" / "delta", place / "data", "test", [2] * 4, finished=False)
    vote(place)
    vote(place)  # the folder of the first vote is no voter
    assert "left out: delta (not finished)" in capsys.readouterr().out
    assert len(record_of(place / "results" / "vote")["voters"]) == 3
    with pytest.raises(UserError, match="delta is not finished"):
        vote(place, "alpha", "delta")


def test_expected_runs_that_are_missing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vote(place, "--expect", "alpha", "beta", "omega")
    assert "missing: omega (no such run)" in capsys.readouterr().out
    record = record_of(place / "results" / "vote")
    assert [voter["run"] for voter in record["voters"]] == ["alpha", "beta"]
    assert record["missing"] == {"omega": "no such run"}

    vote(place, "alpha", "--expect", "alpha", "gamma")
    assert record_of(place / "results" / "vote")["missing"] == {"gamma": "not named"}
    with pytest.raises(UserError, match=r"Nobody can vote on test.*omega \(no such run\)"):
        vote(place, "--expect", "omega")


def test_the_next_command_can_be_pasted_where_names_have_spaces(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(place / "results" / "alpha", place / "data", "dev", [0, 1, 2, 1], dev_accuracy=0.5)
    out = place / "내 투표"
    vote(place, "alpha", "--split", "dev", "--out", str(out))
    assert f"next: python -m run.evaluate '{out / 'predictions_dev.json'}' --data {place}" in capsys.readouterr().out


def test_labelled_split_gives_accuracy_and_keeps_the_other_split(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, answers in (("alpha", [0, 1, 2, 1]), ("beta", [0, 1, 0, 1]), ("gamma", [2, 1, 2, 0])):
        make_run(place / "results" / run, place / "data", "dev", answers, dev_accuracy=0.5)
    vote(place, "--split", "dev")
    out = place / "results" / "vote"
    dev = record_of(out, "dev")
    assert (dev["accuracy"], dev["correct"], dev["items"]) == (0.75, 3, 4)
    assert [voter["accuracy"] for voter in dev["voters"]] == [0.75, 0.5, 0.75]
    printed = capsys.readouterr().out
    assert "accuracy of the vote: 75.00% (95 % interval 30.1% to 95.4%)" in printed
    assert f"next: python -m run.evaluate {out / 'predictions_dev.json'}" in printed

    vote(place, "--split", "test")
    assert record_of(out, "dev") == dev
    assert record_of(out, "test")["items"] == 4


def test_a_long_list_of_ties_is_cut_with_a_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_split(tmp_path / "data", "test", 40, labelled=False)
    for run, answer in (("alpha", 0), ("beta", 1)):
        make_run(tmp_path / "results" / run, tmp_path / "data", "test", [answer] * 40)
    vote(tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("1–1–0") == 30
    assert "… and 10 more ties, all in the votes file" in printed


def test_refusals_leave_nothing(place: Path) -> None:
    with pytest.raises(UserError, match="lacks 1"):
        short = make_predictions(place / "short.json", load_items(place / "data" / "data_test.json")[1:], [0] * 3)
        vote(place, "alpha", str(short))
    with pytest.raises(UserError, match="no runs"):
        main(["--data", str(place / "data"), "--results", str(place / "nothing")])
    with pytest.raises(UserError, match="folder of a trained run"):
        vote(place, "alpha", "--out", str(place / "results" / "beta"))
    assert not (place / "results" / "vote").exists()
    assert not (place / "nothing").exists()


def test_a_vote_cannot_read_what_it_writes(place: Path) -> None:
    vote(place)
    out = place / "results" / "vote"
    with pytest.raises(UserError, match="it is what this vote writes"):
        vote(place, "alpha", str(out / "predictions_test.json"))
    vote(place, "vote", "alpha", "--out", str(place / "again"))
    assert [voter["run"] for voter in record_of(place / "again")["voters"]] == ["vote", "alpha"]


def test_the_record_comes_last(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        vote(place)
    assert not (place / "results" / "vote" / "record.json").exists()


def test_names_with_brackets_are_printed_as_they_are(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(place / "results" / "run[red]", place / "data", "test", [0] * 4)
    vote(place, "run[red]")
    assert "run[red]" in capsys.readouterr().out


def test_help_is_quick() -> None:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "run.vote", "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 3  # about 0.1 s alone; torch or scipy would cost more on a busy machine
    assert "--expect" in done.stdout


def test_a_mistake_is_one_line_on_stderr(place: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "run.vote",
        "nobody",
        "--data",
        str(place / "data"),
        "--results",
        str(place / "results"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "runs there: alpha, beta, gamma" in done.stderr


# Whose data, how many orders, and what is hardly a vote


def test_the_data_of_the_runs_is_the_default(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("src.data.DATA", place / "nothing")
    results = ("--results", str(place / "results"))
    with pytest.raises(UserError, match=r"nothing/data_test.json: no such file"):
        main(["alpha", "beta", *results])
    for run in ("alpha", "beta"):
        name_data(place / "results" / run, train=place / "data" / "data_train.json")
    main(["alpha", "beta", *results])
    assert f"4 items of {place / 'data' / 'data_test.json'}" in capsys.readouterr().out
    assert record_of(place / "results" / "vote")["data"] == str(place / "data" / "data_test.json")
    main(["vote", "alpha", *results, "--out", str(place / "again")])  # a vote's record names its data, too

    make_split(place / "other", "test", 4, labelled=False)
    with (place / "other" / "data_test.json").open("a") as file:
        file.write("\n")
    name_data(place / "results" / "beta", test=place / "other" / "data_test.json")
    with pytest.raises(UserError, match=r"answered different test files: .*by alpha; .*by beta\. .*--data"):
        main(["alpha", "beta", *results])


def test_runs_of_some_items_are_left_out_and_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_split(place / "few", "test", 2, labelled=False)
    make_run(place / "results" / "limited", place / "few", "test", [0, 0])
    vote(place)
    assert "left out: limited (scored on 2 of the 4 items only)" in capsys.readouterr().out
    assert [voter["run"] for voter in record_of(place / "results" / "vote")["voters"]] == ["alpha", "beta", "gamma"]
    vote(place, "--expect", "alpha", "limited")
    assert "missing: limited (scored on 2 of the 4 items only)" in capsys.readouterr().out
    with pytest.raises(UserError, match="found 2 items, expected 4"):
        vote(place, "alpha", "limited")


def test_scores_of_some_items_are_not_taken_where_others_have_all(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One order of a few items (a training with --limit), and then six orders of all."""
    make_split(place / "few", "test", 2, labelled=False)
    limited = make_run(place / "results" / "limited", place / "few", "test", [0, 0])
    add_orders(limited, place / "data", "test", [0, 1, 2, 0])
    for asked in ((), ("--orders", "1")):
        vote(place, *asked)
        assert "left out: limited (by 1 order scored on some of the 4 items only)" in capsys.readouterr().out
        assert len(record_of(place / "results" / "vote")["voters"]) == 3
    for name in ("alpha", "beta", "gamma"):
        add_orders(place / "results" / name, place / "data", "test", [0, 1, 2, 0])
    vote(place)
    told = record_of(place / "results" / "vote")
    assert (len(told["voters"]), told["orders"]) == (4, 6)


def test_what_is_hardly_a_vote_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(place / "results" / "alpha", place / "data", "dev", [0, 1, 1, 1], dev_accuracy=0.5)
    vote(place, "alpha", "--split", "dev")
    assert "note: a single voter: these are the answers of alpha" in capsys.readouterr().out
    vote(place, "alpha", str(place / "data" / "data_dev.json"), "--split", "dev")
    said = capsys.readouterr().out
    assert "data_dev.json has the label of every item" in said and "single voter" not in said


def test_orders_are_not_mixed_without_a_word(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = place / "results"
    for run in ("alpha", "beta"):
        before = stored(results / run)
        make_run(results / run, place / "data", "dev", [0, 1, 2, 1], dev_accuracy=0.75)
        after = stored(results / run)
        after["splits"] = before["splits"] | after["splits"]
        write_json(record_path(results / run), after)
        add_orders(results / run, place / "data", "dev", [0, 1, 2, 0], accuracy=1.0)
    vote(place, "alpha", "beta", "--split", "dev", "--orders", "6")
    assert (record_of(results / "vote", "dev")["orders"], record_of(results / "vote", "dev")["accuracy"]) == (6, 1.0)
    capsys.readouterr()
    vote(place, "alpha", "beta")
    said = capsys.readouterr().out
    assert "this vote on test is by 1 order of the options, that on dev in the same folder by 6 orders" in said
    with pytest.raises(UserError, match=r"3 of 3 runs have no scores of 6 orders on test"):
        vote(place, "--orders", "6")
    # A file of scores is a voter as it is.
    vote(place, str(results / "alpha" / "scores_dev.6orders.jsonl"), "beta", "--split", "dev", "--orders", "1")
    assert "scores by different numbers of orders vote together: " in capsys.readouterr().out


# Older and later versions


def test_runs_of_older_and_later_versions_vote_together(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = place / "results"
    old, later = stored(results / "alpha"), stored(results / "beta")
    old["recipe"] = {"backbone": "polar", "method": "lora"}
    later["recipe"] = {"backbone": "eeve", "method": "of a later version", "temperature": 0.5}
    later |= {"report": {"pages": 2}, "task": {"name": task.current().name, "sha256": task.current().sha256}}
    later["splits"]["test"]["calibration"] = [0.5]
    write_json(record_path(results / "alpha"), old)
    write_json(record_path(results / "beta"), later)
    vote(place)
    assert [voter["run"] for voter in record_of(results / "vote")["voters"]] == ["alpha", "beta", "gamma"]
    said = capsys.readouterr().out
    assert said.count("unknown to this version, and kept as they are: report, recipe.temperature, splits.test.cal") == 1
    assert stored(results / "beta") == later


def test_a_vote_of_an_older_version_is_kept_beside_the_new_one(place: Path) -> None:
    out = place / "results" / "vote"
    dev = {"accuracy": 0.5, "correct": 2, "items": 4, "rule": "…", "voters": [{"run": "x"}], "git_commit": "5139f1e"}
    out.mkdir()
    write_json(record_path(out), {"run": "vote", "splits": {"dev": dev}})
    vote(place)
    assert record_of(out, "dev") == dev
    assert "commit" in record_of(out) and "git_commit" not in record_of(out)


def test_runs_of_another_task_are_left_out_aloud_and_refused_by_name(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place / "results" / "gamma"
    write_json(record_path(run), stored(run) | {"task": {"name": "날씨 추론", "sha256": "0"}})
    vote(place)
    assert "left out: gamma (of another task)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"gamma is of the task 날씨 추론, and not of .*--task FILE"):
        vote(place, "alpha", "gamma")
