"""Which runs help a vote: each left out, the best few chosen and tried on other items, and how alike the runs are.

Everything is measured on labelled items; what needs their labels (a rule's fit, a choice of runs) is tried on items of
other dialogues than those it was made on.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from src import task
from src.data import Item
from src.vote.ballots import Source
from src.vote.fits import labels_of, logprobs_of
from src.vote.voting import Ballot, probability_vote, verdict
from src.vote.weights import Floats, Ints, dialogue_folds, fit, fit_temperatures
from src.worth.metrics import SIGNIFICANT
from src.worth.paired import Difference, Hits, corrected_ps, difference


@dataclass(frozen=True)
class Contribution:
    """A voter: its own accuracy, that of the vote without it, and what the vote gains by it.

    gain                  the vote of all minus the vote without this run
    corrected_p           the gain's p, corrected after Holm for the number of runs
    corrected_by_dialogue the same of its p by dialogue
    chosen                the number of folds in whose other folds the greedy selection chose it
    """

    run: str
    accuracy: float
    without: float
    gain: Difference
    corrected_p: float
    corrected_by_dialogue: float
    chosen: int

    @property
    def larger_p(self) -> float:
        return max(self.corrected_p, self.corrected_by_dialogue)

    @property
    def verdict(self) -> str:
        """helps, hurts, or "not told apart" where the test cannot tell the two votes apart."""
        if self.larger_p > SIGNIFICANT:
            return "not told apart"
        return "helps" if self.gain.difference > 0 else "hurts"


@dataclass(frozen=True)
class Step:
    """The greedy selection takes `run` in; `accuracy` is that of the vote from here on, on the items selected on."""

    run: str
    accuracy: float


@dataclass(frozen=True)
class Selection:
    """Greedy forward selection: begin with the best run, then always add the one with which the vote is best.

    path      all runs, in the order in which they were added, with all items selected on
    chosen    the runs up to the most accurate vote of the path, the smallest such
    accuracy  nested: of each fold's items by the vote that was selected on the other folds
    gain      that minus the vote of all runs
    """

    path: Sequence[Step]
    chosen: Sequence[str]
    folds: int
    accuracy: float
    gain: Difference


@dataclass(frozen=True)
class Likeness:
    """Of two runs the shares of items with the same answer, and of those that both miss."""

    runs: tuple[str, str]
    agreement: float
    double_fault: float


@dataclass(frozen=True)
class Contributions:
    """accuracy  of the vote of all
    oracle    share of items that at least one run answers rightly
    all_right share of items that every run answers rightly
    """

    rule: str
    items: int
    dialogues: int
    accuracy: float
    oracle: float
    all_right: float
    voters: Sequence[Contribution]
    selection: Selection
    pairs: Sequence[Likeness]

    def as_json(self) -> dict[str, Any]:
        voters = [asdict(one) | {"verdict": one.verdict} for one in self.voters]
        return asdict(self) | {"voters": voters}


class Panel:
    """Voters on labelled items, and which items the vote of some of them answers rightly.

    Under rules other than hard every source has scores. The hard vote is that of `run.vote`: a tie that no scores
    decide goes to the run that is best on all of dev. `chosen` are places of voters, `fit_on` and `among` places of
    items.
    """

    def __init__(self, rule: str, items: Sequence[Item], sources: Sequence[Source]) -> None:
        self.rule, self.ids, self.labels = rule, [item.id for item in items], labels_of(items)
        self.keys = np.array([item.dialogue_key for item in items])
        self.ballots: list[Ballot] = [source.ballot for source in sources]
        answers = np.array([[ballot.answers[id] for id in self.ids] for ballot in self.ballots])
        self.answers, self.hits = answers, answers == self.labels
        self._chosen_by = answers[:, :, None] == np.arange(len(task.current().options))
        self._logprobs = None if rule == "hard" else logprobs_of(sources, items)
        self._temperatures: dict[bytes, Floats] = {}
        self._hard: dict[tuple[int, ...], Hits] = {}

    @property
    def everybody(self) -> tuple[int, ...]:
        return tuple(range(len(self.ballots)))

    def folds(self, among: Ints) -> list[tuple[Ints, Ints]]:
        """(all other folds, fold) of items, by dialogue."""
        fold = dialogue_folds(self.keys[among].tolist())
        return [(among[fold != one], among[fold == one]) for one in np.unique(fold)]

    def vote(self, chosen: Sequence[int], among: Ints) -> Hits:
        """For each of the items whether the vote is right; a rule is fitted out of fold among them."""
        if self.rule == "hard":
            return self._hard_vote(tuple(sorted(chosen)))[among]
        hits = np.zeros(len(self.ids), dtype=bool)
        for others, fold in self.folds(among):
            hits[fold] = self.fitted_vote(chosen, others, fold)
        found: Hits = hits[among]
        return found

    def fitted_vote(self, chosen: Sequence[int], fit_on: Ints, among: Ints) -> Hits:
        """For each of the items `among` whether the vote is right by the rule fitted on others."""
        if self._logprobs is None:
            return self._hard_vote(tuple(sorted(chosen)))[among]
        places = sorted(chosen)
        own = self._logprobs[places]
        temperatures = self._temperatures_on(fit_on)[places]
        fitted = fit(self.rule, own[:, fit_on], self.labels[fit_on], temperatures)
        ids = [self.ids[place] for place in among]
        ballots = [_of_items(self.ballots[place], ids) for place in places]
        verdicts = probability_vote(ids, ballots, fitted.probabilities(own[:, among]).tolist())
        hits: Hits = np.array([verdict.answer for verdict in verdicts]) == self.labels[among]
        return hits

    def _hard_vote(self, chosen: tuple[int, ...]) -> Hits:
        """By `RULE` of all items. Only where ballots tie are they looked at one by one: many votes are asked for."""
        if chosen not in self._hard:
            counts = self._chosen_by[list(chosen)].sum(axis=0)
            answers, most = counts.argmax(axis=1), counts.max(axis=1, keepdims=True)
            ballots = [self.ballots[place] for place in chosen]
            for item in np.flatnonzero((counts == most).sum(axis=1) > 1):
                answers[item] = verdict(self.ids[item], ballots).answer
            self._hard[chosen] = answers == self.labels
        return self._hard[chosen]

    def _temperatures_on(self, fit_on: Ints) -> Floats:
        assert self._logprobs is not None
        key = fit_on.tobytes()
        if key not in self._temperatures:
            self._temperatures[key] = fit_temperatures(self._logprobs[:, fit_on], self.labels[fit_on])
        return self._temperatures[key]


def contributions(rule: str, items: Sequence[Item], sources: Sequence[Source]) -> Contributions:
    """`items`, each with a label, are of three dialogues or more; there are two `sources` or more."""
    panel = Panel(rule, items, sources)
    everything = np.arange(len(items))
    whole = panel.vote(panel.everybody, everything)
    selection, times_chosen = _selection(panel, everything, whole)
    without, gains = [], []
    for place in panel.everybody:
        others = [other for other in panel.everybody if other != place]
        without.append(panel.vote(others, everything))
        gains.append(difference(whole, without[-1], panel.keys))
    corrected = corrected_ps(gains)
    voters = [
        Contribution(
            run=panel.ballots[place].run,
            accuracy=float(panel.hits[place].mean()),
            without=float(without[place].mean()),
            gain=gains[place],
            corrected_p=corrected[place][0],
            corrected_by_dialogue=corrected[place][1],
            chosen=times_chosen[place],
        )
        for place in panel.everybody
    ]
    return Contributions(
        rule=rule,
        items=len(items),
        dialogues=len(set(panel.keys.tolist())),
        accuracy=float(whole.mean()),
        oracle=float(panel.hits.any(axis=0).mean()),
        all_right=float(panel.hits.all(axis=0).mean()),
        voters=voters,
        selection=selection,
        pairs=_likenesses(panel),
    )


def greedy(panel: Panel, among: Ints) -> tuple[list[tuple[int, float]], list[int]]:
    """((place of a voter, accuracy of the vote from it on) in the order of choice, the voters chosen), by the items
    `among` alone. Equal votes are told apart by the accuracy of the run that is added, then by its name.
    """
    path: list[tuple[int, float]] = []
    while len(path) < len(panel.ballots):
        taken = [place for place, _ in path]
        votes = {
            place: float(panel.vote([*taken, place], among).mean()) for place in panel.everybody if place not in taken
        }
        alone = {place: panel.hits[place][among].mean() for place in votes}
        best = min(votes, key=lambda place: (-votes[place], -alone[place], panel.ballots[place].run))
        path.append((best, votes[best]))
    most = max(accuracy for _, accuracy in path)
    size = next(number for number, (_, accuracy) in enumerate(path, start=1) if accuracy == most)
    return path, [place for place, _ in path[:size]]


def _selection(panel: Panel, everything: Ints, whole: Hits) -> tuple[Selection, list[int]]:
    """The greedy selection, and for each voter in how many folds it was chosen."""
    nested = np.zeros(len(everything), dtype=bool)
    times_chosen = [0] * len(panel.ballots)
    folds = panel.folds(everything)
    for others, fold in folds:
        _, chosen = greedy(panel, others)
        nested[fold] = panel.fitted_vote(chosen, others, fold)
        for place in chosen:
            times_chosen[place] += 1
    path, chosen = greedy(panel, everything)
    names = [ballot.run for ballot in panel.ballots]
    return Selection(
        path=[Step(names[place], accuracy) for place, accuracy in path],
        chosen=[names[place] for place in chosen],
        folds=len(folds),
        accuracy=float(nested.mean()),
        gain=difference(nested, whole, panel.keys),
    ), times_chosen


def _likenesses(panel: Panel) -> list[Likeness]:
    return [
        Likeness(
            runs=(panel.ballots[one].run, panel.ballots[other].run),
            agreement=float((panel.answers[one] == panel.answers[other]).mean()),
            double_fault=float((~panel.hits[one] & ~panel.hits[other]).mean()),
        )
        for one, other in combinations(panel.everybody, 2)
    ]


def _of_items(ballot: Ballot, ids: Sequence[str]) -> Ballot:
    return Ballot(ballot.run, {id: ballot.answers[id] for id in ids}, dev_accuracy=ballot.dev_accuracy)
