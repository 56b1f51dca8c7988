"""From what the user names (a run, its folder, a file of predictions or scores) to a ballot on a split's items."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from src.console.cli import UserError
from src.console.words import some
from src.data import Item, load_items, sha256
from src.files.paths import predictions_path, run_folder
from src.model.recipes import Recipe
from src.runs.facts import Result
from src.runs.noted import refuse_other_results, remedy
from src.runs.record import Record
from src.score.item_scores import ItemScores, read_scores
from src.vote.orders import common_orders, lost_scores, scored_orders
from src.vote.voting import Ballot, id_problem


@dataclass(frozen=True)
class Source:
    """A ballot, the file it was read from, that file's digest, and what the user should know about it (or nothing).

    expert  backbone and category of a run that was trained on one category alone, else None
    orders  number of orders of the options that its scores are averaged over; None where a file does not tell
    experts files of the experts that it was joined from
    """

    ballot: Ballot
    file: Path
    sha256: str
    note: str
    expert: tuple[str, str] | None = None
    orders: int | None = None
    experts: Sequence[Path] = ()


def run_folders(arguments: Sequence[str], results: Path) -> list[Path]:
    """`run_folder` of each argument. UserError for a run that is missing, unfinished, or has a damaged record. This is
    checked before the run's data.
    """
    folders = [run_folder(argument, results) for argument in arguments]
    for argument, folder in zip(arguments, folders, strict=True):
        if not Path(argument).is_file():
            Record.load(folder)
    return folders


def read_sources(
    arguments: Sequence[str], items: Sequence[Item], data: Path, split: str, results: Path, orders: int | None = None
) -> list[Source]:
    """One source for each argument, in their order, each with exactly the ids of `items`, which were read from `data`.
    orders: the number of orders that runs are read by; by default what `common_orders` says.

    An argument is a name under `results`, a run's folder or a file. UserError for the first that cannot be read, or for
    all files with other ids at once.
    """
    data_sha256 = sha256(data)
    runs = [run_folder(argument, results) for argument in arguments if not Path(argument).is_file()]
    taken, note = common_orders(runs, split, orders, items)
    note = "; ".join(filter(None, (note, lost_scores(runs, split))))
    sources = [
        _read_file(argument, items)
        if Path(argument).is_file()
        else _read_run(argument, split, results, items, data_sha256, taken)
        for argument in arguments
    ]
    if note:
        sources[0] = replace(sources[0], note="; ".join(filter(None, (sources[0].note, note))))
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
    """`sources`, with the experts of a backbone joined into one voter: each item has the answer of its category's
    expert.

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
                        f"{experts[category].ballot.run} and {source.ballot.run} are both "
                        f"{backbone}'s expert for {category}; one of them may vote."
                    )
                experts[category] = source
        missing = [category for category in dict.fromkeys(item.category for item in items) if category not in experts]
        if missing:
            names = ", ".join(source.ballot.run for source in experts.values())
            raise UserError(
                f"{names}: trained on one category each, and {backbone} has no expert for {', '.join(missing)}. "
                "Train one with --only_category, or leave the others out of the vote."
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
            experts=[source.file for source in experts.values()],
        )
    return [source for source in sources if not source.expert] + list(joined.values())


def _read_file(argument: str, items: Sequence[Item]) -> Source:
    path = Path(argument)
    if path.suffix == ".jsonl":
        scores = read_scores(path)
        return Source(_of_scores(argument, scores), path, sha256(path), "", orders=len(scores[0].orders))
    return Source(_read_predictions(argument, path, items), path, sha256(path), _label_note(argument, path, items))


def _read_run(
    argument: str, split: str, results: Path, items: Sequence[Item], data_sha256: str, orders: int | None
) -> Source:
    run = run_folder(argument, results)
    name = run.name if run.resolve().parent == results.resolve() else argument
    record = Record.load(run)
    result, dev = (_by_orders(record, one, orders or 1) for one in (split, "dev"))
    note = ""
    if (result.data_sha256 or data_sha256) != data_sha256:
        note = f"{name} was scored on a {split} file with the same ids but other bytes than the one given here"
    refuse_other_results(run, record, split, orders if orders and split in record.results(orders) else 1)
    if file := scored_orders(run, split, record).get(orders or 1):
        ballot = _of_scores(name, read_scores(file), dev.accuracy)
    elif (file := predictions_path(run, split)).is_file():
        ballot = _read_predictions(name, file, items, dev.accuracy)
    else:
        files = [entry.stem for kind in ("scores_*.jsonl", "predictions_*.json") for entry in run.glob(kind)]
        there = sorted({stem.partition("_")[2].partition(".")[0] for stem in files})
        raise UserError(
            f"{run} has answers for {', '.join(there) or 'no split'}, not for {split}. "
            f"{'Let its runs vote' if record.is_vote else 'Score it'}: {remedy(run, record, split)}"
        )
    expert = None if record.is_vote else _expert(record.recipe)
    return Source(ballot, file, sha256(file), note, expert, result.orders if ballot.logprobs is None else orders)


def _by_orders(record: Record, split: str, orders: int) -> Result:
    """The result on `split` by so many orders of the options; an empty one where there is none. Older versions kept
    that of several orders in the place of one order's.
    """
    for result in (record.results(orders).get(split), record.splits.get(split)):
        if result and (result.orders or orders) == orders:
            return result
    return Result()


def _expert(recipe: Recipe) -> tuple[str, str] | None:
    return (recipe.backbone, recipe.only_category) if recipe.only_category else None


def _label_note(argument: str, path: Path, items: Sequence[Item]) -> str:
    """A note when a file has every label right: such a file is seldom one of predictions."""
    labels = {item.id: item.label for item in items if item.label is not None}
    given = {item.id: item.label for item in load_items(path)}
    if not labels or any(given.get(id) != label for id, label in labels.items()):
        return ""
    return f"{argument} has the label of every item: it looks like the file of the labels, not of predictions"


def _of_scores(name: str, scores: Sequence[ItemScores], dev_accuracy: float | None = None) -> Ballot:
    answers = {one.id: one.prediction for one in scores}
    return Ballot(name, answers, {one.id: one.logprobs for one in scores}, dev_accuracy)


def _read_predictions(name: str, path: Path, items: Sequence[Item], dev_accuracy: float | None = None) -> Ballot:
    found = load_items(path)
    answers = {item.id: item.label for item in found if item.label is not None}
    empty = [item.id for item in found if item.label is None]
    if empty:
        raise UserError(
            f"{path}: {len(empty)} of {len(found)} items have no answer (output is empty): {some(empty)}. "
            "Allowed: predictions, with output filled in every item."
        )
    # Options in another order would make every answer mean another sentence.
    options = {item.id: item.options for item in items}
    other = [item.id for item in found if item.id in options and item.options != options[item.id]]
    if other:
        raise UserError(
            f"{path}: {len(other)} items have other options, or in another order, than the data file: {some(other)}."
        )
    return Ballot(name, answers, dev_accuracy=dev_accuracy)
