"""Finds the voters on a split and their items, and why other runs do not vote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.console.cli import UserError
from src.console.words import counted
from src.data import Item
from src.files.paths import FOLDS, record_path, run_names
from src.runs.inputs import load_own
from src.runs.noted import refuse_other_results
from src.runs.record import OtherTask, Record
from src.score.item_scores import read_scores
from src.vote.ballots import Source, join_experts, read_sources, run_folders
from src.vote.orders import partly_scored, scored_orders


@dataclass(frozen=True)
class Request:
    """A request for a vote: which runs, on which items.

    runs      runs and files that the user named; without any, those of `expected`, or all runs in `results`, that can
    expected  names of runs that should vote
    data      file or folder of the items, None for those that the runs' records name
    orders    number of orders of the options, None for what all have
    unread    name → why a run in `results` is left out without being looked at
    """

    runs: Sequence[str]
    expected: Sequence[str]
    split: str
    results: Path
    data: Path | None = None
    orders: int | None = None
    unread: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Voters:
    """The voters and their items.

    sources   a ballot for each voter, on `items`
    chosen    the runs and files that they were read from, as the user would name them
    data      file of the items
    left_out  name → why a run that may vote without being named does not
    missing   name → why an expected run does not vote
    notes     what the user should know
    """

    sources: Sequence[Source]
    chosen: Sequence[str]
    items: Sequence[Item]
    data: Path
    left_out: Mapping[str, str]
    missing: Mapping[str, str]
    notes: Sequence[str]


def gather_voters(request: Request) -> Voters:
    """UserError when no run can vote, or when a ballot does not answer exactly the items."""
    reasons = {
        name: request.unread.get(name) or why_cannot_vote(request.results / name, request.split)
        for name in _meant(request)
    }
    if not request.expected:
        # Each of them stands for a recipe's run and would count it once more.
        of_folds = [name for name, reason in reasons.items() if not reason and _of_folds(request.results / name)]
        reasons |= dict.fromkeys(of_folds, "a fold run: votes when it is named")
    names = request.runs or [name for name, reason in reasons.items() if not reason]
    if not names:
        raise UserError(_nobody(request, reasons))
    folders = run_folders(names, request.results)
    refuse_changed_dialogues(folders)
    items, data, notes = load_own(request.data, request.split, folders)
    chosen, left_out = (list(request.runs), {}) if request.runs else _able(request, reasons, items)
    sources = join_experts(read_sources(chosen, items, data, request.split, request.results, request.orders), items)
    voters = [source.ballot.run for source in sources]
    missing = {
        name: reasons[name] or left_out.get(name) or "not named" for name in request.expected if name not in voters
    }
    notes = [*notes, *(source.note for source in sources if source.note), *notes_on_voters(sources)]
    return Voters(sources, chosen, items, data, left_out, missing, notes)


def refuse_changed_dialogues(folders: Sequence[Path]) -> None:
    """UserError for runs whose answers are no answers to the items: their dialogues were changed."""
    changes = {path: _changed_dialogue(path) for path in folders}
    if found := [f"{path.name} (dialogue {how})" for path, how in changes.items() if how]:
        raise UserError(
            f"{', '.join(found)}: scored with changed dialogues, to see what the dialogue is worth to a run; "
            "they do not vote. Leave them out; python -m run.evaluate shows them beside the run itself."
        )


def _changed_dialogue(folder: Path) -> str | None:
    try:
        return Record.read(record_path(folder)).dialogue
    except (OSError, ValueError):  # a file may lie anywhere, and reading a run reports what is wrong
        return None


def _of_folds(run: Path) -> bool:
    train = Record.load(run).data.get("train")
    return train is not None and train.path is not None and (Path(train.path).parent.parent / FOLDS).is_file()


def why_cannot_vote(run: Path, split: str) -> str:
    """In a few words; empty when the run can vote on the split."""
    if not run.is_dir():
        return "no such run"
    if not record_path(run).is_file():
        return "not finished"
    try:
        record = Record.load(run)
    except OtherTask:
        return "of another task"
    return "" if scored_orders(run, split, record) else f"not scored on {split}"


def damage(run: Path, split: str) -> str:
    """Why what a run of this task has on the split cannot be read; empty when it can, and where there is nothing."""
    if not record_path(run).is_file():
        return ""
    try:
        record = Record.load(run)
        for orders, file in scored_orders(run, split, record).items():
            refuse_other_results(run, record, split, orders)
            read_scores(file)
    except OtherTask:
        return ""
    except UserError as error:
        return str(error)
    return ""


def other_items(run: Path, split: str, items: Sequence[Item]) -> str:
    """Why a run that was scored on `split` cannot vote on `items`, in a few words; empty when it can."""
    wanted = {item.id for item in items}
    scored = [{one.id for one in read_scores(file)} for file in scored_orders(run, split).values()]
    if wanted in scored:
        return ""
    largest = max(scored, key=len)
    return f"scored on {len(largest)} of the {len(wanted)} items only" if largest < wanted else "scored on other items"


def notes_on_voters(sources: Sequence[Source]) -> list[str]:
    """Notes where there is only one voter, or where answers by different numbers of orders vote together."""
    notes = []
    if len(sources) == 1:
        notes.append(f"a single voter: these are the answers of {sources[0].ballot.run}, and no vote of several")
    by_orders: dict[int, list[str]] = {}
    for source in sources:
        if source.orders:
            by_orders.setdefault(source.orders, []).append(source.ballot.run)
    if len(by_orders) > 1:
        told = ", ".join(f"{counted(count, 'order')} of {', '.join(runs)}" for count, runs in by_orders.items())
        notes.append(f"scores by different numbers of orders vote together: {told}")
    return notes


def _meant(request: Request) -> Sequence[str]:
    """Names of the runs that may vote without being named."""
    return request.expected or ([] if request.runs else run_names(request.results))


def _able(request: Request, reasons: Mapping[str, str], items: Sequence[Item]) -> tuple[list[str], dict[str, str]]:
    """Names of the runs that can vote, and why others cannot; `reasons` has those already known."""
    reasons = {
        name: reason or other_items(request.results / name, request.split, items) for name, reason in reasons.items()
    }
    left_out = {name: reason for name, reason in reasons.items() if reason}
    if able := [request.results / name for name in reasons if name not in left_out]:
        left_out |= partly_scored(able, request.split, items, request.orders)
    if len(left_out) == len(reasons):
        raise UserError(_nobody(request, left_out))
    return [name for name in reasons if name not in left_out], left_out


def _nobody(request: Request, reasons: Mapping[str, str]) -> str:
    found = ", ".join(f"{name} ({reason})" for name, reason in reasons.items()) or "no runs"
    return (
        f"Nobody can vote on {request.split}. Found in {request.results}: {found}. "
        f"Allowed: finished runs with scores_{request.split}.jsonl (python -m run.train, then run.test), "
        "or predictions files named here."
    )


def earlier_votes(out: Path) -> Record | None:
    """The record of the vote in the folder, which may be on other splits. UserError for the folder of a run."""
    if (out / "recipe.yaml").exists():
        raise UserError(
            f"--out {out} is the folder of a trained run; allowed: a new folder or that of an earlier vote."
        )
    return Record.load(out) if record_path(out).is_file() else None
