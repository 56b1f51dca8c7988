"""`run.evaluate --calibration`: its table, its picture, what it writes, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from run.evaluate import main
from run.vote import main as vote
from src.console.cli import UserError
from src.data import dump_items, load_items, sha256
from src.files.writing import write_text
from tests.made_runs import make_predictions, make_scored_run, make_split
from tests.made_task import FOUR, TASK_FILE, make_four, working_on

RUNS = ("alpha", "beta", "gamma")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Thirty labelled dev and train items each, and runs that are far too sure of them."""
    rng = np.random.default_rng(0)
    for split in ("dev", "train"):
        make_split(tmp_path / "data", split, 30)
        for run in RUNS:
            logits = 12 * (rng.normal(0, 1, (30, 3)) + np.eye(3)[np.arange(30) % 3])
            make_scored_run(tmp_path / "results" / run, tmp_path / "data", split, logits.tolist())
    return tmp_path


def evaluate(place: Path, *arguments: str) -> None:
    main([*arguments, "--data", str(place / "data"), "--results", str(place / "results"), "--missed", "0"])


def make_vote(place: Path, rule: str, split: str = "dev") -> None:
    where = ["--data", str(place / "data"), "--results", str(place / "results")]
    vote([*RUNS, "--rule", rule, "--split", split, *where])


def written(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "found.json").read_text(encoding="utf-8"))
    return found


def squeezed(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_runs_and_votes_are_judged_and_drawn(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_vote(place, "hard")
    make_vote(place, "soft")
    alone = make_predictions(place / "alone.json", load_items(place / "data" / "data_dev.json"), [0] * 30)
    names = ["alpha", "vote-soft", "vote", str(alone)]
    capsys.readouterr()
    evaluate(place, *names, "--calibration", "--json", str(place / "found.json"))
    printed = squeezed(capsys.readouterr().out)

    found = written(place)["calibration"]
    picture = place / "results" / "reliability_dev.png"
    assert found["figure"] == str(picture) and f"written: {picture}" in printed
    assert Image.open(picture).size[0] >= 700
    assert [one["name"] for one in found["answers"]] == ["alpha", "vote-soft", "vote"]
    assert found["without_probabilities"] == [str(alone)]
    assert f"note: {alone} has answers and no probabilities: skipped" in printed
    fitted = found["fitted"]
    assert (fitted["split"], fitted["items"], fitted["dialogues"], fitted["folds"]) == ("dev", 30, 10, 10)
    assert fitted["data_sha256"] == sha256(place / "data" / "data_dev.json")
    assert f"fitted on the 30 items of {place / 'data' / 'data_dev.json'}, 10 dialogues" in printed
    assert "measured out of fold" in printed and "the other 9 folds" in printed

    alpha, soft, hard = found["answers"]
    told = (
        f"vote-soft: its rule was itself fitted, out of fold, on the 30 items of {place / 'data' / 'data_dev.json'}, 10"
    )
    assert told in printed
    assert (alpha["vote_fitted"], hard["vote_fitted"]) == (None, None) and soft["vote_fitted"]["rule"] == "soft"
    for one in (alpha, soft):
        before, after = one["before"], one["after"]
        row = f"{before['accuracy']:.1%} {before['confidence']:.1%} 1 {before['log_loss']:.3f} {before['brier']:.3f}"
        assert f"{one['name']} {row} {before['ece']:.1%}" in printed
        row = f"{after['accuracy']:.1%} {after['confidence']:.1%} {after['temperature']:.2f} {after['log_loss']:.3f}"
        assert f"→ scaled {row} {after['brier']:.3f} {after['ece']:.1%}" in printed
        low, high = after["log_loss_change"]["interval"]
        assert f"change, 95 % {low:+.3f} to {high:+.3f}" in printed
        assert sum(bin["total"] for bin in before["bins"]) == 30
    assert alpha["before"]["verdict"] == "overconfident" and "Overconfident: alpha" in printed
    assert (hard["probabilities"], hard["before"]["log_loss"], hard["after"]) == ("shares of ballots", None, None)
    assert "vote (shares of ballots)" in printed and "vote is a hard vote" in printed


def test_a_single_run_has_its_picture_in_its_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(place.rglob("*"))
    evaluate(place, "alpha", "--calibration")
    assert set(place.rglob("*")) - before == {place / "results" / "alpha" / "reliability_dev.png"}
    evaluate(place, "alpha", "--calibration", "--figure", str(place / "new" / "other.png"))
    assert (place / "new" / "other.png").read_bytes() == (
        place / "results" / "alpha" / "reliability_dev.png"
    ).read_bytes()
    # A picture in its folder makes a run no other run.
    evaluate(place, "alpha")
    capsys.readouterr()


def test_another_split_can_be_fitted_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_vote(place, "stack")
    make_vote(place, "stack", split="train")
    words = ("alpha", "vote-stack", "--split", "train", "--calibration", "--fitted_on", "dev")
    evaluate(place, *words, "--json", str(place / "found.json"))
    found = written(place)["calibration"]
    assert (found["fitted"]["split"], found["fitted"]["folds"], found["fitted"]["shared"]) == ("dev", None, 30)
    printed = capsys.readouterr().out
    assert f"Temperatures: fitted on the 30 items of {place / 'data' / 'data_dev.json'}, 10 dialogues, and" in printed
    assert "30 of the train items are of dialogues that the temperatures were fitted on" in printed
    (place / "results" / "beta" / "scores_dev.jsonl").unlink()
    with pytest.raises(
        UserError,
        match=r"--fitted_on dev: \S*predictions_dev\.json has no probabilities, as \S*scores_train\.jsonl has",
    ):
        evaluate(place, "beta", *words[2:])


def test_a_picture_that_cannot_be_written_is_one_message_and_nothing_half_written(place: Path) -> None:
    with pytest.raises(UserError, match=r"x\.png cannot be written: File name too long\. Make room, or give"):
        evaluate(place, "alpha", "--calibration", "--figure", str(place / f"{'x' * 250}x.png"))
    with pytest.raises(UserError, match=r"x\.png cannot be written: No such file"):
        evaluate(place, "alpha", "--calibration", "--figure", "/proc/x.png")
    assert not list(place.rglob("*.png"))


def test_what_makes_no_sense_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = make_predictions(place / "alone.json", load_items(place / "data" / "data_dev.json"), [0] * 30)
    with pytest.raises(UserError, match=r"--calibration needs probabilities.*alone\.json"):
        evaluate(place, str(alone), "--calibration")
    make_vote(place, "hard")
    evaluate(place, "vote", "--calibration", "--json", str(place / "found.json"))
    found, printed = written(place)["calibration"], capsys.readouterr().out
    assert found["fitted"] is None and len(found["notes"]) == 1 and "Temperatures: fitted" not in printed
    (place / "results" / "vote" / "reliability_dev.png").unlink()
    with pytest.raises(UserError, match="--fitted_on train: found shares of ballots alone"):
        evaluate(place, "vote", "--calibration", "--fitted_on", "train")
    for words, reason in (
        (("--figure", str(place / "x.png")), "--figure: allowed with --calibration"),
        (("--fitted_on", "train"), "--fitted_on: allowed with --calibration"),
        (("--calibration", "--figure", str(place / "x.pdf")), "allowed: a name that ends in .png"),
        (("--calibration", "--fitted_on", "dev"), "these are the items that are evaluated"),
        (("--calibration", "--fitted_on", "test"), "invalid choice: 'test'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            evaluate(place, "alpha", *words)
        assert stopped.value.code == 2 and reason in capsys.readouterr().err
    assert not list(place.rglob("*.png"))


def test_without_the_flag_nothing_of_it_is_loaded_or_written(place: Path) -> None:
    arguments = ["alpha", "--data", str(place / "data"), "--results", str(place / "results")]
    arguments += ["--json", str(place / "found.json")]
    loaded = "[name for name in ('matplotlib',) if name in sys.modules]"
    code = f"import sys; from run.evaluate import main; main({arguments!r}); print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "calibration" not in written(place) and not list(place.rglob("*.png"))


def test_the_table_fits_into_a_narrow_terminal(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns, as_a_table in (("80", True), ("40", False)):
        monkeypatch.setenv("COLUMNS", columns)
        evaluate(place, "alpha", "beta", "--calibration")
        lines = capsys.readouterr().out.split("Are the probabilities")[1].splitlines()
        assert any("answers" in line and "verdict" in line for line in lines) == as_a_table
        assert len([line for line in lines if "→ scaled" in line]) == 2
        assert len([line for line in lines if line.rstrip().endswith("overconfident")]) == 2


def test_four_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, own = np.random.default_rng(1), ("--task", str(tmp_path / "task.yaml"))
    (tmp_path / "task.yaml").write_text(TASK_FILE, encoding="utf-8")
    with working_on(FOUR):
        write_text(tmp_path / "data" / "data_dev.json", dump_items([make_four(number) for number in range(24)]))
        for run in RUNS:
            logits = rng.normal(0, 1, (24, 4)) + 2 * np.eye(4)[np.arange(24) % 4]
            make_scored_run(tmp_path / "results" / run, tmp_path / "data", "dev", logits.tolist())
        where = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results"), *own]
        for rule in ("hard", "soft"):
            vote([*RUNS, "--split", "dev", "--rule", rule, *where])
        capsys.readouterr()
        main(["alpha", "vote-soft", "vote", *where, "--calibration", "--json", str(tmp_path / "found.json")])
    assert "→ scaled" in capsys.readouterr().out
    found = written(tmp_path)["calibration"]["answers"]
    assert [len(one["before"]["bins"]) for one in found] == [1, 1, 1], "24 items make one bin"
    assert all(0.25 < one["before"]["confidence"] < 1 for one in found)


def test_a_place_that_takes_no_picture_is_told_before_the_tables(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(SystemExit) as stopped:
        evaluate(place, "alpha", "--calibration")
    told = capsys.readouterr()
    assert stopped.value.code == 2 and "--calibration: " in told.err and "may not be written to" in told.err
    assert not told.out
