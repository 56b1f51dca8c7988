"""What the dialogue is worth to a run: its answers to the same items with changed dialogues, held against its own."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import task
from src.console.cli import UserError
from src.console.words import counted, p_text
from src.data import Item, sha256
from src.files.paths import record_path
from src.items.changes import CHANGES
from src.runs.changed import changed_folder, differs
from src.runs.record import Record
from src.vote.ballots import Source, read_sources
from src.worth.metrics import SIGNIFICANT, Evaluation, evaluate

if TYPE_CHECKING:
    from rich.console import Console

    from src.worth.paired import Pair  # loads numpy

MISSED = {"blanked": "dialogue", "shuffled": "order of the utterances", "swapped": "right dialogue"}
"""Change → what it takes away."""


@dataclass(frozen=True)
class Changed:
    """name    of the answers with changed dialogues; `run` of those with the true ones
    how     one of `CHANGES`
    result  what they are worth
    pair    the test of the two; p is corrected for all changes of the run
    """

    name: str
    run: str
    how: str
    result: Evaluation
    pair: "Pair"

    def as_json(self) -> dict[str, Any]:
        test = asdict(self.pair) | {"better": self.pair.better}
        return {"name": self.name, "run": self.run, "dialogue": self.how, "test": test} | self.result.as_json()


def find_changed(
    sources: Sequence[Source], items: Sequence[Item], data: Path, split: str
) -> tuple[list[Changed], list[str]]:
    """The runs on changed dialogues that lie beside runs among `sources`, which answer `items` of `data`, and notes on
    those that cannot be held against them. Runs that are among `sources` themselves are left out.
    """
    from src.worth.paired import compare_pairs

    found: list[Changed] = []
    notes: list[str] = []
    given = {source.file.resolve().parent for source in sources}
    for source in sources:
        answers = {source.ballot.run: source.ballot.answers}
        changes = {}
        for how in CHANGES:
            beside = changed_folder(source.file.parent, how)
            if beside.resolve() in given or not all(record_path(one).is_file() for one in (beside, source.file.parent)):
                continue
            try:
                other = _read(beside, how, source, items, data, split)
            except UserError as error:
                notes.append(f"{beside.name} is left out: {error}")
            else:
                name = f"{source.ballot.run}-{how}"
                answers[name], changes[name] = other.ballot.answers, how
        right = {name: [item.label == own[item.id] for item in items] for name, own in answers.items()}
        tested = compare_pairs(right, [item.dialogue_key for item in items], against=source.ballot.run)
        pairs = {two: pair for pair in tested for two in (pair.one, pair.other)}
        for name, how in changes.items():
            result = evaluate(items, [answers[name][item.id] for item in items])
            found.append(Changed(name, source.ballot.run, how, result, pairs[name]))
    return found, notes


def _read(beside: Path, how: str, source: Source, items: Sequence[Item], data: Path, split: str) -> Source:
    """UserError where its answers are of another model, file, number of orders or change."""
    record, own = Record.load(beside), Record.load(source.file.parent)
    run, orders = shlex.quote(str(source.file.parent)), source.orders or 1
    again = f"Score it: python -m run.test --model_id {run} --split {split} --dialogue {how}"
    again += f" --orders {orders}" if orders > 1 else ""
    scored, digest = own.results(orders).get(split), sha256(data)
    if scored is None or scored.data_sha256 != digest:  # without --data run.test takes the items that the run names
        again += f" --data {shlex.quote(str(data))}"
    again += task.flag()
    if record.dialogue != how:
        raise UserError(f"its record does not say that its dialogues are {how}.")
    if differs(record, own):
        raise UserError(f"it was scored with another model or prompt. Delete {beside}. {again}")
    result = record.results(orders).get(split)
    if result is None or result.data_sha256 != digest:
        raise UserError(f"it has no scores of {counted(orders, 'order')} on {data}. {again}")
    return read_sources([str(beside)], items, data, split, beside.parent, source.orders)[0]


def show_changed(console: "Console", found: Sequence[Changed], notes: Sequence[str] = ()) -> None:
    """A line for each change of each run, the verdict last."""
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)
    if not found:
        return
    console.print(
        "What is the dialogue worth? The same items with the dialogue blanked, its utterances shuffled, or another one "
        "in its place. p: the larger one of McNemar's exact test and of the test by dialogue, corrected after Holm for "
        "the changes of a run",
        soft_wrap=True,
    )
    for one in found:
        sign = 1 if one.pair.one == one.name else -1
        gained, lost = (one.pair.only_one, one.pair.only_other)[::sign]
        points = 100 * sign * one.pair.difference + 0.0  # which turns -0.0 into 0.0
        p = max(one.pair.corrected_p, one.pair.corrected_by_dialogue)
        verdict = {
            one.run: f"{one.run} needs the {MISSED[one.how]}",
            one.name: f"{one.run} does better without the {MISSED[one.how]}",
            None: f"nothing shows that {one.run} needs the {MISSED[one.how]}",
        }[one.pair.better]
        console.print(
            f"  {one.name}: {one.result.accuracy:.2%}, {points:+.1f} points, {gained} items right only so, {lost} only "
            f"with the true dialogue, corrected p {p_text(p)}: {verdict}",
            soft_wrap=True,
        )
    console.print(f"Needs: corrected p up to {SIGNIFICANT}.", soft_wrap=True)
