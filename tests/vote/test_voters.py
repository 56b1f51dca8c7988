from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from src import task
from src.console.cli import UserError
from src.data import load_data
from src.files.paths import FOLDS, predictions_path, record_path, scores_path
from src.runs.facts import DataFile, TaskFacts
from src.runs.record import Record
from src.vote.voters import Request, earlier_votes, gather_voters, other_items, why_cannot_vote
from tests.made_runs import add_orders, make_run, make_split


def test_why_a_run_cannot_vote(data: Path, results: Path) -> None:
    make_run(results / "alpha", data, "test", [0] * 8)
    make_run(results / "beta", data, "test", [0] * 8, finished=False)
    gamma = make_run(results / "gamma", data, "test", [0] * 8)
    scores_path(gamma, "test").rename(scores_path(gamma, "dev"))
    strange = make_run(results / "strange", data, "test", [0] * 8)
    replace(Record.load(strange), task=TaskFacts(name="날씨", sha256="0")).save(strange)
    reasons = {name: why_cannot_vote(results / name, "test") for name in ("alpha", "beta", "gamma", "strange", "delta")}
    assert reasons == {
        "alpha": "",
        "beta": "not finished",
        "gamma": "not scored on test",
        "strange": "of another task",
        "delta": "no such run",
    }
    record_path(gamma).unlink()
    assert why_cannot_vote(gamma, "test") == "not finished"


def test_fold_runs_vote_when_they_are_named(data: Path, results: Path) -> None:
    make_run(results / "alpha", data, "test", [0] * 8)
    part = make_run(results / "alpha-f1of2", data, "test", [0] * 8)
    train = results / "folds-x" / "f1" / "data_train.json"
    replace(Record.load(part), data={"train": DataFile(path=str(train))}).save(part)

    def voters(*runs: str, expected: Sequence[str] = ()) -> list[str]:
        gathered = gather_voters(Request(runs, expected, "test", results, data))
        return [source.ballot.run for source in gathered.sources]

    assert voters() == ["alpha", "alpha-f1of2"], "a folder of another kind is none of folds"
    (train.parents[1]).mkdir()
    (train.parents[1] / FOLDS).write_text("{}", encoding="utf-8")
    assert voters() == ["alpha"]
    assert voters("alpha-f1of2") == ["alpha-f1of2"]
    assert voters(expected=["alpha", "alpha-f1of2"]) == ["alpha", "alpha-f1of2"]


def test_a_run_of_some_items_and_one_of_others(data: Path, results: Path, tmp_path: Path) -> None:
    items = load_data(data, "test")[0]
    make_split(tmp_path / "few", "test", 3, labelled=False)
    few = make_run(results / "few", tmp_path / "few", "test", [0] * 3)
    make_split(tmp_path / "many", "test", 9, labelled=False)
    many = make_run(results / "many", tmp_path / "many", "test", [0] * 9)
    assert other_items(make_run(results / "all", data, "test", [0] * 8), "test", items) == ""
    assert other_items(few, "test", items) == "scored on 3 of the 8 items only"
    assert other_items(many, "test", items) == "scored on other items"


def test_who_is_left_out_and_who_is_missing(data: Path, results: Path) -> None:
    for name in ("alpha", "beta"):
        make_run(results / name, data, "test", [0] * 8)
    make_run(results / "begun", data, "test", [0] * 8, finished=False)
    request = Request([], [], "test", results, data)
    voters = gather_voters(request)
    assert [source.ballot.run for source in voters.sources] == ["alpha", "beta"]
    assert (voters.left_out, voters.missing, voters.notes) == ({"begun": "not finished"}, {}, [])
    expected = gather_voters(replace(request, expected=["alpha", "begun", "delta"]))
    assert expected.missing == {"begun": "not finished", "delta": "no such run"}
    assert expected.notes == ["a single voter: these are the answers of alpha, and no vote of several"]
    # A damaged run that was not meant spoils nothing.
    record_path(results / "begun").write_text("{")
    assert len(gather_voters(replace(request, runs=["alpha", "beta"])).sources) == 2
    with pytest.raises(UserError, match=r"Nobody can vote on dev\. Found in .*: alpha \(not scored on dev\)"):
        gather_voters(Request([], ["alpha"], "dev", results, data))


def test_answers_by_different_numbers_of_orders(data: Path, results: Path) -> None:
    alpha, beta = (make_run(results / name, data, "test", [0] * 8) for name in ("alpha", "beta"))
    add_orders(alpha, data, "test", [0] * 8)
    request = Request([str(scores_path(alpha, "test", 6)), str(beta)], [], "test", results, data)
    (note,) = gather_voters(request).notes
    assert note.startswith("scores by different numbers of orders vote together: 6 orders of ")
    assert note.endswith("; 1 order of beta") or note.endswith(", 1 order of beta")


def test_the_folder_of_a_run_takes_no_vote(data: Path, results: Path) -> None:
    run = make_run(results / "alpha", data, "test", [0] * 8)
    with pytest.raises(UserError, match="alpha is the folder of a trained run"):
        earlier_votes(run)
    assert earlier_votes(results / "vote") is None


def test_runs_of_another_task_do_not_vote(data: Path, results: Path) -> None:
    run = make_run(results / "alpha", data, "test", [0] * 8)
    task.use(replace(task.current(), categories=(*task.current().categories, "까닭")))
    try:
        with pytest.raises(UserError, match=r"alpha is of another version of the task .*--task "):
            gather_voters(Request([str(run)], [], "test", results, data))
    finally:
        task.use(None)


def test_answers_to_changed_dialogues_do_not_vote(data: Path, results: Path) -> None:
    for name in ("alpha", "alpha-blanked"):
        make_run(results / name, data, "test", [0] * 8)
    changed = results / "alpha-blanked"
    replace(Record.load(changed), dialogue="blanked").save(changed)
    request = Request(["alpha", "alpha-blanked"], [], "test", results, data)
    with pytest.raises(UserError, match=r"^alpha-blanked \(dialogue blanked\): .* they do not vote\. Leave them out"):
        gather_voters(request)
    with pytest.raises(UserError, match="they do not vote"):
        gather_voters(replace(request, runs=["alpha", str(predictions_path(changed, "test"))]))
    # Made by run.test it has no recipe.yaml, so nobody takes it for a run that may vote without being named.
    (changed / "recipe.yaml").unlink()
    assert [source.ballot.run for source in gather_voters(replace(request, runs=[])).sources] == ["alpha"]
