"""Many answers per item → one, by ballots or by probabilities. Ties are decided by a stated rule, never by the order of
the runs.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from src import task
from src.console.cli import UserError

RULE = (
    "Each run casts one ballot per item, and the option with most ballots wins. "
    "Among tied options wins the one with the larger sum of log-probabilities over all runs that have scores. "
    "If that does not decide, the run with the best dev accuracy among those that chose a tied option "
    "(runs of equal accuracy vote among themselves, then the next best are asked). "
    "If nothing decides, a draw by the SHA-256 of the item's id. The order in which runs are given never matters."
)

RULES = {
    "hard": RULE,
    "soft": (
        "The option with the highest mean of the runs' calibrated probabilities wins: each run's log-probabilities are "
        "divided by its temperature, which makes the labels of dev likeliest."
    ),
    "weighted": (
        "The option with the highest weighted mean of the runs' calibrated probabilities wins. Temperatures are as in "
        "the soft vote; the weights are at least 0, sum to 1, and make the labels of dev likeliest."
    ),
    "stack": (
        "The option with the highest weighted sum of the runs' calibrated log-probabilities wins. The weights are a "
        "multinomial logistic regression's (L2 penalty, C = 1), which sees each item of dev in many orders of its "
        "options, so that an option's position never counts."
    ),
}
"""Name of a rule → what it says. All but the first are fitted on labels."""
TIED_PROBABILITIES = (
    "Among options of equal probability wins the one with most ballots, then the choice of the run with the best dev "
    "accuracy, then a draw by the SHA-256 of the item's id. The order in which runs are given never matters."
)

# Sums that are equal on paper differ in the last digits by the way each logarithm was rounded.
SAME_LOGPROB = 1e-9
SAME_PROBABILITY = 1e-9

IDS_SHOWN = 5

Decision = Literal["majority", "log-probability", "probability", "ballots", "best run", "draw"]


@dataclass(frozen=True)
class Ballot:
    """The answers of one run: item id → index of an option, and with scores item id → log-probability of each (nats).

    `dev_accuracy` is a share, 0..1, None when unknown.
    """

    run: str
    answers: Mapping[str, int]
    logprobs: Mapping[str, tuple[float, ...]] | None = None
    dev_accuracy: float | None = None

    def __post_init__(self) -> None:
        options = range(len(task.current().options))
        assert all(answer in options for answer in self.answers.values()), self.run
        assert self.logprobs is None or self.logprobs.keys() == self.answers.keys(), self.run


@dataclass(frozen=True)
class Verdict:
    """The vote on one item. `counts`: ballots per option. `tied`: options that share the highest count, if several; in
    a vote by `probabilities`, which are one for each option, those that share the highest of them.
    """

    id: str
    answer: int
    counts: tuple[int, ...]
    tied: tuple[int, ...]
    decided_by: Decision
    probabilities: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Agreement:
    """`unanimous`: share of the items that all runs answer alike. `pairs`: the same for every two runs."""

    unanimous: float
    pairs: Mapping[tuple[str, str], float]


def hard_vote(ids: Sequence[str], ballots: Sequence[Ballot]) -> list[Verdict]:
    """One verdict per id by `RULE`, in the order of `ids`.

    UserError without ballots, or when a ballot's ids are not exactly `ids`.
    """
    _refuse_other_ids(ids, ballots)
    return [verdict(item_id, ballots) for item_id in ids]


def probability_vote(
    ids: Sequence[str], ballots: Sequence[Ballot], probabilities: Sequence[Sequence[float]]
) -> list[Verdict]:
    """One verdict per id: the option of the highest probability, ties by `TIED_PROBABILITIES`. `probabilities` has a
    row for each id, with the voters' joint probability of each option. UserError as in `hard_vote`.
    """
    _refuse_other_ids(ids, ballots)
    return [_likeliest(item_id, ballots, tuple(row)) for item_id, row in zip(ids, probabilities, strict=True)]


def _refuse_other_ids(ids: Sequence[str], ballots: Sequence[Ballot]) -> None:
    if not ballots:
        raise UserError("There is nothing to vote on: found no runs and no predictions; allowed: one or more.")
    problems = [problem for ballot in ballots if (problem := id_problem(ballot.run, ballot.answers, ids))]
    if problems:
        raise UserError("The vote needs the same items from every run.\n  " + "\n  ".join(problems))


def id_problem(name: str, found: Iterable[str], expected: Sequence[str]) -> str:
    """One line: which expected ids `name` lacks and which it has beyond them; empty when the two sets are equal."""
    given, wanted = dict.fromkeys(found), dict.fromkeys(expected)
    missing = [item_id for item_id in wanted if item_id not in given]
    extra = [item_id for item_id in given if item_id not in wanted]
    parts = []
    if missing:
        parts.append(f"lacks {_some(missing)}")
    if extra:
        parts.append(f"has {_some(extra)} that should not be there")
    return f"{name}: found {len(given)} items, expected {len(wanted)}: {' and '.join(parts)}" if parts else ""


def agreement(ids: Sequence[str], ballots: Sequence[Ballot]) -> Agreement:
    """How alike the runs are. `ids` and `ballots` as accepted by `hard_vote`, neither empty; run names differ."""
    assert ids and ballots
    unanimous = sum(len({ballot.answers[item_id] for ballot in ballots}) == 1 for item_id in ids)
    pairs = {
        (one.run, other.run): sum(one.answers[item_id] == other.answers[item_id] for item_id in ids) / len(ids)
        for one, other in combinations(ballots, 2)
    }
    return Agreement(unanimous / len(ids), pairs)


def _counts(item_id: str, ballots: Sequence[Ballot]) -> tuple[int, ...]:
    votes = Counter(ballot.answers[item_id] for ballot in ballots)
    return tuple(votes[option] for option in range(len(task.current().options)))


def _likeliest(item_id: str, ballots: Sequence[Ballot], probabilities: tuple[float, ...]) -> Verdict:
    counts = _counts(item_id, ballots)
    highest = max(probabilities)
    leading = tuple(option for option, one in enumerate(probabilities) if one >= highest - SAME_PROBABILITY)
    if len(leading) == 1:
        return Verdict(item_id, leading[0], counts, (), "probability", probabilities)
    most = max(counts[option] for option in leading)
    left = tuple(option for option in leading if counts[option] == most)
    if len(left) == 1:
        return Verdict(item_id, left[0], counts, leading, "ballots", probabilities)
    answer, decided_by = _by_run_or_draw(item_id, left, ballots)
    return Verdict(item_id, answer, counts, leading, decided_by, probabilities)


def verdict(item_id: str, ballots: Sequence[Ballot]) -> Verdict:
    """Of ballots that all have the item, by `RULE`."""
    counts = _counts(item_id, ballots)
    leading = tuple(option for option, count in enumerate(counts) if count == max(counts))
    if len(leading) == 1:
        return Verdict(item_id, leading[0], counts, (), "majority")

    left = _by_logprob(item_id, leading, ballots)
    if len(left) == 1:
        return Verdict(item_id, left[0], counts, leading, "log-probability")
    answer, decided_by = _by_run_or_draw(item_id, left, ballots)
    return Verdict(item_id, answer, counts, leading, decided_by)


def _by_run_or_draw(item_id: str, tied: tuple[int, ...], ballots: Sequence[Ballot]) -> tuple[int, Decision]:
    left = _by_best_run(item_id, tied, ballots)
    if len(left) == 1:
        return left[0], "best run"
    # The digest knows neither runs nor files; over many items it prefers no option.
    drawn = int.from_bytes(hashlib.sha256(item_id.encode()).digest()) % len(left)
    return left[drawn], "draw"


def _by_logprob(item_id: str, tied: tuple[int, ...], ballots: Sequence[Ballot]) -> tuple[int, ...]:
    """The tied options with the highest sum; all of them when no run has scores."""
    scored = [ballot.logprobs[item_id] for ballot in ballots if ballot.logprobs is not None]
    # fsum rounds once, so the order of the runs cannot change a digit.
    sums = {option: math.fsum(logprobs[option] for logprobs in scored) for option in tied}
    best = max(sums.values())
    return tuple(option for option in tied if sums[option] >= best - SAME_LOGPROB)


def _by_best_run(item_id: str, tied: tuple[int, ...], ballots: Sequence[Ballot]) -> tuple[int, ...]:
    """The tied options left after asking the runs in falling order of dev accuracy; a run without one is not asked."""
    known = {ballot.dev_accuracy for ballot in ballots if ballot.dev_accuracy is not None}
    for accuracy in sorted(known, reverse=True):
        votes = Counter(ballot.answers[item_id] for ballot in ballots if ballot.dev_accuracy == accuracy)
        most = max(votes[option] for option in tied)
        tied = tuple(option for option in tied if votes[option] == most)
        if len(tied) == 1:
            break
    return tied


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - IDS_SHOWN} more" if len(ids) > IDS_SHOWN else ""
    return f"{len(ids)} ({', '.join(ids[:IDS_SHOWN])}{more})"
