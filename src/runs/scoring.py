"""Scoring a finished run: its model is loaded, a split's scores and predictions are written, and the record gains a
result.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from src import data, task
from src.console import progress
from src.console.words import counted
from src.data import DATA, Item
from src.files.digests import Digest
from src.files.paths import predictions_path, reasoning_path, scores_path
from src.files.writing import as_jsonl, write_texts
from src.model import load, ranks
from src.model.recipes import Recipe
from src.prompt.encode import Encoder, Example
from src.runs.encoder import encoder_of, letters_of, refuse_changed
from src.runs.facts import Result, digests_json
from src.runs.inputs import Split
from src.runs.noted import base_noted, refuse_other_weights
from src.runs.record import Record
from src.score.item_scores import ItemScores, scores_text
from src.score.letters import LetterScorer, Scored, announce
from src.score.reasoning import Chain, Sampling, reason, summary
from src.score.shared import score_shared
from src.worth.metrics import evaluate, wilson


@dataclass(frozen=True)
class Prompts:
    """The items of a split in some orders, encoded."""

    items: Sequence[Item]
    orders: Sequence[str]
    examples: Sequence[Example]


@dataclass(frozen=True)
class OpenRun:
    """A run whose model is loaded. prompts: those that have been encoded already."""

    folder: Path
    record: Record
    encoder: Encoder
    scorer: LetterScorer
    prompts: Sequence[Prompts] = ()

    def examples(self, items: Sequence[Item], orders: Sequence[str]) -> Sequence[Example]:
        known = (one.examples for one in self.prompts if one.items is items and one.orders == orders)
        return next(known, None) or self.encoder.for_scoring(items, orders)


def open_run(
    folder: Path,
    record: Record,
    splits: Sequence[Sequence[Item]],
    device: torch.device,
    orders: Sequence[str] | None = None,
    data_folder: Path = DATA,
) -> OpenRun:
    """The run in `folder`. Its model is loaded only after a check that its files are those that its record speaks of,
    and that the items of `splits` can be scored. orders: as in `score_run`.
    """
    refuse_other_weights(folder, record)
    encoder = encoder_of(folder, record, data_folder)
    prompts = encode(encoder, splits, orders)
    refuse_changed(folder, record, encoder)
    print_notes(encoder, splits)
    announce([one.examples for one in prompts], device)
    weights, recipe = record.weights_in(folder), record.pinned_recipe
    network = load.load_run(weights, recipe, device, trained=record.has_weights)
    if record.training is None and not record.base_files:  # the base model may have been downloaded just now
        record = dataclasses.replace(record, base_files=digests_json(base_noted(recipe)))
    return OpenRun(folder, record, encoder, scorer_for(network, encoder, recipe), prompts)


def encode(encoder: Encoder, splits: Sequence[Sequence[Item]], orders: Sequence[str] | None = None) -> list[Prompts]:
    """The prompts of `splits`. UserError when an item does not fit. orders: as in `score_run`."""
    orders = orders or task.current().orders(1)
    return [Prompts(items, orders, encoder.for_scoring(items, orders)) for items in splits]


def scorer_for(network: Any, encoder: Encoder, recipe: Recipe) -> LetterScorer:
    return LetterScorer(network, encoder.letter_ids or (), encoder.pad_id, recipe.share_prefixes)


def print_notes(encoder: Encoder, splits: Sequence[Sequence[Item]]) -> None:
    for line in encoder.notes([item for items in splits for item in items]):
        print(f"{encoder.name}: {line}")


def score_run(
    run: OpenRun,
    split: Split,
    orders: Sequence[str] | None = None,
    sampling: Sampling | None = None,
    known: Scored | None = None,
) -> tuple[Record, list[ItemScores]]:
    """Scores a split and writes scores and predictions. Returns them with the run's record, which has the result and is
    not written here.

    orders: of the options, by default the file's own alone; several have files and results of their own, beside those
    of one. With `sampling` reasoning is generated first, and written too. known: the scores of the split in the file's
    own order, where the model has computed them before.
    """
    started = time.monotonic()
    orders = orders or task.current().orders(1)
    folder, encoder = run.folder, run.encoder
    examples = run.examples(split.items, orders)
    chains: list[Chain] = []
    texts: dict[Path, str] = {}
    if known is not None:
        scores, how = known.items, known.how
    elif sampling is not None:
        assert encoder.reasoning
        with progress.stage(f"reason {split.name}", len(examples) * sampling.samples) as bar:
            reasoned = reason(run.scorer, encoder, split.items, orders, sampling, bar.update)
        scores, chains, how = reasoned.items, reasoned.chains, reasoned.how
        texts[reasoning_path(folder, split.name, len(orders))] = as_jsonl(map(dataclasses.asdict, chains))
    else:
        with progress.stage(f"score {split.name}", len(examples)) as bar:
            every = len(examples)
            scored = score_shared(examples, lambda own: run.scorer.score(own, update=_scaled(bar, len(own), every)))
        scores, how = scored.items, scored.how
    answers = [one.prediction for one in scores]
    record = _make_way(folder, run.record, split.name, len(orders)) if ranks.is_first() else run.record
    texts[scores_path(folder, split.name, len(orders))] = scores_text(scores)
    predicted = data.dump_items(data.predictions(split.items, answers))
    texts[predictions_path(folder, split.name, len(orders))] = predicted
    if ranks.is_first():
        write_texts(texts)
    result = Result(
        items=len(split.items),
        orders=len(orders),
        seconds=time.monotonic() - started,
        data=split.file.path,
        data_sha256=split.file.sha256,
        rows=how.as_record(),
        reasoning=None if sampling is None else summary(chains, scores, sampling),
        files=digests_json({path.name: Digest.of_text(text) for path, text in texts.items()}),
    )
    if all(item.label is not None for item in split.items):
        worth = evaluate(split.items, answers)
        result = dataclasses.replace(
            result, accuracy=worth.accuracy, correct=worth.correct, interval=list(worth.interval)
        )
    record = record.with_result(split.name, result, len(orders))
    return dataclasses.replace(record, letters=letters_of(encoder)), scores


def _scaled(bar: progress.Progress, own: int, all_of_them: int) -> Callable[[int], None]:
    """Tells `bar` how much is done of all prompts, when so many of them are this rank's own."""
    return bar.update if own == all_of_them else lambda done: bar.update(done * all_of_them // own)


def _make_way(folder: Path, record: Record, split: str, orders: int) -> Record:
    """Older versions kept scores of several orders under the names of one order's. Such files and their results in
    `record` are renamed before scores of one order are written.
    """
    result = record.splits.get(split)
    before = 1 if result is None else result.orders or 1
    if result is None or orders > 1 or before == 1:
        return record
    for path in (scores_path, predictions_path, reasoning_path):
        if path(folder, split).is_file():
            path(folder, split).replace(path(folder, split, before))
    others = {name: one for name, one in record.splits.items() if name != split}
    record = dataclasses.replace(record, by_orders={**record.by_orders, 1: others})
    return record.with_result(split, result, before)


def result_line(name: str, split: str, result: Result) -> str:
    """One line of a scored split for the terminal."""
    many = f"{counted(result.items, 'item')}, {counted(result.orders or 1, 'order')}"
    head = f"{name}, {split}: {many}, {result.seconds:.1f} s"
    if result.accuracy is None:
        return f"{head}; no labels, so no accuracy"
    correct = result.correct or 0
    low, high = wilson(correct, result.items)
    interval = f"95 % interval {low:.3f} to {high:.3f}"
    return f"{head}; accuracy {result.accuracy:.4f} ({correct}/{result.items}, {interval})"
