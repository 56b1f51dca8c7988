"""Run folders for tests of what comes after training: invented data, invented scores, the real file formats."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src import task
from src.data import Item, dump_items, load_items, predictions, sha256, split_path
from src.files.paths import predictions_path, record_path, scores_path
from src.files.writing import write_json, write_text
from src.runs.record import results_key
from src.score.item_scores import ItemScores, write_scores
from tests.conftest import make_item


def make_place(folder: Path) -> Path:
    """`data/` of 8 train, 6 dev and 4 unlabelled test items in `folder`, and a short prompt; gives the folder."""
    from tests import toys

    for split, count in (("train", 8), ("dev", 6), ("test", 4)):
        make_split(folder / "data", split, count, labelled=split != "test")
    (folder / "short.yaml").write_text(toys.SHORT, encoding="utf-8")
    return folder


def make_split(folder: Path, split: str, count: int, labelled: bool = True) -> list[Item]:
    """Writes `data_<split>.json` of `count` items; the labels go 0, 1, 2, 0, …"""
    changes = {} if labelled else {"output": ""}
    write_text(split_path(folder, split), dump_items([make_item(number, **changes) for number in range(count)]))
    return load_items(split_path(folder, split))


def make_predictions(path: Path, items: Sequence[Item], answers: Sequence[int]) -> Path:
    write_text(path, dump_items(predictions(items, answers)))
    return path


def make_run(
    run: Path,
    data: Path,
    split: str,
    answers: Sequence[int],
    *,
    margin: float = 1.0,
    dev_accuracy: float | None = None,
    finished: bool = True,
    scored: bool = True,
) -> Path:
    """A run folder with these answers to `data_<split>.json`, each ahead of the others by `margin` in the logits."""
    items = load_items(split_path(data, split))
    write_text(run / "recipe.yaml", "backbone: invented\n")
    make_predictions(predictions_path(run, split), items, answers)
    if scored:
        rows = [
            ItemScores(item.id, ("012",), ((margin * (answer == 0), margin * (answer == 1), margin * (answer == 2)),))
            for item, answer in zip(items, answers, strict=True)
        ]
        write_scores(scores_path(run, split), rows)
    if finished:
        splits: dict[str, dict[str, object]] = {"dev": {"accuracy": dev_accuracy}}
        splits.setdefault(split, {})["data_sha256"] = sha256(split_path(data, split))
        write_json(record_path(run), {"run": run.name, "recipe": {}, "splits": splits})
    return run


def stored(run: str | Path) -> dict[str, Any]:
    """What the record of `run` holds beside its own digest, to be changed and written again."""
    found = json.loads(record_path(run).read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    found.pop("sha256", None)
    return found


def add_orders(
    run: Path, data: Path, split: str, answers: Sequence[int], accuracy: float | None = None, count: int = 6
) -> None:
    """Scores by `count` orders of the options, beside those of one that the finished `run` has."""
    path = split_path(data, split)
    items = load_items(path)
    rows, orders = [], task.current().orders(count)
    for item, answer in zip(items, answers, strict=True):
        logits = [tuple(float(int(option) == answer) for option in order) for order in orders]
        rows.append(ItemScores(item.id, orders, tuple((a, b, c) for a, b, c in logits)))
    write_scores(scores_path(run, split, count), rows)
    make_predictions(predictions_path(run, split, count), items, answers)
    record = stored(run)
    result = {"orders": count, "items": len(items), "data_sha256": sha256(path), "accuracy": accuracy}
    record.setdefault(results_key(count), {})[split] = result
    write_json(record_path(run), record)


def name_data(run: Path, **files: Path | str) -> None:
    """Has the record of `run` say that its splits are these files."""
    record = stored(run)
    record["data"] = {
        split: {"path": str(path), "sha256": sha256(path) if Path(path).is_file() else "0"}
        for split, path in files.items()
    }
    write_json(record_path(run), record)


def make_scored_run(run: Path, data: Path, split: str, logits: Sequence[Sequence[float]]) -> Path:
    """A finished run whose scores by one order of the options are these logits, a row for each item of
    `data_<split>.json`. Called again for another split, it adds that.
    """
    items = load_items(split_path(data, split))
    rows = [
        ItemScores(item.id, (task.current().file_order,), (tuple(map(float, row)),))
        for item, row in zip(items, logits, strict=True)
    ]
    write_text(run / "recipe.yaml", "backbone: invented\n")
    write_scores(scores_path(run, split), rows)
    make_predictions(predictions_path(run, split), items, [row.prediction for row in rows])
    record = stored(run) if record_path(run).is_file() else {"run": run.name, "recipe": {}, "splits": {}}
    record["task"] = {"name": task.current().name, "sha256": task.current().sha256}
    record["splits"][split] = {"items": len(items), "data_sha256": sha256(split_path(data, split))}
    write_json(record_path(run), record)
    return run
