import pytest

from src.vote.pair_table import about, notes, verdict
from src.worth.paired import Pair


def pair(difference: float, corrected: float, by_dialogue: float, more: int | None) -> Pair:
    right = {"only_one": 5, "only_other": 5 - round(100 * difference), "difference": difference}
    ps = {"p": corrected, "corrected_p": corrected, "p_by_dialogue": by_dialogue, "corrected_by_dialogue": by_dialogue}
    interval = (difference - 0.02, difference + 0.02)
    return Pair(**right, **ps, interval=interval, design_effect=1, one="a", other="b", more_items=more)


def test_a_verdict_claims_no_more_than_both_tests_do() -> None:
    assert verdict(pair(0.03, 0.01, 0.02, None)) == "a\nis better"
    assert verdict(pair(-0.03, 0.01, 0.02, None)) == "b\nis better"
    assert verdict(pair(0.01, 0.3, 0.4, 1234)) == "not told apart;\nabout 1,200 more items would be needed"
    assert verdict(pair(0.01, 0.06, 0.4, 1)) == "not told apart;\nabout 1 more item would be needed"
    assert verdict(pair(0.01, 0.04, 0.06, 60)) == "not told apart;\nabout 60 more items would be needed"
    assert verdict(pair(0.0, 1, 1, None)) == "not told apart;\nno difference here, so no number of items can be given"
    assert verdict(pair(0.03, 0.01, 1, None)) == "not told apart"


def test_the_matter_of_dialogues_is_told_where_it_changes_a_verdict() -> None:
    quiet = [pair(0.03, 0.01, 0.02, None), pair(0.01, 0.3, 0.4, 9)]
    assert notes(quiet, 20) == []
    (note,) = notes([*quiet, pair(0.04, 0.04, 0.06, 60)], 20)
    assert note.endswith("By dialogue these are not told apart: a and b (corrected p by dialogue .060)")
    (note,) = notes([pair(0.04, 0.04, 1, None)], 1)
    assert note.startswith("all items are of one dialogue")


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "1"), (95, "95"), (155, "160"), (1_250, "1,200"), (27_961, "28,000"), (1_000_000, "1,000,000")],
)
def test_a_number_has_two_digits_that_count(number: int, words: str) -> None:
    assert about(number) == words
