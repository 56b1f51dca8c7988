"""By how many orders of the options runs were scored, and which number of orders a vote or a comparison takes."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from src import task
from src.console.cli import UserError
from src.console.words import counted
from src.data import Item
from src.files.paths import record_path, scores_path
from src.runs.record import Record
from src.score.item_scores import read_scores


def scored_orders(run: Path, split: str, record: Record | None = None) -> dict[int, Path]:
    """Number of orders → file of the run's scores on `split` by so many, the largest number first.

    Older versions kept scores of several orders under the name of one order's; their record says so.
    """
    if record is None and record_path(run).is_file():
        record = Record.load(run)
    found: dict[int, Path] = {}
    for count in sorted(_counts(run, split), reverse=True):
        result = record.results(count).get(split) if record else None
        if result is None and record and record.notes_files:
            continue  # written by a command that was interrupted before its record was
        told = result.orders if result and result.orders else count
        found.setdefault(told, scores_path(run, split, count))
    return found


def _counts(run: Path, split: str) -> list[int]:
    """Numbers of orders in the names of the score files."""
    names = [path.name for path in run.glob(f"scores_{split}*.jsonl")]
    found = [re.fullmatch(rf"scores_{split}(?:\.(\d+)orders)?\.jsonl", name) for name in names]
    return [int(one[1] or 1) for one in found if one]


def whole_orders(run: Path, split: str, items: Sequence[Item]) -> dict[int, Path]:
    """`scored_orders`, without the scores of a few items only (a --limit, say) where others answer all of `items`."""
    there = scored_orders(run, split)
    if len(there) < 2 or not items:
        return there
    wanted = {item.id for item in items}
    whole = {orders: file for orders, file in there.items() if {one.id for one in read_scores(file)} == wanted}
    return whole or there


def common_orders(
    runs: Sequence[Path], split: str, asked: int | None, items: Sequence[Item] = ()
) -> tuple[int | None, str]:
    """(number of orders, what to say of it) that all `runs` have scores of on `split`. None where no run has scores.
    items: of the split.

    The number is `asked`; else the largest that all have on dev and test alike; else the smallest that all have.
    UserError when they have none in common: answers by different numbers of orders are not compared.
    """
    found = {run: there for run in runs if (there := whole_orders(run, split, items))}
    if not found:
        return None, ""
    common = set.intersection(*map(set, found.values()))
    wanted = asked or min(common, default=max(max(there) for there in found.values()))
    lacking = [run for run, there in found.items() if wanted not in there]
    if lacking:
        raise UserError(_not_in_common(found, lacking, split, wanted))
    other = "dev" if split == "test" else "test"
    elsewhere = {run.name: scored_orders(run, other) for run in found}
    if asked:
        return asked, _only_here(asked, other, elsewhere)
    more = sorted(count for count in common if count > wanted)
    on_both = [count for count in more if all(count in there for there in elsewhere.values())]
    if on_both:
        return on_both[-1], f"taken are the scores of {on_both[-1]} orders, which all have on dev and test"
    if more:
        told = f"all have scores of {more[-1]} orders on {split}, too, but not on {other}: --orders {more[-1]}"
        return wanted, told
    return wanted, _only_here(wanted, other, elsewhere)


def _only_here(count: int, other: str, elsewhere: Mapping[str, Mapping[int, Path]]) -> str:
    """A note where runs have scores on the `other` split, but not by as many orders; else nothing."""
    unlike = [name for name, there in elsewhere.items() if there and count not in there]
    told = f"these are scores of {counted(count, 'order')}, but on {other} there are none such of {', '.join(unlike)}"
    return told if unlike else ""


def _not_in_common(found: Mapping[Path, Mapping[int, Path]], lacking: Sequence[Path], split: str, wanted: int) -> str:
    there = {run.name: " and ".join(counted(count, "order") for count in sorted(found[run])) for run in found}
    asked = f"--split {split} --orders {wanted}{task.flag()}"
    commands = [f"python -m run.test --model_id {shlex.quote(str(run))} {asked}" for run in lacking]
    return (
        f"{len(lacking)} of {len(found)} runs have no scores of {counted(wanted, 'order')} on {split}, "
        "and answers by different numbers of orders are not mixed. "
        f"Found {'; '.join(f'{name}: {told}' for name, told in there.items())}. Score what is missing:\n  "
        + "\n  ".join(commands)
    )


def lost_scores(runs: Sequence[Path], split: str) -> str:
    """A note on scores by several orders that records speak of and that are not there; else nothing."""
    notes = []
    for run in runs:
        record, there = Record.load(run), _counts(run, split)
        lost = [count for count, results in record.by_orders.items() if split in results and count not in there]
        notes += [f"the scores of {run.name} by {counted(count, 'order')} are gone" for count in lost if count > 1]
    return "; ".join(notes)


def partly_scored(runs: Sequence[Path], split: str, items: Sequence[Item], asked: int | None) -> dict[str, str]:
    """Name of a run → why it is left out: its scores by as many orders as all have (or as `asked`) are of some `items`
    only. No run is left out where all have scores of all items by another number.
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
