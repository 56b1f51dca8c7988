"""The decision of a vote: an answer for each item, and its entries in the vote's files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import task
from src.console.words import counted
from src.data import sha256
from src.runs.facts import VoteResult
from src.runs.record import Record
from src.runs.versions import made_with
from src.vote.ballots import Source
from src.vote.voters import Voters
from src.vote.voting import RULE, RULES, TIED_PROBABILITIES, Agreement, Verdict, agreement, hard_vote, probability_vote
from src.worth.metrics import evaluate

if TYPE_CHECKING:
    from src.vote.fits import Fit  # loads numpy, which a hard vote does without


@dataclass(frozen=True)
class Voter:
    """A voter's entry in the record.

    scores     whether there are log-probabilities beside the answers
    agreement  share of the items that it answers as the vote does
    accuracy   on this split; None without labels
    experts    files of the experts that it is made of, if it is
    """

    run: str
    file: Path
    sha256: str
    scores: bool
    items: int
    dev_accuracy: float | None
    agreement: float
    accuracy: float | None
    experts: Sequence[Path] = ()

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "experts" or value}


@dataclass(frozen=True)
class Decision:
    verdicts: Sequence[Verdict]
    alike: Agreement
    voters: Sequence[Voter]
    result: VoteResult

    @property
    def answers(self) -> list[int]:
        return [verdict.answer for verdict in self.verdicts]


def decide(gathered: Voters, fit: "Fit | None" = None) -> Decision:
    """A hard vote, or that of the rule that was fitted."""
    items, sources = gathered.items, gathered.sources
    ids, ballots = [item.id for item in items], [source.ballot for source in sources]
    verdicts = probability_vote(ids, ballots, fit.probabilities) if fit else hard_vote(ids, ballots)
    alike = agreement(ids, ballots)
    labelled = all(item.label is not None for item in items)
    orders = {source.orders for source in sources if source.orders}
    voters = [_voter(source, verdicts) for source in sources]
    if labelled:
        own = [evaluate(items, [ballot.answers[id] for id in ids]).accuracy for ballot in ballots]
        voters = [replace(voter, accuracy=accuracy) for voter, accuracy in zip(voters, own, strict=True)]
    result = VoteResult(
        items=len(items),
        data=str(gathered.data),
        data_sha256=sha256(gathered.data),
        rule=f"{RULES[fit.entry['rule']]} {TIED_PROBABILITIES}" if fit else RULE,
        fitted=fit.entry if fit else None,
        orders=orders.pop() if len(orders) == 1 else None,
        voters=[voter.as_json() for voter in voters],
        missing=gathered.missing,
        unanimous=alike.unanimous,
        pairs=[{"runs": pair, "agreement": share} for pair, share in alike.pairs.items()],
        decided_by=Counter(verdict.decided_by for verdict in verdicts),
        **made_with(),
    )
    if labelled:
        worth = evaluate(items, [verdict.answer for verdict in verdicts])
        result = replace(result, accuracy=worth.accuracy, correct=worth.correct, interval=worth.interval)
    return Decision(verdicts, alike, voters, result)


def _voter(source: Source, verdicts: Sequence[Verdict]) -> Voter:
    ballot = source.ballot
    same = sum(ballot.answers[verdict.id] == verdict.answer for verdict in verdicts)
    return Voter(
        run=ballot.run,
        file=source.file,
        sha256=source.sha256,
        scores=ballot.logprobs is not None,
        items=len(verdicts),
        dev_accuracy=ballot.dev_accuracy,
        agreement=same / len(verdicts),
        accuracy=None,
        experts=source.experts,
    )


def vote_line(verdict: Verdict, sources: Sequence[Source]) -> dict[str, Any]:
    """The verdict on an item, and each voter's answer, with the options named as in the files."""
    options = task.current().options
    return {
        "id": verdict.id,
        "answer": options[verdict.answer],
        **({} if verdict.probabilities is None else {"probabilities": verdict.probabilities}),
        "counts": verdict.counts,
        "tied": [options[option] for option in verdict.tied],
        "decided_by": verdict.decided_by,
        "runs": {source.ballot.run: options[source.ballot.answers[verdict.id]] for source in sources},
    }


def other_rules(earlier: Record | None, split: str, rule: str) -> list[str]:
    """Notes where votes on other splits in the same folder are by another rule."""
    before = {
        other: (result.fitted or {}).get("rule", "hard")
        for other, result in (earlier.splits if earlier else {}).items()
        if other != split and isinstance(result, VoteResult)
    }
    return [
        f"this vote on {split} is by the rule {rule}, that on {other} in the same folder by {then}; "
        "another --out keeps them apart"
        for other, then in before.items()
        if then != rule
    ]


def unlike_earlier(earlier: Record | None, split: str, sources: Sequence[Source]) -> list[str]:
    """Notes where votes on other splits in the same folder are by another number of orders."""
    orders = {source.orders for source in sources if source.orders}
    if earlier is None or len(orders) != 1:
        return []
    (now,) = orders
    before = {other: result.orders or 1 for other, result in earlier.splits.items() if other != split}
    return [
        f"this vote on {split} is by {counted(now, 'order')} of the options, "
        f"that on {other} in the same folder by {counted(count, 'order')}; --orders makes them alike"
        for other, count in before.items()
        if count != now
    ]
