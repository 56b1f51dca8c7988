"""From what the user names (a run, its folder, a file of predictions or scores) to a ballot over a split's items."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from src.console.cli import UserError
from src.console.words import counted, some
from src.data import Item, load_items, sha256
from src.files.paths import predictions_path, record_path, run_folder, scores_path
from src.prompt.prompts import ORDERS
from src.runs.record import read_record, results_key
from src.score.item_scores import ItemScores, read_scores
from src.vote.voting import Ballot, id_problem


@dataclass(frozen=True)
class Source:
    """A ballot, the file it was read from, that file's digest, and what the user should know about it (or nothing).

    `expert`: backbone and category of a run that was trained on one category alone, else None.
    `orders`: of the options that its scores were averaged over; None where a file does not tell.
    """

    ballot: Ballot
    file: Path
    sha256: str
    note: str
    expert: tuple[str, str] | None = None
    orders: int | None = None


def absence(run: Path, split: str) -> str:
    """Why a run cannot vote on the split, in a few words; empty when it can."""
    if not run.is_dir():
        return "no such run"
    if not record_path(run).is_file():
        return "not finished"
    return "" if scored_orders(run, split) else f"not scored on {split}"


def other_items(run: Path, split: str, items: Sequence[Item]) -> str:
    """Why a run that was scored on `split` cannot vote on `items`, in a few words; empty when it can."""
    wanted = {item.id for item in items}
    scored = [{row.id for row in read_scores(file)} for file in scored_orders(run, split).values()]
    if wanted in scored:
        return ""
    largest = max(scored, key=len)
    return f"scored on {len(largest)} of the {len(wanted)} items only" if largest < wanted else "scored on other items"


def scored_orders(run: Path, split: str, record: dict[str, Any] | None = None) -> dict[int, Path]:
    """How many orders of the options the run has scores of on `split`, and the file of each.

    Runs of before kept those of six in the place of one order's, as their record tells.
    """
    record = record or (read_record(run) if record_path(run).is_file() else {})
    found: dict[int, Path] = {}
    for orders in range(len(ORDERS), 0, -1):
        file = scores_path(run, split, orders)
        told = record.get(results_key(orders), {}).get(split, {}).get("orders", orders)
        if file.is_file():
            found.setdefault(told, file)
    return found


def run_folders(arguments: Sequence[str], results: Path) -> list[Path]:
    """`run_folder` of each argument. UserError for a run that is not there, not finished, or has a damaged record: who
    named it is to hear that first, and not that its data cannot be found.
    """
    folders = [run_folder(argument, results) for argument in arguments]
    for argument, folder in zip(arguments, folders, strict=True):
        if not Path(argument).is_file():
            read_record(folder)
    return folders


def common_orders(
    runs: Sequence[Path], split: str, asked: int | None, items: Sequence[Item] = ()
) -> tuple[int | None, str]:
    """(orders of the options, what to say of them) that all `runs` have scores of on `split`: `asked`, or several where
    they have them on dev and test alike, or one, or else several. None where no run has scores. items: of the split.

    UserError when there is no such number: answers of one order and of six are not held against each other.
    """
    found = {run: there for run in runs if (there := whole_orders(run, split, items))}
    if not found:
        return None, ""
    common = set.intersection(*map(set, found.values()))
    wanted = asked or min(common, default=max(max(there) for there in found.values()))
    lacking = [run for run, there in found.items() if wanted not in there]
    by_wanted = counted(wanted, "order")
    if lacking:
        told = "; ".join(
            f"{run.name}: {' and '.join(counted(count, 'order') for count in sorted(found[run]))}" for run in found
        )
        commands = [f"python -m run.test --model_id {run} --split {split} --orders {wanted}" for run in lacking]
        raise UserError(
            f"{len(lacking)} of {len(found)} runs have no scores of {by_wanted} on {split}, and answers of "
            f"one order and of six are not mixed. Found {told}. Score what is missing:\n  " + "\n  ".join(commands)
        )
    several = max(common)
    by_several = counted(several, "order")
    other = "dev" if split == "test" else "test"
    elsewhere = {run.name: scored_orders(run, other) for run in found}
    if asked or several == wanted:
        unlike = [name for name, there in elsewhere.items() if there and wanted not in there]
        told = f"these are scores of {by_wanted}, but on {other} there are none such of {', '.join(unlike)}"
        return wanted, told if unlike else ""
    if all(several in there for there in elsewhere.values()):
        return several, f"taken are the scores of {by_several}, which all have on dev and test"
    return (
        wanted,
        f"all have scores of {by_several} on {split}, too, but not on {other}: --orders {several}",
    )


def whole_orders(run: Path, split: str, items: Sequence[Item]) -> dict[int, Path]:
    """`scored_orders`, without the scores of a few items only (a --limit, say) where others answer all of `items`."""
    there = scored_orders(run, split)
    if len(there) < 2 or not items:
        return there
    wanted = {item.id for item in items}
    whole = {orders: file for orders, file in there.items() if {row.id for row in read_scores(file)} == wanted}
    return whole or there


def partly_scored(runs: Sequence[Path], split: str, items: Sequence[Item], asked: int | None) -> dict[str, str]:
    """Name of a run → why it is left out: its scores by as many orders as all have (or as `asked`) are of some `items`
    only. Nobody is, where all have scores of all items by another number.
    """
    there = [set(scored_orders(run, split)) for run in runs]
    whole = [set(whole_orders(run, split, items)) for run in runs]
    shared = {asked} if asked else set.intersection(*there)
    if not shared or (not asked and set.intersection(*whole)):
        return {}
    wanted = min(shared)
    reason = f"by {counted(wanted, 'order')} scored on some of the {len(items)} items only"
    lacking = [wanted in some and wanted not in all_items for some, all_items in zip(there, whole, strict=True)]
    return {run.name: reason for run, lacks in zip(runs, lacking, strict=True) if lacks}


def read_sources(
    arguments: Sequence[str], items: Sequence[Item], data: Path, split: str, results: Path, orders: int | None = None
) -> list[Source]:
    """One source per argument, in their order, each with exactly the ids of `items`, which were read from `data`.
    orders: of the options, that runs are read by; by default as `common_orders` has it.

    An argument is a name under `results`, a run's folder or a file. UserError for the first that cannot be read, or for
    all files with other ids at once.
    """
    data_sha256 = sha256(data)
    runs = [run_folder(argument, results) for argument in arguments if not Path(argument).is_file()]
    taken, note = common_orders(runs, split, orders, items)
    sources = [_read(argument, split, results, items, data_sha256, taken) for argument in arguments]
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


def _read(
    argument: str, split: str, results: Path, items: Sequence[Item], data_sha256: str, orders: int | None
) -> Source:
    path = Path(argument)
    if path.is_file():
        if path.suffix == ".jsonl":
            rows = read_scores(path)
            return Source(_of_scores(argument, rows), path, sha256(path), "", orders=len(rows[0].orders))
        return Source(_read_predictions(argument, path, items), path, sha256(path), _label_note(argument, path, items))
    run = run_folder(argument, results)
    name = run.name if run.resolve().parent == results.resolve() else argument
    record = read_record(run)
    recipe = record.get("recipe", {})
    by_orders: list[dict[str, Any]] = [record.get(key, {}) for key in (results_key(orders or 1), results_key())]
    of_split, of_dev = ([*(found[one] for found in by_orders if one in found), {}][0] for one in (split, "dev"))
    category = recipe.get("only_category")
    note = ""
    if of_split.get("data_sha256", data_sha256) != data_sha256:
        note = f"{name} was scored on a {split} file with the same ids but other bytes than the one given here"
    dev_accuracy = of_dev.get("accuracy")
    if file := scored_orders(run, split, record).get(orders or 1):
        ballot = _of_scores(name, read_scores(file), dev_accuracy)
    elif (file := predictions_path(run, split)).is_file():
        ballot = _read_predictions(name, file, items, dev_accuracy)
    else:
        files = [entry.stem for kind in ("scores_*.jsonl", "predictions_*.json") for entry in run.glob(kind)]
        there = sorted({stem.partition("_")[2].partition(".")[0] for stem in files})
        raise UserError(
            f"{run} has answers for {', '.join(there) or 'no split'}, not for {split}. "
            f"Score it: python -m run.test --model_id {run} --split {split}"
        )
    of = orders if ballot.logprobs is not None else of_split.get("orders")
    return Source(ballot, file, sha256(file), note, (recipe["backbone"], category) if category else None, of)


def _label_note(argument: str, path: Path, items: Sequence[Item]) -> str:
    """A file that has every label right is seldom made of predictions."""
    labels = {item.id: item.label for item in items if item.label is not None}
    given = {item.id: item.label for item in load_items(path)}
    if not labels or any(given.get(id) != label for id, label in labels.items()):
        return ""
    return f"{argument} has the label of every item: it looks like the file of the labels, not of predictions"


def _of_scores(name: str, rows: Sequence[ItemScores], dev_accuracy: float | None = None) -> Ballot:
    answers = {row.id: row.prediction for row in rows}
    return Ballot(name, answers, {row.id: row.logprobs for row in rows}, dev_accuracy)


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
