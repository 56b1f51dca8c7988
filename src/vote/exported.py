"""A run's or a vote's answers to a split as samples, one for each item."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src import task
from src.console.cli import UserError
from src.console.words import counted
from src.data import Item, load_items
from src.runs.noted import refuse_other_results
from src.runs.record import Record
from src.runs.samples import sample
from src.score.item_scores import ItemScores, read_scores
from src.vote.ballots import read_sources
from src.vote.orders import scored_orders


def samples_of(
    folder: Path, record: Record, split: str, items: Sequence[Item], data: Path, orders: int | None
) -> list[dict[str, Any]]:
    """In the order of `items`, which were read from `data`. UserError when the run was scored on other items.

    orders: the number of orders of the options, by default the smallest that the run has scores of.
    """
    scored = scored_orders(folder, split, record)
    if orders and not scored:
        raise UserError(f"{folder} has answers alone and no scores, so leave out --orders.")
    if orders and orders not in scored:
        raise UserError(
            f"{folder} has no scores of {counted(orders, 'order')} on {split}. "
            f"Score it: python -m run.test --model_id {shlex.quote(str(folder))} "
            f"--split {split} --orders {orders}{task.flag()}"
        )
    prompt = record.prompt.sha256 or None
    if not scored:
        (source,) = read_sources([str(folder)], items, data, split, folder.parent)
        answers = source.ballot.answers
        return [sample(record.run, split, item, None, answers[item.id], prompt) for item in items]
    file = scored[orders or min(scored)]
    refuse_other_results(folder, record, split, orders or min(scored))
    scores = {one.id: one for one in read_scores(file)}
    kept = _scored_items(folder, split, items, data, file, scores)
    return [sample(record.run, split, item, scores[item.id], scores[item.id].prediction, prompt) for item in kept]


def _scored_items(
    folder: Path, split: str, items: Sequence[Item], data: Path, file: Path, scores: dict[str, ItemScores]
) -> list[Item]:
    """The items that `file` has scores of: all, or some where the run was scored with --limit."""
    kept = [item for item in items if item.id in scores]
    if len(kept) < len(scores):
        unknown = next(iter(scores.keys() - {item.id for item in items}))
        raise UserError(
            f"{file}: {len(scores) - len(kept)} of {len(scores)} items are not in {data}, {unknown} for one. "
            "Give the data that the run was scored on with --data."
        )
    predicted = file.with_name(file.name.replace("scores_", "predictions_").replace(".jsonl", ".json"))
    if predicted.is_file():  # it has the options that the run saw
        seen = {item.id: item.options for item in load_items(predicted)}
        if other := [item.id for item in kept if seen.get(item.id, item.options) != item.options]:
            raise UserError(
                f"{folder}: {len(other)} items of {split} have other options, or in another order, than {data}, "
                f"{other[0]} first. Give the data that the run was scored on with --data."
            )
    return kept
