"""Fits a rule of the vote on the labels of dev, and gives the voters' joint probabilities on the items voted on."""

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from src.console.cli import UserError
from src.console.words import counted, some
from src.data import Item, refuse_unlabelled, sha256
from src.files.paths import run_folder
from src.runs.inputs import load_own
from src.vote.ballots import Source, join_experts, read_sources
from src.vote.orders import common_orders
from src.vote.voters import Request, Voters
from src.vote.weights import dialogue_folds, fit, out_of_fold
from src.worth.calibration import Floats, Ints, log_loss, temperature_notes

FITTED_ON = "dev"
"""The only split whose labels a rule sees. They chose the runs' checkpoints already; those of test are never seen."""


@dataclass(frozen=True)
class Fit:
    """probabilities  a row for each item voted on, a column for each option
    entry          what the record says of the fit
    notes          what the user should know
    """

    probabilities: Sequence[Sequence[float]]
    entry: Mapping[str, Any]
    notes: Sequence[str]


@dataclass(frozen=True)
class Fitting:
    """Labelled items that something is fitted on, and the same voters' ballots on them."""

    items: Sequence[Item]
    data: Path
    sources: Sequence[Source]


def fit_voters(rule: str, request: Request, voters: Voters) -> Fit:
    """Fitted on all of dev; where dev itself is voted on, each item by what was fitted on the other folds' dialogues.

    UserError where a voter has no probabilities, where dev has no labels or a single dialogue, and where the voters
    have no scores of as many orders on dev.
    """
    refuse_answers_alone(rule, voters.sources)
    if request.split == FITTED_ON:
        dev = Fitting(voters.items, voters.data, voters.sources)
    else:
        dev = _dev(rule, request, voters)
    refuse_unlabelled(dev.items, dev.data)
    # In an order that is the voters' own, so that sums are rounded alike however they were given.
    places = sorted(range(len(dev.sources)), key=lambda place: dev.sources[place].sha256)
    dev = Fitting(dev.items, dev.data, [dev.sources[place] for place in places])
    names = [voters.sources[place].ballot.run for place in places]
    logprobs, labels, keys = logprobs_of(dev.sources, dev.items), labels_of(dev.items), keys_of(dev.items)
    if request.split == FITTED_ON:
        refuse_few_dialogues(dev.items, dev.data)
    fitted = fit(rule, logprobs, labels)
    temperatures = dict(zip(names, fitted.temperatures.tolist(), strict=True))
    notes = [*temperature_notes(temperatures, FITTED_ON), *_flattered(dev, voters, request.split)]
    entry: dict[str, Any] = {
        "rule": rule,
        "split": FITTED_ON,
        "data": str(dev.data),
        "data_sha256": sha256(dev.data),
        "items": len(dev.items),
        "dialogues": len(set(keys)),
        "scores": {name: source.sha256 for name, source in zip(names, dev.sources, strict=True)},
        "temperatures": temperatures,
        "weights": dict(zip(names, fitted.weights.tolist(), strict=True)),
        "folds": None,
        "scikit-learn": importlib.metadata.version("scikit-learn"),
    }
    if request.split != FITTED_ON:
        found = fitted.probabilities(logprobs_of([voters.sources[place] for place in places], voters.items))
        return Fit(found.tolist(), entry, notes)
    folds = dialogue_folds(keys)
    found = out_of_fold(rule, logprobs, labels, folds)
    entry |= {"folds": len(set(folds.tolist())), "log_loss": log_loss(found, labels)}
    return Fit(found.tolist(), entry, notes)


def how_fitted(entry: Mapping[str, Any]) -> str:
    """What was fitted on what, in a sentence."""
    on = f"the {counted(entry['items'], 'item')} of {entry['data']}, {counted(entry['dialogues'], 'dialogue')}"
    if not entry["folds"]:
        return f"fitted on {on}"
    return (
        f"fitted on {on}, in {entry['folds']} folds by dialogue: each item is answered by what was fitted on the other "
        f"folds, and the accuracy is that of items not fitted on. Log-loss {entry['log_loss']:.3f}. "
        "Temperatures and weights below are those of all folds together, which a vote on test takes"
    )


def refuse_answers_alone(rule: str, sources: Sequence[Source]) -> None:
    if alone := [source for source in sources if source.ballot.logprobs is None]:
        raise UserError(
            f"--rule {rule} needs probabilities, and of {len(alone)} of {counted(len(sources), 'voter')} there are "
            f"answers alone: {', '.join(str(source.file) for source in alone)}. "
            "Allowed: runs with scores, and files of scores (scores_*.jsonl). A vote and a file of predictions can "
            "vote under --rule hard only; name the runs of a vote in its place."
        )


def refuse_few_dialogues(items: Sequence[Item], data: Path, least: int = 2) -> None:
    """Folds by dialogue need two, folds within all but one of them three."""
    if (found := len(set(keys_of(items)))) < least:
        raise UserError(
            f"{data}: the {counted(len(items), 'item')} are of {counted(found, 'dialogue')}, and what is fitted or "
            f"chosen on some has to be tried on others. Allowed: a labelled split of {least} dialogues or more."
        )


def logprobs_of(sources: Sequence[Source], items: Sequence[Item]) -> Floats:
    """(voters, items, options); every source has scores."""
    ballots = [source.ballot.logprobs for source in sources]
    return np.array([[own[item.id] for item in items] for own in ballots if own is not None])


def labels_of(items: Sequence[Item]) -> Ints:
    return np.array([item.label for item in items], dtype=np.intp)


def keys_of(items: Sequence[Item]) -> list[str]:
    return [item.dialogue_key for item in items]


def _dev(rule: str, request: Request, voters: Voters) -> Fitting:
    """The same voters on dev, by as many orders, in the same order."""
    found = fitting_on(FITTED_ON, replace(request, runs=voters.chosen), voters.items, "its weight")
    sources = join_experts(found.sources, found.items)
    refuse_answers_alone(rule, sources)
    for here, there in zip(voters.sources, sources, strict=True):
        refuse_other_orders(here, there)
    return Fitting(found.items, found.data, sources)


def fitting_on(split: str, request: Request, items: Sequence[Item], what: str) -> Fitting:
    """The answers of the runs and files of `request` on another split than its own, by as many orders, in their order.
    Experts are not joined. items: of the request's split. what: is fitted, for the refusal of a file.
    """
    runs = [run_folder(one, request.results) for one in request.runs if not Path(one).is_file()]
    orders, _ = common_orders(runs, request.split, request.orders, items)
    given = None if request.data is None or request.data.suffix == ".json" else request.data
    there, data, _ = load_own(given, split, runs)
    chosen = [_beside(one, request.split, split, what) if Path(one).is_file() else one for one in request.runs]
    return Fitting(there, data, read_sources(chosen, there, data, split, request.results, orders))


def refuse_other_orders(here: Source, there: Source) -> None:
    if here.orders != there.orders:
        raise UserError(
            f"{here.file} has scores of {here.orders} and {there.file} of {there.orders} orders of the options; "
            "what was fitted on the one does not hold for the other. Allowed: the same number."
        )


def _beside(file: str, split: str, fitted_on: str, what: str) -> str:
    """The file of answers on `fitted_on` that lies beside one on `split`."""
    path = Path(file)
    beside = path.with_name(re.sub(rf"(?<![^\W_]){split}(?![^\W_])", fitted_on, path.name))
    if beside == path or not beside.is_file():
        wanted = f"no {beside.name} beside it" if beside != path else f"a name without {split} in it"
        raise UserError(
            f"{file}: {what} is fitted on its scores on {fitted_on}, and found was {wanted}. Allowed: a file "
            f"called scores_{split}.jsonl with scores_{fitted_on}.jsonl beside it, or the folder of a run."
        )
    return str(beside)


def _flattered(dev: Fitting, voters: Voters, split: str) -> list[str]:
    """A note where an accuracy is told of items whose dialogues the rule was fitted on."""
    if split == FITTED_ON or any(item.label is None for item in voters.items):
        return []
    seen = set(keys_of(dev.items))
    shared = [item.id for item in voters.items if item.dialogue_key in seen]
    told = f"{counted(len(shared), 'item')} of {split} are of dialogues that the rule was fitted on"
    return [f"{told}, so the accuracy is flattered: {some(shared)}"] if shared else []
