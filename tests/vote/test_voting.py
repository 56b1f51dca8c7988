import math
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.console.cli import UserError
from src.vote.voting import RULES, Ballot, agreement, hard_vote, probability_vote

IDS = [f"made-{number}" for number in range(6)]
OPTIONS = (0, 1, 2)
Logprobs = tuple[float, ...]

answers = st.fixed_dictionaries({item_id: st.sampled_from(OPTIONS) for item_id in IDS})
logprob = st.floats(-20, 0).map(lambda value: round(value, 3))
logprobs = st.fixed_dictionaries({item_id: st.tuples(logprob, logprob, logprob) for item_id in IDS})
# Few values, so that equal accuracies are common.
accuracies = st.none() | st.sampled_from([0.5, 0.8, 0.9])


@st.composite
def some_ballots(draw: st.DrawFn, min_size: int = 1) -> list[Ballot]:
    count = draw(st.integers(min_size, 6))
    return [
        Ballot(f"run{number}", draw(answers), draw(st.none() | logprobs), draw(accuracies)) for number in range(count)
    ]


def ballot(answer: int, logprobs: Logprobs | None = None, dev_accuracy: float | None = None) -> Ballot:
    return Ballot("run", {"x": answer}, {"x": logprobs} if logprobs else None, dev_accuracy)


def decide(*ballots: Ballot) -> tuple[int, str]:
    (verdict,) = hard_vote(["x"], ballots)
    return verdict.answer, verdict.decided_by


@given(some_ballots(), st.randoms(use_true_random=False))
def test_order_of_the_ballots_never_matters(ballots: list[Ballot], random: object) -> None:
    shuffled = list(ballots)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert hard_vote(IDS, shuffled) == hard_vote(IDS, ballots)


@given(some_ballots(), st.sampled_from(list(permutations(OPTIONS))))
def test_renaming_the_options_renames_the_answers(ballots: list[Ballot], new: tuple[int, ...]) -> None:
    """Everything but a draw, which knows the item's id and nothing else."""
    old = [new.index(option) for option in OPTIONS]
    renamed = [
        Ballot(
            one.run,
            {item_id: new[answer] for item_id, answer in one.answers.items()},
            one.logprobs
            and {item_id: tuple(before[option] for option in old) for item_id, before in one.logprobs.items()},
            one.dev_accuracy,
        )
        for one in ballots
    ]
    for before, after in zip(hard_vote(IDS, ballots), hard_vote(IDS, renamed), strict=True):
        assert after.decided_by == before.decided_by
        assert set(after.tied) == {new[option] for option in before.tied}
        assert all(after.counts[new[option]] == before.counts[option] for option in OPTIONS)
        assert after.decided_by == "draw" or after.answer == new[before.answer]


@given(some_ballots())
def test_verdicts_are_sound(ballots: list[Ballot]) -> None:
    for verdict in hard_vote(IDS, ballots):
        assert sum(verdict.counts) == len(ballots)
        assert verdict.counts[verdict.answer] == max(verdict.counts)
        assert (verdict.decided_by == "majority") == (verdict.tied == ())
        if verdict.tied:
            assert verdict.answer in verdict.tied
            assert verdict.tied == tuple(option for option in OPTIONS if verdict.counts[option] == max(verdict.counts))
        if verdict.decided_by == "log-probability":
            assert any(one.logprobs for one in ballots)
        if verdict.decided_by == "best run":
            assert any(one.dev_accuracy is not None for one in ballots)


@given(some_ballots())
def test_one_voter_and_unanimity(ballots: list[Ballot]) -> None:
    alone = hard_vote(IDS, ballots[:1])
    assert [verdict.answer for verdict in alone] == [ballots[0].answers[item_id] for item_id in IDS]
    same = [Ballot(one.run, ballots[0].answers, one.logprobs, one.dev_accuracy) for one in ballots]
    for verdict, other in zip(alone, hard_vote(IDS, same), strict=True):
        assert (other.answer, other.decided_by, max(other.counts)) == (verdict.answer, "majority", len(ballots))


def test_majority_is_not_moved_by_scores() -> None:
    sure = ballot(0, (-0.001, -8.0, -8.0), dev_accuracy=0.99)
    weak = ballot(1, (-1.2, -1.0, -1.1), dev_accuracy=0.4)
    assert decide(sure, weak, weak) == (1, "majority")


def test_tie_goes_to_the_larger_sum_of_logprobs_of_all_runs_with_scores() -> None:
    surer = ballot(2, (-3.0, -3.0, -0.2))
    weaker = ballot(0, (-0.8, -2.0, -0.9), dev_accuracy=0.9)
    assert decide(surer, weaker) == (2, "log-probability")
    # A run that chose no tied option still has a say.
    third = ballot(1, (-0.8, -0.7, -9.0))
    assert decide(surer, weaker, third) == (0, "log-probability")
    # Runs without scores contribute their ballot alone.
    assert decide(surer, ballot(0)) == (2, "log-probability")


def test_an_option_outside_the_tie_cannot_win() -> None:
    near = (-1.2, -0.1, -1.3)
    assert decide(*[ballot(0, near)] * 2, *[ballot(2, near)] * 2, ballot(1, near)) == (0, "log-probability")


def test_without_scores_the_best_run_among_the_tied_decides() -> None:
    assert decide(ballot(0, None, 0.7), ballot(1, None, 0.8)) == (1, "best run")
    assert decide(ballot(0), ballot(1, None, 0.1)) == (1, "best run")
    # The best of all chose an option that is not tied.
    best_elsewhere = [ballot(0), ballot(0, None, 0.7), ballot(2), ballot(2, None, 0.8), ballot(1, None, 0.9)]
    assert decide(*best_elsewhere) == (2, "best run")


def test_equal_sums_go_on_to_the_best_run() -> None:
    # Log-softmax of (1, 0, 0) and (0, 1, 0): equal sums on paper, whatever their last digits.
    high, low = 1 - math.log(math.e + 2), -math.log(math.e + 2)
    one, other = ballot(0, (high, low + 1e-15, low), 0.8), ballot(1, (low, high, low), 0.7)
    assert decide(one, other) == (0, "best run")
    # What the sums have ruled out does not come back: 2 falls there, though its run is the best.
    best = ballot(2, (-1.0, -1.0, -1.1), 0.9)
    assert decide(one, other, best) == (0, "best run")


def test_runs_of_equal_accuracy_vote_among_themselves_then_the_next() -> None:
    top = [ballot(answer, None, 0.9) for answer in (0, 0, 1)]
    rest = [ballot(1, None, 0.5)]
    assert decide(*top, *rest) == (0, "best run")
    # One each at the top, so the next best are asked.
    top = [ballot(answer, None, 0.9) for answer in (0, 1)]
    rest = [ballot(1, None, 0.8), ballot(0, None, 0.7)]
    assert decide(*top, *rest) == (1, "best run")
    # 1 and 2 are level at the top and 0 is out: 0 does not come back below.
    top = [ballot(answer, None, 0.9) for answer in (1, 2)]
    rest = [ballot(0, None, 0.8), ballot(0), ballot(2, None, 0.7), ballot(1)]
    assert decide(*top, *rest) == (2, "best run")


@pytest.mark.usefixtures("four_options")
def test_four_options() -> None:
    def of(answer: int, *logprobs: float) -> Ballot:
        return ballot(answer, logprobs or None)

    (verdict,) = hard_vote(["x"], [of(3), of(3), of(0)])
    assert (verdict.answer, verdict.counts, verdict.tied) == (3, (1, 0, 0, 2), ())
    (verdict,) = hard_vote(["x"], [of(3, -2.0, -3.0, -3.0, -0.4), of(1), of(0, -0.3, -3.0, -3.0, -2.0)])
    assert (verdict.answer, verdict.counts, verdict.tied) == (0, (1, 1, 0, 1), (0, 1, 3))
    assert decide(of(3, -2.0, -3.0, -3.0, -0.1), of(0, -0.3, -3.0, -3.0, -2.0)) == (3, "log-probability")
    with pytest.raises(AssertionError):
        of(4)


def test_draw_is_fixed_by_the_id_and_fair() -> None:
    ids = [f"made-{number}" for number in range(3000)]
    ballots = [Ballot(f"run{option}", dict.fromkeys(ids, option)) for option in OPTIONS]
    verdicts = hard_vote(ids, ballots)
    assert {verdict.decided_by for verdict in verdicts} == {"draw"}
    assert all(850 < count < 1150 for count in Counter(verdict.answer for verdict in verdicts).values())
    # Pinned: another Python, another machine, the same draw.
    assert [verdict.answer for verdict in verdicts[:8]] == [0, 0, 1, 2, 1, 1, 0, 0]


def test_equal_accuracies_and_equal_ballots_end_in_a_draw() -> None:
    assert decide(ballot(0, None, 0.9), ballot(1, None, 0.9))[1] == "draw"


def test_nothing_to_vote_on() -> None:
    with pytest.raises(UserError, match="no runs"):
        hard_vote(IDS, [])
    assert hard_vote([], [Ballot("run", {})]) == []


def test_unequal_ids_name_every_run_and_its_ids() -> None:
    whole = Ballot("whole", dict.fromkeys(IDS, 0))
    short = Ballot("short", dict.fromkeys(IDS[2:], 0))
    other = Ballot("other", dict.fromkeys([*IDS, *(f"more-{number}" for number in range(7))], 0))
    with pytest.raises(UserError) as caught:
        hard_vote(IDS, [whole, short, other])
    message = str(caught.value)
    assert "short: found 4 items, expected 6: lacks 2 (made-0, made-1)" in message
    assert "other: found 13 items, expected 6: has 7 (more-0, more-1, more-2, more-3, more-4 and 2 more)" in message
    assert "whole" not in message


def test_order_of_the_verdicts_is_that_of_the_ids() -> None:
    backwards = IDS[::-1]
    assert [verdict.id for verdict in hard_vote(backwards, [Ballot("run", dict.fromkeys(IDS, 1))])] == backwards


def test_ballots_refuse_nonsense() -> None:
    with pytest.raises(AssertionError):
        Ballot("run", {"x": 3})
    with pytest.raises(AssertionError):
        Ballot("run", {"x": 0}, {"y": (-1.0, -1.0, -1.0)})


def test_agreement() -> None:
    ids = ["p", "q", "r", "s"]
    one, two, three = (
        Ballot(run, dict(zip(ids, given, strict=True)))
        for run, given in (("one", (0, 1, 2, 0)), ("two", (0, 1, 2, 1)), ("three", (0, 1, 0, 2)))
    )
    found = agreement(ids, [one, two, three])
    assert found.unanimous == 0.5
    assert found.pairs == {("one", "two"): 0.75, ("one", "three"): 0.5, ("two", "three"): 0.5}
    assert agreement(ids, [one]).unanimous == 1.0


# By probabilities


def likeliest(probabilities: Logprobs, *ballots: Ballot) -> tuple[int, str, tuple[int, ...]]:
    (verdict,) = probability_vote(["x"], ballots, [probabilities])
    assert verdict.probabilities == probabilities
    return verdict.answer, verdict.decided_by, verdict.tied


def test_the_highest_probability_wins_whatever_the_ballots() -> None:
    assert likeliest((0.3, 0.5, 0.2), ballot(0), ballot(0), ballot(1)) == (1, "probability", ())
    (verdict,) = probability_vote(["x"], [ballot(0), ballot(0), ballot(1)], [(0.3, 0.5, 0.2)])
    assert verdict.counts == (2, 1, 0)


def test_equal_probabilities_are_decided_by_ballots_then_the_best_run_then_a_draw() -> None:
    same = 0.1 + 0.2, 0.3  # equal on paper
    assert likeliest((*same, 0.4 - 0.1), ballot(2), ballot(2), ballot(1)) == (2, "ballots", (0, 1, 2))
    assert likeliest((*same, 0.0), ballot(2), ballot(2), ballot(1)) == (1, "ballots", (0, 1))
    assert likeliest((*same, 0.0), ballot(1, None, 0.6), ballot(0, None, 0.7)) == (0, "best run", (0, 1))
    answer, decided_by, tied = likeliest((*same, 0.0), ballot(1), ballot(0))
    assert (decided_by, tied) == ("draw", (0, 1))
    assert likeliest((*same, 0.0), ballot(0), ballot(1))[0] == answer, "the order of the voters never matters"


def test_probabilities_are_of_the_same_items() -> None:
    with pytest.raises(UserError, match="lacks 1"):
        probability_vote(["x", "y"], [ballot(0)], [(1.0, 0.0, 0.0)] * 2)
    with pytest.raises(UserError, match="no runs"):
        probability_vote(["x"], [], [(1.0, 0.0, 0.0)])
    with pytest.raises(ValueError, match="zip"):
        probability_vote(["x"], [ballot(0)], [])


def test_every_rule_says_what_it_does() -> None:
    assert list(RULES) == ["hard", "soft", "weighted", "stack"], "hard is the default"
    assert len(set(RULES.values())) == 4
