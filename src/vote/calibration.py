"""How far the probabilities of runs and votes are what they say, as they are and after temperature scaling."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from src.console.cli import UserError
from src.data import Item, refuse_unlabelled, sha256
from src.vote.ballots import Source
from src.vote.claims import Claim, claim_of
from src.vote.fits import fitting_on, keys_of, labels_of, refuse_other_orders
from src.vote.voters import Request
from src.vote.weights import dialogue_folds
from src.worth.calibration import (
    LOG_LOSS_FLOOR,
    TEMPERATURES,
    Floats,
    Ints,
    Measured,
    brier_scores,
    fit_temperature,
    fold_temperatures,
    losses,
    measure,
    softened,
    temperature_notes,
)
from src.worth.resampling import mean_interval

MOST_FOLDS = 100
"""A fold for each dialogue, up to this number. In few folds a temperature would depend on which dialogues are in its
fold, since few of them hold the confident mistakes that a temperature is about.
"""


@dataclass(frozen=True)
class FittedOn:
    """The labelled items that temperatures were fitted on.

    folds   by dialogue, where these are the items judged: each is scaled by what was fitted on the other folds. None
            where they are those of another split
    shared  how many of the items judged are of dialogues of another split that was fitted on
    """

    split: str
    data: Path
    data_sha256: str
    items: int
    dialogues: int
    folds: int | None
    shared: int


@dataclass(frozen=True)
class Change:
    """A score with the temperature minus without, and its 95 % interval by dialogue.

    Where the interval lies below 0 the temperature is a gain. There is no word for the contrary: a temperature that is
    not needed costs a little out of fold, and on few items the interval lies above 0 more often than it should.
    """

    mean: float
    interval: tuple[float, float]

    @property
    def gain(self) -> bool:
        return self.interval[1] < 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"gain": self.gain}


@dataclass(frozen=True)
class Scaled:
    """A run or vote after temperature scaling.

    temperature  fitted on all items that were to be fitted on
    between      the least and the largest of those that its items were scaled by, which out of fold are many
    """

    temperature: float
    between: tuple[float, float]
    measured: Measured
    log_loss_change: Change
    brier_change: Change


@dataclass(frozen=True)
class Judged:
    """shares  the probabilities are shares of a hard vote's ballots, which have neither log-loss nor temperature
    fitted  of a vote: what its record says of the fit of its own weights
    """

    name: str
    shares: bool
    before: Measured
    after: Scaled | None
    fitted: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": self.name,
            "probabilities": "shares of ballots" if self.shares else "of the options",
            "vote_fitted": self.fitted,
            "before": self.before.as_json(),
            "after": None,
        }
        if self.after:
            found["after"] = {
                "temperature": self.after.temperature,
                "temperatures_between": self.after.between,
                "log_loss_change": self.after.log_loss_change.as_json(),
                "brier_change": self.after.brier_change.as_json(),
                **self.after.measured.as_json(),
            }
        return found


@dataclass(frozen=True)
class Calibration:
    """fitted: None where nothing could be. answers_alone: names of answers without probabilities. notes: what the user
    should know.
    """

    items: int
    fitted: FittedOn | None
    judged: Sequence[Judged]
    answers_alone: Sequence[str]
    notes: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        return {
            "fitted": asdict(self.fitted) if self.fitted else None,
            "answers": [one.as_json() for one in self.judged],
            "without_probabilities": list(self.answers_alone),
            "notes": list(self.notes),
        }


def calibrate(
    request: Request, items: Sequence[Item], data: Path, sources: Sequence[Source], fitted_on: str | None = None
) -> Calibration:
    """`items`, each with a label, were read from `data`, and `sources` in the order of the request's runs.

    fitted_on: the split whose labels the temperatures are fitted on. By default they are fitted on the items
    themselves, out of fold by dialogue. The probabilities of a vote whose weights were fitted on the same items are
    used as they are: each item's by weights that know nothing of its dialogue, though those of other items may.

    UserError where nothing has probabilities, or where a run has none on `fitted_on`.
    """
    found = {source.ballot.run: (source, claim) for source in sources if (claim := claim_of(source, items))}
    alone = [source.ballot.run for source in sources if source.ballot.run not in found]
    if not found:
        raise UserError(
            f"--calibration needs probabilities, and there are answers alone of {', '.join(alone)}. Allowed: runs with "
            "scores, files of scores (scores_*.jsonl), and the folders of votes."
        )
    claims = {name: claim for name, (_, claim) in found.items()}
    if fitted_on:
        fitted, temperatures = _on_another_split(fitted_on, request, items, sources, claims)
    elif len(set(keys_of(items))) > 1 and any(claim.logprobs is not None for claim in claims.values()):
        fitted, temperatures = _out_of_fold(request.split, items, data, claims)
    else:
        fitted, temperatures = None, {}
    judged = [_judge(source, claim, items, temperatures.get(source.ballot.run)) for source, claim in found.values()]
    return Calibration(len(items), fitted, judged, alone, _notes(fitted, temperatures, judged, request.split))


@dataclass(frozen=True)
class _Temperatures:
    """overall: fitted on all items. by_fold: empty where that one scales all. by_item: of shape (items, 1)."""

    overall: float
    by_fold: Mapping[int, float]
    by_item: Floats


def _out_of_fold(
    split: str, items: Sequence[Item], data: Path, claims: Mapping[str, Claim]
) -> tuple[FittedOn, dict[str, _Temperatures]]:
    labels, keys = labels_of(items), keys_of(items)
    folds = dialogue_folds(keys, MOST_FOLDS)
    temperatures = {}
    for name, claim in claims.items():
        if claim.logprobs is not None:
            by_fold = fold_temperatures(claim.logprobs, labels, folds)
            by_item = np.array([[by_fold[fold]] for fold in folds.tolist()])
            temperatures[name] = _Temperatures(fit_temperature(claim.logprobs, labels), by_fold, by_item)
    count = len(set(folds.tolist()))
    return FittedOn(split, data, sha256(data), len(items), len(set(keys)), count, 0), temperatures


def _on_another_split(
    split: str, request: Request, items: Sequence[Item], sources: Sequence[Source], claims: Mapping[str, Claim]
) -> tuple[FittedOn, dict[str, _Temperatures]]:
    able = [
        (run, source)
        for run, source in zip(request.runs, sources, strict=True)
        if source.ballot.run in claims and claims[source.ballot.run].logprobs is not None
    ]
    runs, here = [run for run, _ in able], [source for _, source in able]
    if not able:
        raise UserError(f"--fitted_on {split}: found shares of ballots alone, which have no temperature. Leave it out.")
    there = fitting_on(split, replace(request, runs=runs), items, "its temperature")
    refuse_unlabelled(there.items, there.data)
    labels, temperatures = labels_of(there.items), {}
    for one, other in zip(here, there.sources, strict=True):
        claim = claim_of(other, there.items)
        if claim is None or claim.logprobs is None:
            raise UserError(
                f"--fitted_on {split}: {other.file} has no probabilities, as {one.file} has. "
                "Allowed: runs that were scored, and votes by the same rule, on both."
            )
        refuse_other_orders(one, other)
        overall = fit_temperature(claim.logprobs, labels)
        temperatures[one.ballot.run] = _Temperatures(overall, {}, np.full((len(items), 1), overall))
    seen = set(keys_of(there.items))
    shared = sum(key in seen for key in keys_of(items))
    digest = sha256(there.data)
    return FittedOn(split, there.data, digest, len(there.items), len(seen), None, shared), temperatures


def _judge(source: Source, claim: Claim, items: Sequence[Item], temperatures: _Temperatures | None) -> Judged:
    labels = labels_of(items)
    answers: Ints = np.array([source.ballot.answers[item.id] for item in items], dtype=np.intp)
    before = measure(claim.probabilities, answers, labels)
    if claim.logprobs is None:
        # A label that nobody voted for would have an infinite one.
        return Judged(source.ballot.run, True, replace(before, log_loss=None, floored=0), None)
    if temperatures is None:
        return Judged(source.ballot.run, False, before, None, claim.fitted)
    calibrated = np.exp(softened(claim.logprobs, temperatures.by_item))
    keys = keys_of(items)

    def change(of: Callable[[Floats, Ints], Floats]) -> Change:
        apart = of(calibrated, labels) - of(claim.probabilities, labels)
        return Change(float(apart.mean()), mean_interval(apart, keys))

    return Judged(
        source.ballot.run,
        False,
        before,
        Scaled(
            temperatures.overall,
            (float(temperatures.by_item.min()), float(temperatures.by_item.max())),
            measure(calibrated, answers, labels),
            change(losses),
            change(brier_scores),
        ),
        claim.fitted,
    )


def _notes(
    fitted: FittedOn | None, temperatures: Mapping[str, _Temperatures], judged: Sequence[Judged], split: str
) -> list[str]:
    notes = [
        f"{one.name} is a hard vote: shares of its ballots are no probabilities that anyone stated, have no log-loss "
        "(nobody may have voted for the label) and no temperature; run.vote --rule soft makes probabilities"
        for one in judged
        if one.shares
    ]
    if fitted is None and all(one.shares for one in judged):
        return notes
    if fitted is None:
        told = "the items are of a single dialogue, and what is fitted on some dialogues has to be tried on others"
        return [*notes, f"no temperature: {told}. --fitted_on fits one on another split"]
    notes += temperature_notes({name: own.overall for name, own in temperatures.items()}, fitted.split)
    lowest = TEMPERATURES[0] * 1.01
    for name, own in temperatures.items():
        without = sum(one < lowest for one in own.by_fold.values())
        if without and own.overall >= lowest:
            notes.append(
                f"{name} makes so few mistakes that without {without} of the {fitted.folds} folds none is left to fit "
                f"on: there the temperature is {TEMPERATURES[0]}, and what is measured after it is of no use"
            )
    if fitted.folds is None and fitted.shared:
        notes.append(
            f"{fitted.shared} of the {split} items are of dialogues that the temperatures were fitted on: what is "
            "measured after them is flattered"
        )
    if fitted.split == "train":
        notes.append(
            "a run is surer of items that it was trained on: a temperature fitted on train says little of others"
        )
    floored = {one.name: one.before.floored for one in judged if one.before.floored}
    if floored:
        told_of = ", ".join(f"{name} {count}" for name, count in floored.items())
        notes.append(
            f"labels whose probability is below {LOG_LOSS_FLOOR:.1e}, which the log-loss takes for that: {told_of}"
        )
    return notes
