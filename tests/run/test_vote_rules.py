"""`run.vote` under rules other than the hard vote, and `--who_helps`."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from run.vote import main
from src import task
from src.console.cli import UserError
from src.data import dump_items, load_items, sha256
from src.vote.voting import RULES, TIED_PROBABILITIES
from tests.made_runs import make_predictions, make_scored_run, make_split
from tests.made_task import FOUR, TASK_FILE, make_four, working_on

RUNS = ("alpha", "beta", "gamma")
ITEMS = {"dev": 30, "test": 12}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """30 dev items in 10 dialogues, 12 unlabelled test items, and three runs that know something of all labels."""
    rng = np.random.default_rng(0)
    for split, count in ITEMS.items():
        make_split(tmp_path / "data", split, count, labelled=split == "dev")
        for run in RUNS:
            logits = rng.normal(0, 1, (count, 3)) + np.eye(3)[np.arange(count) % 3]
            make_scored_run(tmp_path / "results" / run, tmp_path / "data", split, logits.tolist())
    return tmp_path


def vote(place: Path, *arguments: str) -> None:
    main([*arguments, "--data", str(place / "data"), "--results", str(place / "results")])


def result(out: Path, split: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "record.json").read_text(encoding="utf-8"))["splits"][split]
    return found


def lines(out: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"votes_{split}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("rule", ["soft", "weighted", "stack"])
def test_a_vote_by_probabilities_leaves_them_and_says_what_was_fitted(
    place: Path, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vote(place, "--rule", rule)
    out = place / "results" / f"vote-{rule}"
    record = result(out, "test")
    assert record["rule"] == f"{RULES[rule]} {TIED_PROBABILITIES}"
    assert record["fitted"]["rule"] == rule
    assert record["fitted"]["data_sha256"] == sha256(place / "data" / "data_dev.json")
    assert (record["fitted"]["items"], record["fitted"]["folds"]) == (30, None)
    assert record["fitted"]["weights"].keys() == record["fitted"]["temperatures"].keys() == set(RUNS)
    assert record["decided_by"] == {"probability": 12} and record["accuracy"] is None
    answers = [item["output"] for item in json.loads((out / "predictions_test.json").read_text(encoding="utf-8"))]
    for line, answer in zip(lines(out, "test"), answers, strict=True):
        assert sum(line["probabilities"]) == pytest.approx(1)
        assert task.current().options[int(np.argmax(line["probabilities"]))] == line["answer"] == answer
        assert sum(line["counts"]) == 3 and line["tied"] == []
    printed = capsys.readouterr().out
    assert f"fitted on the 30 items of {place / 'data' / 'data_dev.json'}, 10 dialogues" in printed
    assert "temperature" in printed and f"{record['fitted']['weights']['beta']:.3f}" in printed

    vote(place, "--rule", rule, "--split", "dev")
    dev = result(out, "dev")
    right = sum(line["answer"] == task.current().options[place % 3] for place, line in enumerate(lines(out, "dev")))
    assert (dev["fitted"]["folds"], dev["correct"], dev["items"]) == (5, right, 30)
    assert dev["fitted"]["weights"] == record["fitted"]["weights"], "those that a vote on test takes"
    assert result(out, "test") == record
    assert "in 5 folds by dialogue" in capsys.readouterr().out


def test_the_soft_vote_is_the_mean_of_what_the_runs_say(place: Path) -> None:
    vote(place, "--rule", "soft")
    out = place / "results" / "vote-soft"
    temperatures = result(out, "test")["fitted"]["temperatures"]
    rows = {
        run: (place / "results" / run / "scores_test.jsonl").read_text(encoding="utf-8").splitlines() for run in RUNS
    }
    for number, line in enumerate(lines(out, "test")):
        by_run = []
        for run in RUNS:
            powers = np.exp(np.array(json.loads(rows[run][number])["logprobs"]) / temperatures[run])
            by_run.append(powers / powers.sum())
        assert line["probabilities"] == pytest.approx(np.mean(by_run, axis=0))


def test_the_default_is_the_hard_vote_and_says_nothing_of_a_fit(place: Path) -> None:
    vote(place)
    record = result(place / "results" / "vote", "test")
    assert list(record) == [
        *("accuracy", "correct", "interval", "items", "data", "data_sha256", "rule", "orders", "files", "voters"),
        *("missing", "unanimous", "pairs", "decided_by", "versions", "commit"),
    ]
    assert record["rule"] == RULES["hard"]
    assert all("probabilities" not in line for line in lines(place / "results" / "vote", "test"))


def test_a_hard_vote_loads_no_numbers_library(place: Path) -> None:
    """They take seconds to load."""
    arguments = ["--data", str(place / "data"), "--results", str(place / "results")]
    loaded = "[name for name in ('numpy', 'scipy', 'sklearn', 'torch') if name in sys.modules]"
    code = f"import sys; from run.vote import main; main({arguments!r}); print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_equal_probabilities_are_listed_with_what_decided(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = [[0.0, 0.0, 0.0]] * 12
    for run in RUNS:
        make_scored_run(place / "results" / run, place / "data", "test", flat)
    vote(place, "--rule", "stack")
    record = result(place / "results" / "vote-stack", "test")
    assert record["decided_by"] == {"ballots": 12}  # of equal scores a run's answer is the first
    line = lines(place / "results" / "vote-stack", "test")[0]
    assert (line["answer"], line["tied"]) == ("inference_1", ["inference_1", "inference_2", "inference_3"])
    assert "decided by ballots: 12" in capsys.readouterr().out


def test_the_remedy_of_a_damaged_vote_names_its_rule(place: Path) -> None:
    vote(place, "--rule", "weighted")
    file = place / "results" / "vote-weighted" / "predictions_test.json"
    file.write_text(file.read_text(encoding="utf-8").replace("inference_1", "inference_2", 1), encoding="utf-8")
    with pytest.raises(UserError, match="other answers for test") as caught:
        vote(place, "vote-weighted", "alpha")
    command = str(caught.value).split("Make them again: ")[1].splitlines()[0]
    assert "--rule weighted" in command and all(run in command for run in RUNS)
    main([*shlex.split(command)[3:], "--data", str(place / "data"), "--results", str(place / "results")])


def test_votes_by_other_rules_in_one_folder_are_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", str(place / "one"))
    vote(place, "--split", "dev", *out)
    vote(place, "--rule", "soft", *out)
    told = "this vote on test is by the rule soft, that on dev in the same folder by hard; another --out keeps them"
    assert told in capsys.readouterr().out
    vote(place, *out)
    assert "by the rule" not in capsys.readouterr().out


def test_refusals_leave_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = load_items(place / "data" / "data_test.json")
    elsewhere = make_predictions(place / "elsewhere.json", items, [0] * 12)
    vote(place, "--out", str(place / "results" / "hard"))
    for words, reason in (
        (("alpha", str(elsewhere)), r"--rule soft needs probabilities.*elsewhere\.json"),
        (("alpha", "hard"), r"--rule soft needs probabilities.*hard.predictions_test\.json"),
        (("alpha", str(place / "data" / "data_dev.json")), "Every file must answer exactly the items"),
    ):
        with pytest.raises(UserError, match=reason):
            vote(place, *words, "--rule", "soft")
    for words, reason in (
        (("--rule", "softer"), "invalid choice: 'softer'"),
        (("--json", str(place / "x.json")), "--json: allowed with --who_helps"),
        (("--who_helps", "--out", str(place / "x")), "--out: --who_helps makes no vote"),
        (("--who_helps", "--split", "test"), "--who_helps --split test: allowed: dev"),
    ):
        with pytest.raises(SystemExit) as stopped:
            vote(place, *words)
        assert stopped.value.code == 2 and reason in capsys.readouterr().err
    assert not (place / "results" / "vote-soft").exists() and not (place / "x").exists()


def test_a_single_voter_is_pointed_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vote(place, "alpha", "--rule", "weighted")
    assert "note: a single voter: these are the answers of alpha" in capsys.readouterr().out
    assert result(place / "results" / "vote-weighted", "test")["fitted"]["weights"] == {"alpha": 1.0}


def test_a_file_of_scores_votes_by_what_lies_beside_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = place / "results" / "beta" / "scores_test.jsonl"
    vote(place, "alpha", str(file), "--rule", "weighted")
    weights = result(place / "results" / "vote-weighted", "test")["fitted"]["weights"]
    assert f"{weights[str(file)]:.3f}" in capsys.readouterr().out
    vote(place, "alpha", "beta", "--rule", "weighted")
    assert result(place / "results" / "vote-weighted", "test")["fitted"]["weights"]["beta"] == weights[str(file)]


# Who helps


@pytest.mark.parametrize("rule", RULES)
def test_who_helps_is_told_and_nothing_is_voted(place: Path, rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*"))
    vote(place, "--who_helps", "--rule", rule, "--json", str(place / "found.json"))
    assert sorted(place.rglob("*")) == sorted([*before, place / "found.json"])
    printed = capsys.readouterr().out
    assert f"dev: 30 items in 10 dialogues of {place / 'data' / 'data_dev.json'}; voters: 3" in printed
    found = json.loads((place / "found.json").read_text(encoding="utf-8"))
    assert found["data"]["sha256"] == sha256(place / "data" / "data_dev.json")
    assert found["inputs"].keys() == set(RUNS) and found["rule"] == rule
    assert len(found["voters"]) == len(found["pairs"]) == 3
    assert f"vote of all ({rule}): {found['accuracy']:.2%}" in printed

    # The same numbers as the votes themselves give.
    vote(place, "--split", "dev", "--rule", rule, "--out", str(place / "all"))
    assert result(place / "all", "dev")["accuracy"] == pytest.approx(found["accuracy"])
    vote(place, "alpha", "beta", "--split", "dev", "--rule", rule, "--out", str(place / "two"))
    (gamma,) = [voter for voter in found["voters"] if voter["run"] == "gamma"]
    assert result(place / "two", "dev")["accuracy"] == pytest.approx(gamma["without"])
    alike = {tuple(pair["runs"]): pair["agreement"] for pair in result(place / "all", "dev")["pairs"]}
    assert {tuple(pair["runs"]): pair["agreement"] for pair in found["pairs"]} == pytest.approx(alike)


def test_eight_voters_fit_into_a_hundred_columns(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    for number in range(8):
        logits = rng.normal(0, 1, (30, 3)) + np.eye(3)[np.arange(30) % 3]
        make_scored_run(place / "eight" / f"mini-backbone{number}", place / "data", "dev", logits.tolist())
    monkeypatch.setenv("COLUMNS", "100")
    main(["--who_helps", "--data", str(place / "data"), "--results", str(place / "eight")])
    tables = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("│", "┃"))]
    assert all(len(line) <= 100 for line in tables)
    assert sum("mini-backbone3" in line for line in tables) == 2, "once left out, once in the matrix, both with frames"


def test_who_helps_needs_labels_and_two_voters(place: Path) -> None:
    with pytest.raises(UserError, match="--who_helps: found a single voter, alpha"):
        vote(place, "alpha", "--who_helps")
    items = load_items(place / "data" / "data_dev.json")
    elsewhere = make_predictions(place / "elsewhere.json", items, [0] * 30)
    vote(place, "alpha", str(elsewhere), "--who_helps")
    with pytest.raises(UserError, match="--rule soft needs probabilities"):
        vote(place, "alpha", str(elsewhere), "--who_helps", "--rule", "soft")
    make_split(place / "few", "dev", 6)
    for run in RUNS:
        make_scored_run(place / "short" / run, place / "few", "dev", [[1.0, 0.0, 0.0]] * 6)
    with pytest.raises(UserError, match=r"the 6 items are of 2 dialogues.*Allowed: .* 3 dialogues"):
        main(["--who_helps", "--data", str(place / "few"), "--results", str(place / "short")])
    make_split(place / "data", "dev", 30, labelled=False)
    with pytest.raises(UserError, match="30 of 30 items have no label"):
        vote(place, "--who_helps", "--json", str(place / "found.json"))
    assert not (place / "found.json").exists()


# Another task


def test_four_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, own = np.random.default_rng(2), ("--task", str(tmp_path / "task.yaml"))
    (tmp_path / "task.yaml").write_text(TASK_FILE, encoding="utf-8")
    (tmp_path / "data").mkdir()
    with working_on(FOUR):
        for split, count in ITEMS.items():
            made = [make_four(number, **({} if split == "dev" else {"output": ""})) for number in range(count)]
            (tmp_path / "data" / f"data_{split}.json").write_text(dump_items(made), encoding="utf-8")
            for run in RUNS:
                logits = rng.normal(0, 1, (count, 4)) + 2 * np.eye(4)[np.arange(count) % 4]
                make_scored_run(tmp_path / "results" / run, tmp_path / "data", split, logits.tolist())
        for rule in ("soft", "weighted", "stack"):
            for split in ("dev", "test"):
                vote(tmp_path, "--rule", rule, "--split", split, *own)
                found = lines(tmp_path / "results" / f"vote-{rule}", split)
                assert {len(line["probabilities"]) for line in found} == {4}
                assert {line["answer"] for line in found} <= set(FOUR.options)
            assert result(tmp_path / "results" / f"vote-{rule}", "dev")["accuracy"] > 0.5
        capsys.readouterr()
        vote(tmp_path, "--who_helps", "--rule", "soft", *own)
        assert "vote of all (soft)" in capsys.readouterr().out
