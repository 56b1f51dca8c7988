from pathlib import Path

import pytest

from src.runs.facts import Result, TaskFacts
from src.runs.record import Record
from src.vote.decision import decide, unlike_earlier, vote_line
from src.vote.voters import Request, Voters, gather_voters
from tests.made_runs import make_run, make_split


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Four dev items with the labels 0 1 2 0 and as many of test; three runs."""
    for split in ("dev", "test"):
        make_split(tmp_path / "data", split, 4, labelled=split == "dev")
        for run, answers in (("alpha", [0, 1, 2, 0]), ("beta", [0, 1, 1, 1]), ("gamma", [0, 2, 2, 2])):
            make_run(tmp_path / "results" / run, tmp_path / "data", split, answers)
    return tmp_path


def gathered(place: Path, split: str) -> Voters:
    return gather_voters(Request([], [], split, place / "results", place / "data"))


def test_a_vote_on_a_labelled_split_knows_what_it_is_worth(place: Path) -> None:
    decision = decide(gathered(place, "dev"))
    assert decision.answers[:3] == [0, 1, 2] and decision.verdicts[3].tied == (0, 1, 2)
    result = decision.result
    assert (result.items, result.orders, result.accuracy) == (4, 1, (result.correct or 0) / 4)
    assert [voter.accuracy for voter in decision.voters] == [1.0, 0.5, 0.5]
    assert result.decided_by["majority"] == 3 and result.data == str(place / "data" / "data_dev.json")
    assert [voter["run"] for voter in result.voters] == ["alpha", "beta", "gamma"]


def test_without_labels_nothing_is_made_up(place: Path) -> None:
    decision = decide(gathered(place, "test"))
    assert (decision.result.accuracy, decision.result.correct, decision.result.interval) == (None, None, None)
    assert {voter.accuracy for voter in decision.voters} == {None}


def test_the_line_of_an_item_has_the_options_as_the_files_call_them(place: Path) -> None:
    voters = gathered(place, "dev")
    line = vote_line(decide(voters).verdicts[1], voters.sources)
    assert (line["answer"], line["counts"], line["tied"]) == ("inference_2", (0, 2, 1), [])
    assert line["runs"] == {"alpha": "inference_2", "beta": "inference_2", "gamma": "inference_3"}


def test_a_vote_that_is_unlike_the_one_on_the_other_split_is_told(place: Path) -> None:
    voters = gathered(place, "dev")
    earlier = Record(run="vote", task=TaskFacts.current()).with_result("test", Result(items=4, orders=6))
    (note,) = unlike_earlier(earlier, "dev", voters.sources)
    assert note.startswith("this vote on dev is by 1 order of the options, that on test in the same folder by 6 orders")
    assert unlike_earlier(earlier, "test", voters.sources) == [] == unlike_earlier(None, "dev", voters.sources)
