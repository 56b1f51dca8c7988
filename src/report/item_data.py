"""The items and every run's answers to them, as the page's script reads them: small, and each number once."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from src import task
from src.data import Item
from src.report.findings import Findings
from src.runs.samples import letter_probabilities
from src.score.item_scores import ItemScores

PARTS = 1000
"""Probabilities are whole numbers of these parts."""


def item_data(found: Findings, text: bool) -> dict[str, Any]:
    """What the browser of items shows. text: whether utterances, options and reasoning are in it.

    answers     for each run or vote the options' indices
    shares      for each the options' probabilities, in thousandths, or null
    margins     for each the margins (nats), or null
    byOrder     for each, where it has scores of several orders, the letters' probabilities under each order
    flips       for each, how many orders choose another option than all orders together do, or null
    missed      how many runs, votes left out, miss the item; null as in `missed`
    """
    the_task = task.current()
    names = found.names
    scores = [found.scores.get(name) for name in names]
    dialogues = list({item.dialogue_key: item for item in found.items}.values())
    places = {item.dialogue_key: place for place, item in enumerate(dialogues)}
    return {
        "split": found.split,
        "text": text,
        "labelled": found.compared is not None,
        "runs": names,
        "votes": [name in found.votes for name in names],
        "categories": list(the_task.categories),
        "letters": list(the_task.letters),
        "dialogues": [[[turn.speaker, turn.text] for turn in item.dialogue] for item in dialogues] if text else [],
        "items": [_item(item, places[item.dialogue_key], text) for item in found.items],
        "answers": [[source.ballot.answers[item.id] for item in found.items] for source in found.sources],
        "shares": [_parts(found, name) for name in names],
        "margins": [own and [round(own[item.id].margin, 2) for item in found.items] for own in scores],
        "orders": [list(own[found.items[0].id].orders) if own else [] for own in scores],
        "byOrder": [
            [_letters(own[item.id]) for item in found.items] if own and len(own[found.items[0].id].orders) > 1 else None
            for own in scores
        ],
        "flips": [own and [flips(own[item.id]) for item in found.items] for own in scores],
        "missed": missed(found),
        "reasoning": [_reasoning(found, name) if text else {} for name in names],
    }


def flips(scores: ItemScores) -> int:
    """How many orders of the options by themselves choose another option than all of them together."""
    chosen = [order[logits.index(max(logits))] for order, logits in zip(scores.orders, scores.logits, strict=True)]
    return sum(int(option) != scores.prediction for option in chosen)


def missed(found: Findings) -> list[int] | None:
    """For each item how many runs miss it; None without labels, and of votes alone."""
    if found.compared is None or not found.runs:
        return None
    lists = [found.compared.results[name].missed for name in found.runs]
    wrong = [set(ids) for ids in lists]
    return [sum(item.id in ids for ids in wrong) for item in found.items]


def _item(item: Item, dialogue: int, text: bool) -> dict[str, Any]:
    targets = [place for place, turn in enumerate(item.dialogue) if turn.id and turn.id in item.targets]
    categories = task.current().categories
    return {
        "id": item.id,
        "category": categories.index(item.category),
        "label": item.label,
        "dialogue": dialogue,
        "turns": len(item.dialogue),
        "targets": targets if text else len(targets),
        "options": list(item.options) if text else [],
    }


def _parts(found: Findings, name: str) -> list[list[int]] | None:
    claim = found.claims.get(name)
    if claim is None:
        return None
    rows: list[list[int]] = np.rint(claim.probabilities * PARTS).astype(int).tolist()
    return rows


def _letters(scores: ItemScores) -> list[list[int]]:
    return [[round(PARTS * share) for share in by.values()] for by in letter_probabilities(scores).values()]


def _reasoning(found: Findings, name: str) -> dict[int, Sequence[str]]:
    chains = found.chains.get(name, {})
    return {place: chains[item.id] for place, item in enumerate(found.items) if item.id in chains}
