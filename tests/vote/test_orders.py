from pathlib import Path

import pytest

from src.console.cli import UserError
from src.data import load_data, split_path
from src.files.paths import record_path, scores_path
from src.files.writing import write_json
from src.vote.ballots import read_sources
from src.vote.orders import common_orders, lost_scores, partly_scored, scored_orders, whole_orders
from tests.made_runs import add_orders, make_run, make_split, stored


@pytest.fixture
def both(tmp_path: Path, data: Path, results: Path) -> tuple[Path, Path]:
    """alpha and beta, scored on dev and test by one order; alpha on dev by six, too, with other answers."""
    make_split(data, "dev", 8)
    runs = []
    for name in ("alpha", "beta"):
        make_run(results / name, data, "dev", [0] * 8, dev_accuracy=0.25)
        record = stored(results / name)
        make_run(results / name, data, "test", [0] * 8)
        record["splits"] |= stored(results / name)["splits"] | {"dev": record["splits"]["dev"]}
        write_json(record_path(results / name), record)
        runs.append(results / name)
    add_orders(runs[0], data, "dev", [1] * 8, accuracy=0.75)
    return runs[0], runs[1]


def test_runs_are_read_by_the_orders_that_all_have(both: tuple[Path, Path]) -> None:
    alpha, beta = both
    assert (set(scored_orders(alpha, "dev")), set(scored_orders(alpha, "test"))) == ({1, 6}, {1})
    assert common_orders([alpha, beta], "dev", None) == (1, "")
    with pytest.raises(
        UserError, match=r"1 of 2 runs have no scores of 6 orders on dev.*alpha: 1 order and 6 orders;"
    ) as no:
        common_orders([alpha, beta], "dev", 6)
    assert str(no.value).endswith(f"  python -m run.test --model_id {beta} --split dev --orders 6")
    assert common_orders([alpha], "dev", 1) == (1, "")
    told = "these are scores of 6 orders, but on test there are none such of alpha"
    assert common_orders([alpha], "dev", 6) == (6, told)


def test_six_orders_are_taken_where_dev_and_test_have_them(both: tuple[Path, Path], data: Path) -> None:
    alpha, beta = both
    add_orders(beta, data, "dev", [1] * 8)
    orders, note = common_orders([alpha, beta], "dev", None)
    assert orders == 1 and note == "all have scores of 6 orders on dev, too, but not on test: --orders 6"
    for run in both:
        add_orders(run, data, "test", [2] * 8)
    assert common_orders([alpha, beta], "dev", None)[0] == common_orders([alpha, beta], "test", None)[0] == 6


def test_a_ballot_of_six_orders_has_their_answers_and_accuracy(
    both: tuple[Path, Path], data: Path, results: Path
) -> None:
    items = load_data(data, "dev")[0]
    where = (split_path(data, "dev"), "dev", results)
    (one,) = read_sources(["alpha"], items, *where, orders=1)
    (six,) = read_sources(["alpha"], items, *where, orders=6)
    assert (set(one.ballot.answers.values()), one.ballot.dev_accuracy, one.orders) == ({0}, 0.25, 1)
    assert (set(six.ballot.answers.values()), six.ballot.dev_accuracy, six.orders) == ({1}, 0.75, 6)
    assert six.file.name == "scores_dev.6orders.jsonl"


def test_six_orders_in_the_place_of_one_are_known_by_the_record(
    both: tuple[Path, Path], data: Path, results: Path
) -> None:
    """As runs of before have them."""
    alpha, beta = both
    scores_path(alpha, "dev", 6).replace(scores_path(alpha, "dev"))
    record = stored(alpha)
    record["splits"]["dev"] = record.pop("splits_6orders")["dev"]
    write_json(record_path(alpha), record)
    assert scored_orders(alpha, "dev") == {6: scores_path(alpha, "dev")}
    items = load_data(data, "dev")[0]
    (source,) = read_sources(["alpha"], items, split_path(data, "dev"), "dev", results)
    assert (set(source.ballot.answers.values()), source.ballot.dev_accuracy, source.orders) == ({1}, 0.75, 6)
    with pytest.raises(
        UserError, match=rf"not mixed[^\n]*\n  python -m run.test --model_id {beta} --split dev --orders 6"
    ):
        read_sources(["alpha", "beta"], items, split_path(data, "dev"), "dev", results)


def test_the_most_orders_of_dev_and_test_alike_are_taken(both: tuple[Path, Path], data: Path) -> None:
    for run in both:
        for split in ("dev", "test"):
            add_orders(run, data, split, [1] * 8, count=3)
        add_orders(run, data, "dev", [1] * 8)
    assert set(scored_orders(both[0], "dev")) == {1, 3, 6}
    found = common_orders(both, "dev", None)
    assert found == (3, "taken are the scores of 3 orders, which all have on dev and test")
    assert common_orders(both, "dev", 6)[0] == 6


def test_scores_of_some_items_only(both: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    items, alpha = load_data(data, "dev")[0], both[0]
    make_split(tmp_path / "few", "dev", 3)
    make_run(alpha, tmp_path / "few", "dev", [0] * 3)
    add_orders(alpha, data, "dev", [1] * 8)
    assert set(scored_orders(alpha, "dev")) == {1, 6} and set(whole_orders(alpha, "dev", items)) == {6}
    reason = "by 1 order scored on some of the 8 items only"
    assert partly_scored(both, "dev", items, None) == {"alpha": reason}
    assert partly_scored(both, "dev", items, 1) == {"alpha": reason}
    add_orders(both[1], data, "dev", [1] * 8)
    assert partly_scored(both, "dev", items, None) == {}


def test_scores_of_several_orders_that_were_deleted_are_named(both: tuple[Path, Path], data: Path) -> None:
    alpha, beta = both
    assert lost_scores([alpha, beta], "dev") == ""
    scores_path(alpha, "dev", 6).unlink()
    assert lost_scores([alpha, beta], "dev") == "the scores of alpha by 6 orders are gone"
    path = split_path(data, "dev")
    first, _ = read_sources([str(alpha), str(beta)], load_data(path, "dev")[0], path, "dev", alpha.parent)
    assert first.orders == 1 and "the scores of alpha by 6 orders are gone" in first.note
