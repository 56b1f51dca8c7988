"""From what the user names (a run, its folder, a file of predictions or scores) to a ballot over a split's items."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.cli import UserError
from src.data import Item, load_items, sha256
from src.records import predictions_path, read_record, read_scores, record_path, scores_path
from src.voting import IDS_SHOWN, Ballot, id_problem


@dataclass(frozen=True)
class Source:
    """A ballot, the file it was read from, that file's digest, and what the user should know about it (or nothing).

    `expert`: backbone and category of a run that was trained on one category alone, else None.
    """

    ballot: Ballot
    file: Path
    sha256: str
    note: str
    expert: tuple[str, str] | None = None


def absence(run: Path, split: str) -> str:
    """Why a run cannot vote on the split, in a few words; empty when it can."""
    if not run.is_dir():
        return "no such run"
    if not record_path(run).is_file():
        return "not finished"
    return "" if scores_path(run, split).is_file() else f"not scored on {split}"


def started_runs(results: Path) -> list[str]:
    """Names of the run folders, sorted; other folders there (a vote's, say) have no resolved recipe."""
    return sorted(recipe.parent.name for recipe in results.glob("*/recipe.yaml"))


def read_sources(
    arguments: Sequence[str], items: Sequence[Item], data: Path, split: str, results: Path
) -> list[Source]:
    """One source per argument, in their order, each with exactly the ids of `items`, which were read from `data`.

    An argument is a name under `results`, a run's folder or a file. UserError for the first that cannot be read, or for
    all files with other ids at once.
    """
    data_sha256 = sha256(data)
    sources = [_read(argument, split, results, items, data_sha256) for argument in arguments]
    files = [source.file.resolve() for source in sources]
    twice = [source.file for place, source in enumerate(sources) if files[place] in files[:place]]
    if twice:
        raise UserError(f"{twice[0]} was given more than once; each run counts once.")
    ids = [item.id for item in items]
    problems = [line for source in sources if (line := id_problem(str(source.file), source.ballot.answers, ids))]
    if problems:
        raise UserError(
            f"Every file must answer exactly the items of {data}.\n  " + "\n  ".join(problems) + "\n"
            "Was it made for another split (--split) or from another data file (--data)?"
        )
    return sources


def join_experts(sources: Sequence[Source], items: Sequence[Item]) -> list[Source]:
    """`sources`, the experts of a backbone made one voter: each item has the answer of its category's expert.

    UserError when a backbone has no expert, or several, for a category of `items`.
    """
    joined: dict[str, Source] = {}
    backbones = dict.fromkeys(source.expert[0] for source in sources if source.expert)
    for backbone in backbones:
        experts: dict[str, Source] = {}
        for source in sources:
            if source.expert and source.expert[0] == backbone:
                category = source.expert[1]
                if category in experts:
                    raise UserError(
                        f"{experts[category].ballot.run} and {source.ballot.run} are both {backbone}'s expert for "
                        f"{category}; one of them may vote."
                    )
                experts[category] = source
        missing = [category for category in dict.fromkeys(item.category for item in items) if category not in experts]
        if missing:
            names = ", ".join(source.ballot.run for source in experts.values())
            raise UserError(
                f"{names}: trained on one category each, and {backbone} has no expert for {', '.join(missing)}. Train "
                "one with --only_category, or leave the others out of the vote."
            )
        ballots = {item.id: experts[item.category].ballot for item in items}
        logprobs = {id: ballot.logprobs[id] for id, ballot in ballots.items() if ballot.logprobs is not None}
        answers = {id: ballot.answers[id] for id, ballot in ballots.items()}
        name = f"experts-{backbone}"
        told = ", ".join(f"{category} by {source.ballot.run}" for category, source in experts.items())
        first = next(iter(experts.values()))
        joined[backbone] = Source(
            Ballot(name, answers, logprobs if len(logprobs) == len(answers) else None),
            first.file,
            hashlib.sha256("".join(source.sha256 for source in experts.values()).encode()).hexdigest(),
            "; ".join([f"{name}: {told}", *(source.note for source in experts.values() if source.note)]),
        )
    return [source for source in sources if not source.expert] + list(joined.values())


def _read(argument: str, split: str, results: Path, items: Sequence[Item], data_sha256: str) -> Source:
    path = Path(argument)
    if path.is_file():
        ballot = _read_scores(argument, path) if path.suffix == ".jsonl" else _read_predictions(argument, path, items)
        return Source(ballot, path, sha256(path), "")
    if path.suffix in (".json", ".jsonl"):
        raise UserError(f"{path}: no such file. Allowed: a run's name or folder, or a file of predictions or scores.")

    # A run's name may also be that of some folder here ("orpo"): the run is meant.
    named = results / argument
    run = next((folder for folder in (named, path) if folder.is_dir()), named if path.name == argument else path)
    name = run.name if run.resolve().parent == results.resolve() else argument
    record = read_record(run)
    splits, recipe = record.get("splits", {}), record.get("recipe", {})
    category = recipe.get("only_category")
    note = ""
    if splits.get(split, {}).get("data_sha256", data_sha256) != data_sha256:
        note = f"{name} was scored on a {split} file with the same ids but other bytes than the one given here"
    dev_accuracy = splits.get("dev", {}).get("accuracy")
    if (file := scores_path(run, split)).is_file():
        ballot = _read_scores(name, file, dev_accuracy)
    elif (file := predictions_path(run, split)).is_file():
        ballot = _read_predictions(name, file, items, dev_accuracy)
    else:
        files = [entry.stem for kind in ("scores_*.jsonl", "predictions_*.json") for entry in run.glob(kind)]
        there = sorted({stem.partition("_")[2] for stem in files})
        raise UserError(
            f"{run} has answers for {', '.join(there) or 'no split'}, not for {split}. "
            f"Score it: python -m run.test --model_id {run} --split {split}"
        )
    return Source(ballot, file, sha256(file), note, (recipe["backbone"], category) if category else None)


def _read_scores(name: str, path: Path, dev_accuracy: float | None = None) -> Ballot:
    rows = read_scores(path)
    answers = {row.id: row.prediction for row in rows}
    return Ballot(name, answers, {row.id: row.logprobs for row in rows}, dev_accuracy)


def _read_predictions(name: str, path: Path, items: Sequence[Item], dev_accuracy: float | None = None) -> Ballot:
    found = load_items(path)
    answers = {item.id: item.label for item in found if item.label is not None}
    empty = [item.id for item in found if item.label is None]
    if empty:
        raise UserError(
            f"{path}: {len(empty)} of {len(found)} items have no answer (output is empty): {_first(empty)}. "
            "Allowed: predictions, with output filled in every item."
        )
    # Options in another order would make every answer mean another sentence.
    options = {item.id: item.options for item in items}
    other = [item.id for item in found if item.id in options and item.options != options[item.id]]
    if other:
        raise UserError(
            f"{path}: {len(other)} items have other options, or in another order, than the data file: {_first(other)}."
        )
    return Ballot(name, answers, dev_accuracy=dev_accuracy)


def _first(ids: Sequence[str]) -> str:
    return ", ".join(ids[:IDS_SHOWN]) + (" …" if len(ids) > IDS_SHOWN else "")
