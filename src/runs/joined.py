"""The scores of fold runs, joined: those of their folds side by side, and those of test averaged.

What is joined lies in a folder of answers alone, like that of a vote, whose dev split are all labelled items. So it is
compared, votes, and has rules fitted on it, as any run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from src.data import Item, dump_items, predictions, sha256, split_path
from src.files.digests import Digest
from src.files.paths import predictions_path, record_path, scores_path
from src.files.writing import write_texts
from src.runs.facts import JOINED, TaskFacts, VoteResult, digests_json
from src.runs.noted import refuse_other_results
from src.runs.record import Record
from src.runs.versions import made_with
from src.score.item_scores import ItemScores, log_softmax, read_scores, scores_text
from src.worth.metrics import evaluate


def join(folder: Path, data: Path, parts: Mapping[Path, Path], splits: Mapping[str, Sequence[Item]]) -> Record:
    """Joins the scores of finished fold runs in `folder` and returns its record, which is written last. Scores by every
    number of orders that all of them have of the same items are joined.

    data    folder of the splits that are answered: all labelled items as dev, and test if there is one
    parts   folder of each fold run → folder of its splits
    splits  the items in `data`
    """
    records, software = {run: Record.load(run) for run in parts}, made_with()
    record, texts = Record(run=folder.name, task=TaskFacts.current()), dict[Path, str]()
    for split, items in splits.items():
        for orders in _common_orders(records, parts, split):
            for run in parts:
                refuse_other_results(run, records[run], split, orders)
            files = {run: scores_path(run, split, orders) for run in parts}
            found = {run: read_scores(file) for run, file in files.items()}
            scores = (side_by_side if split == "dev" else averaged)(list(found.values()), items)
            own = {
                scores_path(folder, split, orders): scores_text(scores),
                predictions_path(folder, split, orders): dump_items(
                    predictions(items, [one.prediction for one in scores])
                ),
            }
            result = VoteResult(
                items=len(items),
                orders=orders,
                data=str(split_path(data, split)),
                data_sha256=sha256(split_path(data, split)),
                rule=JOINED[split],
                voters=[
                    {
                        "run": run.name,
                        "file": str(file),
                        "sha256": sha256(file),
                        "items": len(found[run]),
                        "dev_accuracy": getattr(records[run].results(orders).get("dev"), "accuracy", None),
                    }
                    for run, file in files.items()
                ],
                files=digests_json({path.name: Digest.of_text(text) for path, text in own.items()}),
                **software,
            )
            record = record.with_result(split, _with_accuracy(result, items, scores), orders)
            texts |= own
    record_path(folder).unlink(missing_ok=True)  # until the end, what lies there is of no record
    write_texts(texts)
    record.save(folder)
    return record


def side_by_side(found: Sequence[Sequence[ItemScores]], items: Sequence[Item]) -> list[ItemScores]:
    """The scores of `items`, each of which exactly one of the runs has scored."""
    by_id = {one.id: one for scores in found for one in scores}
    assert len(by_id) == sum(map(len, found)) and by_id.keys() == {item.id for item in items}, "each item once"
    return [by_id[item.id] for item in items]


def averaged(found: Sequence[Sequence[ItemScores]], items: Sequence[Item]) -> list[ItemScores]:
    """The scores of `items`, all of which every run has scored: as logits, the means of the letters' log-probabilities.
    So an option's probability is the geometric mean of the runs', normalised.
    """
    by_id = [{one.id: one for one in scores} for scores in found]
    means = []
    for item in items:
        rows = [of_run[item.id] for of_run in by_id]
        orders = rows[0].orders
        assert all(set(one.orders) == set(orders) for one in rows), "scored by the same orders"
        logits = []
        for order in orders:
            own = [log_softmax(one.logits[one.orders.index(order)]) for one in rows]
            logits.append(tuple(math.fsum(letter) / len(own) for letter in zip(*own, strict=True)))
        means.append(ItemScores(item.id, orders, tuple(logits)))
    return means


def _common_orders(records: Mapping[Path, Record], parts: Mapping[Path, Path], split: str) -> list[int]:
    """The numbers of orders by which all runs have scored their `split` as it is now."""
    found = []
    for run, record in records.items():
        now = sha256(split_path(parts[run], split))
        results = {orders: by_split.get(split) for orders, by_split in record.by_orders.items()}
        found.append({orders for orders, result in results.items() if result and result.data_sha256 == now})
    return sorted(set.intersection(*found))


def _with_accuracy(result: VoteResult, items: Sequence[Item], scores: Sequence[ItemScores]) -> VoteResult:
    if any(item.label is None for item in items):
        return result
    worth = evaluate(items, [one.prediction for one in scores])
    return replace(result, accuracy=worth.accuracy, correct=worth.correct, interval=worth.interval)
