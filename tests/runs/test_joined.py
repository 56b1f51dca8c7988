"""The scores of fold runs joined, and what the other commands make of them."""

from pathlib import Path

import numpy as np
import pytest

from src.console.cli import UserError
from src.data import Item, dump_items, load_items, parse_items, sha256, split_path
from src.files.paths import predictions_path, record_path, scores_path
from src.files.writing import write_json, write_text
from src.runs.facts import VoteResult
from src.runs.joined import averaged, join, side_by_side
from src.runs.record import Record
from src.score.item_scores import ItemScores, read_scores
from tests.commands import start
from tests.conftest import make_item
from tests.made_runs import add_orders, make_scored_run, stored

LOGITS = [(2.0, 0.0, -1.0), (0.0, 1.0, 0.0), (0.0, -1.0, 0.5), (1.0, 1.5, 0.0), (0.3, 0.0, 0.2), (0.0, 0.1, 3.0)]


def put(data: Path, split: str, *numbers: int, labelled: bool = True) -> None:
    changes = {} if labelled else {"output": ""}
    write_text(split_path(data, split), dump_items([make_item(number, **changes) for number in numbers]))


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two fold runs, a and b, on dialogues 0 and 1, and two test items; labels are 0, 1, 2, 0, 1, 2."""
    put(tmp_path / "folds", "dev", 3, 4, 5, 0, 1, 2)
    for name, held in (("f1", (0, 1, 2)), ("f2", (3, 4, 5))):
        put(tmp_path / "folds" / name, "dev", *held)
    for folder in ("", "f1", "f2"):
        put(tmp_path / "folds" / folder, "test", 6, 7, labelled=False)
    results = tmp_path / "results"
    for run, fold, dev, test in (("a", "f1", LOGITS[:3], LOGITS[:2]), ("b", "f2", LOGITS[3:], LOGITS[4:])):
        make_scored_run(results / run, tmp_path / "folds" / fold, "dev", dev)
        make_scored_run(results / run, tmp_path / "folds" / fold, "test", test)
        record = stored(results / run)
        record["splits"]["dev"]["accuracy"] = 2 / 3
        write_json(record_path(results / run), record)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def item_of(number: int) -> Item:
    items, _ = parse_items(dump_items([make_item(number)]).encode(), "made up")
    return items[0]


def joined(house: Path, name: str = "both") -> Record:
    results, folds = house / "results", house / "folds"
    items = {split: load_items(split_path(folds, split)) for split in ("dev", "test")}
    return join(results / name, folds, {results / "a": folds / "f1", results / "b": folds / "f2"}, items)


def test_each_labelled_item_has_the_scores_of_its_own_fold(house: Path) -> None:
    joined(house)
    record = Record.load(house / "results" / "both")
    scores = read_scores(scores_path(house / "results" / "both", "dev"))
    assert [(one.id, one.logits[0]) for one in scores] == [
        (f"made-{number:04d}", LOGITS[number]) for number in (3, 4, 5, 0, 1, 2)
    ]
    result = record.splits["dev"]
    # Items 3 and 4 are answered 1 and 0, against the labels 0 and 1.
    assert (result.items, result.correct, result.accuracy) == (6, 4, 4 / 6)
    assert result.data_sha256 == sha256(house / "folds" / "data_dev.json") and record.is_vote
    assert isinstance(result, VoteResult) and result.rule and "Out of fold" in result.rule
    assert [(voter["run"], voter["items"], voter["dev_accuracy"]) for voter in result.voters] == [
        ("a", 3, 2 / 3),
        ("b", 3, 2 / 3),
    ]


def test_test_has_the_geometric_mean_of_the_fold_runs(house: Path) -> None:
    joined(house)
    found = np.exp([one.logprobs for one in read_scores(scores_path(house / "results" / "both", "test"))])
    each = [np.exp(rows) / np.exp(rows).sum(1, keepdims=True) for rows in (np.array(LOGITS[:2]), np.array(LOGITS[4:]))]
    expected = np.sqrt(each[0] * each[1])
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), rtol=1e-12)
    answers = [item.label for item in load_items(predictions_path(house / "results" / "both", "test"))]
    assert answers == found.argmax(1).tolist()


def test_the_mean_goes_by_letter_and_order() -> None:
    item = item_of(0)
    one = ItemScores(item.id, ("012", "120"), ((1.0, 0.0, 0.0), (5.0, 5.0, 6.0)))
    other = ItemScores(item.id, ("120", "012"), ((7.0, 8.0, 7.0), (0.0, 0.0, 2.0)))
    (found,) = averaged([[one], [other]], [item])
    assert found.orders == ("012", "120")
    np.testing.assert_allclose(
        np.array(found.logprobs) - found.logprobs[0],
        (mean := (np.array(one.logprobs) + np.array(other.logprobs)) / 2) - mean[0],
        atol=1e-12,
    )


def test_an_item_scored_twice_or_not_at_all_is_our_mistake() -> None:
    items = [item_of(number) for number in (0, 1)]
    rows = [ItemScores(item.id, ("012",), ((1.0, 0.0, 0.0),)) for item in items]
    assert side_by_side([rows[1:], rows[:1]], items) == rows
    for found in ([rows, rows[:1]], [rows[:1]]):
        with pytest.raises(AssertionError, match="each item once"):
            side_by_side(found, items)


def test_scores_by_more_orders_are_joined_where_all_have_them(house: Path) -> None:
    add_orders(house / "results" / "a", house / "folds" / "f1", "dev", [0, 1, 2])
    assert joined(house).by_orders.keys() == {1}
    add_orders(house / "results" / "b", house / "folds" / "f2", "dev", [0, 1, 2])
    record = joined(house)
    assert record.results(6).keys() == {"dev"} and record.results(6)["dev"].correct == 6


def test_scores_that_are_not_those_of_the_record_are_refused(house: Path) -> None:
    joined(house)
    folder = house / "results" / "both"
    path = scores_path(folder, "dev")
    path.write_text(path.read_text(encoding="utf-8").replace("2.0", "2.5", 1), encoding="utf-8")
    words = ["--results", folder.parent, "--data", house / "folds"]
    _, error = start("run.evaluate", "both", *words, code=2)
    assert "holds other answers for dev" in error and "run.reproduce --folds" in error
    joined(house)
    start("run.evaluate", "both", *words)


def test_what_is_joined_is_evaluated_and_votes_with_weights_fitted_out_of_fold(house: Path) -> None:
    joined(house)
    joined(house, "again")
    words = ["--results", house / "results"]
    shown, _ = start("run.evaluate", "both", *words)
    assert "6 items of" in shown and "4/6" in shown
    shown, _ = start("run.vote", "both", "again", "--rule", "weighted", "--out", house / "weighted", *words)
    assert "test: 2 items" in shown and "fitted on the 6 items of" in shown and "2 dialogues" in shown
    assert len(load_items(predictions_path(house / "weighted", "test"))) == 2


def test_a_joined_folder_is_no_run_to_score(house: Path) -> None:
    joined(house)
    _, error = start("run.test", "--model_id", house / "results" / "both", "--split", "dev", code=2)
    assert "is a vote, or another folder of answers alone" in error


def test_a_run_that_is_not_finished_is_named(house: Path) -> None:
    record_path(house / "results" / "b").unlink()
    with pytest.raises(UserError, match="b is not finished"):
        joined(house)
