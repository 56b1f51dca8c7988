"""Everything that the page shows of runs and votes on a split, found by the functions that the commands use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.console.cli import UserError, announced
from src.data import Item, sha256
from src.files.paths import TRAINING_CSV, predictions_path, reasoning_path, record_path
from src.files.reading import decoded, parse_json, read_bytes
from src.runs.inputs import load_own
from src.runs.record import Record
from src.runs.run_list import Entry, differing, list_runs, setting_text
from src.score.item_scores import ItemScores, read_scores
from src.train.steps import read_steps
from src.vote.ballots import Source, read_sources, run_folders
from src.vote.comparison import Comparison, compare
from src.vote.orders import scored_orders
from src.vote.voters import Request, damage, gather_voters, refuse_changed_dialogues
from src.vote.voting import Agreement, agreement

if TYPE_CHECKING:
    from src.vote.calibration import Calibration  # loads numpy
    from src.vote.claims import Claim
    from src.vote.contributions import Contributions

LEAST_DIALOGUES = 3
"""Which voters help is tried on other dialogues than those that were chosen on."""
RATES_DRAWN = 150
CHAINS_SHOWN = 3
"""Of an item and run, reasoning of so many chains is kept."""


@dataclass(frozen=True)
class Findings:
    """What the page shows. Mappings go by the name of a run or vote, in the order of `sources`.

    votes       names of those sources that are votes
    records     what each run or vote recorded; none of a file
    settings    the settings in which the runs differ
    compared    None where not every item has a label, as are calibration and who_helps
    alike       how alike the runs are; None of a single one
    claims      the probabilities of the options, where there are some
    scores      by the largest number of orders that the run has of all items; none of votes and predictions
    chains      id → generated reasoning
    rates       (step, learning rate) of the training
    left_out    name → why a run of the folder is not shown; damaged: those of them that cannot be read
    """

    split: str
    items: Sequence[Item]
    data: Path
    sources: Sequence[Source]
    votes: Sequence[str]
    records: Mapping[str, Record]
    settings: Mapping[str, Mapping[str, str]]
    compared: Comparison | None
    calibration: "Calibration | None"
    who_helps: "Contributions | None"
    alike: Agreement | None
    claims: "Mapping[str, Claim]"
    scores: Mapping[str, Mapping[str, ItemScores]]
    chains: Mapping[str, Mapping[str, Sequence[str]]]
    rates: Mapping[str, Sequence[tuple[int, float]]]
    left_out: Mapping[str, str]
    damaged: Mapping[str, str]
    notes: Sequence[str]

    @property
    def names(self) -> list[str]:
        return [source.ballot.run for source in self.sources]

    @property
    def runs(self) -> list[str]:
        """Without votes, which answer nothing themselves."""
        return [name for name in self.names if name not in self.votes]


def find(request: Request) -> Findings:
    """Of the runs, votes and files that `request` names, or of all in its folder. UserError where there are none, or
    where they cannot be read or compared.
    """
    from src.vote.claims import claim_of

    chosen, left_out, damaged = (list(request.runs), {}, {}) if request.runs else _all(request)
    request = replace(request, runs=chosen)
    folders = run_folders(chosen, request.results)
    refuse_changed_dialogues(folders)
    items, data, notes = load_own(request.data, request.split, folders)
    with announced("reading scores"):
        sources = read_sources(chosen, items, data, request.split, request.results, request.orders)
    named = {source.ballot.run: folder for source, folder in zip(sources, folders, strict=True)}
    told = [place for place, name in enumerate(chosen) if not Path(name).is_file()]
    records = {sources[place].ballot.run: Record.load(folders[place]) for place in told}
    votes = [name for name, record in records.items() if record.is_vote]
    runs = [source for source in sources if source.ballot.run not in votes]
    claims = {source.ballot.run: claim for source in sources if (claim := claim_of(source, items))}
    labelled = all(item.label is not None for item in items)
    measured = _measured(request, items, data, sources, runs, bool(claims)) if labelled else (None, None, None)
    alike = agreement([item.id for item in items], [one.ballot for one in runs]) if len(runs) > 1 else None
    kept = {name: named[name] for name in records if name not in votes}
    return Findings(
        split=request.split,
        items=items,
        data=data,
        sources=sources,
        votes=votes,
        records=records,
        settings=_settings(kept),
        compared=measured[0],
        calibration=measured[1],
        who_helps=measured[2],
        alike=alike,
        claims=claims,
        scores=_scores(kept, sources, request.split, items),
        chains={name: _chains(folder, request.split) for name, folder in kept.items()},
        rates={name: _rates(folder) for name, folder in kept.items()},
        left_out=left_out,
        damaged=damaged,
        notes=[*notes, *(source.note for source in sources if source.note)],
    )


def _all(request: Request) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """The runs of the folder that can vote on the split, then its votes on the same items; why others are not shown;
    and of those, the ones that cannot be read.
    """
    entries = list_runs(request.results)
    reasons = {one.name: _damage(request.results / one.name, request.split) for one in entries}
    damaged = {name: why for name, why in reasons.items() if why}
    try:
        with announced("reading scores"):
            voters = gather_voters(replace(request, unread=damaged))
    except UserError as error:
        raise UserError(str(error).replace("Nobody can vote on", "There is nothing to show of", 1)) from error
    digest, left_out = sha256(voters.data), {**damaged, **voters.left_out}
    votes = []
    for entry in entries:
        record = record_path(request.results / entry.name)
        if entry.name in damaged or entry.state != "finished" or not Record.read(record).is_vote:
            continue
        result = Record.read(record).splits.get(request.split)
        if not predictions_path(record.parent, request.split).is_file() or result is None:
            left_out[entry.name] = f"has not voted on {request.split}"
        elif result.data_sha256 != digest:
            left_out[entry.name] = "voted on other items"
        else:
            votes.append(entry.name)
    return [*voters.chosen, *votes], left_out, damaged


def _damage(folder: Path, split: str) -> str:
    """Why what a run or vote has on the split cannot be read; empty when it can."""
    try:
        _chains(folder, split)
        _rates(folder)
    except UserError as error:
        return str(error)
    return damage(folder, split)


def _measured(
    request: Request, items: Sequence[Item], data: Path, sources: Sequence[Source], runs: Sequence[Source], sure: bool
) -> "tuple[Comparison, Calibration | None, Contributions | None]":
    from src.vote.calibration import calibrate
    from src.vote.contributions import contributions

    with announced(f"1 of 3: comparing {len(sources)} answers"):
        compared = compare(items, data, sources, None, split=request.split)
    with announced("2 of 3: probabilities"):
        calibration = calibrate(request, items, data, sources) if sure else None
    enough = len(runs) > 1 and compared.dialogues >= LEAST_DIALOGUES
    with announced(f"3 of 3: which of {len(runs)} runs help a vote"):
        return compared, calibration, contributions("hard", items, runs) if enough else None


def _settings(folders: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Name of a run → the settings in which runs differ, as `run.runs` shows them."""
    beside = {parent: list_runs(parent) for parent in {folder.parent for folder in folders.values()}}
    entries: dict[str, Entry] = {
        name: one for name, folder in folders.items() for one in beside[folder.parent] if one.name == folder.name
    }
    keys = differing(list(entries.values()))
    return {
        name: {key: setting_text(entry.recipe.get(key)) for key in keys if key in entry.recipe}
        for name, entry in entries.items()
    }


def _scores(
    folders: Mapping[str, Path], sources: Sequence[Source], split: str, items: Sequence[Item]
) -> dict[str, dict[str, ItemScores]]:
    """By the largest number of orders that there are scores of all items by."""
    ids = {item.id for item in items}
    found = {}
    for source in sources:
        name = source.ballot.run
        if name in folders:
            files = list(scored_orders(folders[name], split).values())
        else:
            files = [source.file] if source.file.suffix == ".jsonl" else []
        for file in files:
            scores = {one.id: one for one in read_scores(file)}
            if scores.keys() == ids:
                found[name] = scores
                break
    return found


def _rates(folder: Path) -> list[tuple[int, float]]:
    """(step, learning rate), about `RATES_DRAWN` with the highest and the last; none without a sound `training.csv`."""
    rates = [(one.step, one.lr) for one in read_steps(folder / TRAINING_CSV) if one.lr is not None]
    every = max(1, len(rates) // RATES_DRAWN)
    return sorted({*rates[::every], *rates[-1:], *([max(rates, key=lambda one: one[1])] if rates else [])})


def _chains(folder: Path, split: str) -> dict[str, list[str]]:
    """Item → the first chains that were generated for it, under whatever orders. {} without a file; UserError for one
    that is damaged.
    """
    found: dict[str, list[str]] = {}
    path = next(iter(sorted(folder.glob(f"{reasoning_path(folder, split).stem}*.jsonl"))), None)
    if path is None:
        return found
    for number, line in enumerate(decoded(read_bytes(path), str(path)).splitlines(), start=1):
        try:
            one: Any = parse_json(line)
            id, text = one["id"], one["text"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is damaged: line {number}: {error}. Score the run again.") from error
        if isinstance(id, str) and isinstance(text, str) and len(found.setdefault(id, [])) < CHAINS_SHOWN:
            found[id].append(text)
    return found
