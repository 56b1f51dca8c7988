"""What runs and votes claim: the probability of each option of each item, where they give one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src import task
from src.console.cli import UserError
from src.data import Item
from src.files.kinds import fits
from src.files.paths import record_path
from src.files.reading import decoded, parse_json, read_bytes, shortened
from src.runs.facts import VoteResult
from src.runs.record import Record
from src.vote.ballots import Source
from src.worth.calibration import LOG_LOSS_FLOOR, Floats

SUMS_TO_ONE = 1e-6


@dataclass(frozen=True)
class Claim:
    """Probabilities (items, options).

    logprobs  the same as logarithms, nats, which a temperature softens; None for shares of ballots: how many of a hard
              vote's voters chose an option is no probability that anyone stated, and none of 0 can be softened
    fitted    of a vote: what its record says of the fit of its own weights; None without one
    """

    probabilities: Floats
    logprobs: Floats | None
    fitted: Mapping[str, Any] | None = None


def claim_of(source: Source, items: Sequence[Item]) -> Claim | None:
    """From scores, or from the file of a vote's decisions beside its predictions; None where there are answers alone.
    UserError for a file of decisions that is damaged, or of other answers than the predictions.
    """
    if source.ballot.logprobs is not None:
        logprobs = np.array([source.ballot.logprobs[item.id] for item in items])
        return Claim(np.exp(logprobs), logprobs)
    name = source.file.name
    votes = source.file.with_name(f"{name.removesuffix('.json').replace('predictions_', 'votes_', 1)}.jsonl")
    if not (name.startswith("predictions_") and name.endswith(".json") and votes.is_file()):
        return None
    read = _read_votes(votes)
    if unlike := [item.id for item in items if item.id not in read or not _same(read[item.id], source, item)]:
        raise UserError(
            f"{votes} has other answers than {source.file.name} beside it, {unlike[0]} for one. "
            "Make both again with run.vote."
        )
    rows = [read[item.id] for item in items]
    if all("probabilities" in row for row in rows):
        probabilities = np.array([row["probabilities"] for row in rows], dtype=float)
        return Claim(probabilities, np.log(np.maximum(probabilities, LOG_LOSS_FLOOR)), _fit_of(source.file))
    counts = np.array([row["counts"] for row in rows], dtype=float)
    return Claim(counts / counts.sum(axis=1, keepdims=True), None)


def _fit_of(predictions: Path) -> Mapping[str, Any] | None:
    """What the record beside a vote's predictions says that its rule was fitted on."""
    if not record_path(predictions.parent).is_file():
        return None
    split = predictions.stem.removeprefix("predictions_")
    result = Record.load(predictions.parent).splits.get(split)
    return result.fitted if isinstance(result, VoteResult) else None


def _same(row: dict[str, Any], source: Source, item: Item) -> bool:
    return bool(row["answer"] == task.current().options[source.ballot.answers[item.id]])


def _read_votes(path: Path) -> dict[str, dict[str, Any]]:
    """Id → line of the file that `vote_line` made."""
    found: dict[str, dict[str, Any]] = {}
    try:
        for number, line in enumerate(decoded(read_bytes(path), "it").splitlines(), start=1):
            row = parse_json(line)
            if problem := _problem(row):
                raise ValueError(f"line {number}: {problem}")
            if row["id"] in found:
                raise ValueError(f"line {number}: item {row['id']} has a line already")
            found[row["id"]] = row
    except ValueError as error:  # a UserError as well
        raise UserError(f"{path} is damaged: {error}. Make it again with run.vote.") from error
    return found


def _problem(row: Any) -> str:
    options = len(task.current().options)
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or "answer" not in row:
        return "not the vote on an item"
    counts: Any = row.get("counts")
    if not fits(counts, Sequence[int]) or len(counts) != options or min(counts) < 0 or sum(counts) < 1:
        return f"counts is {shortened(repr(counts))}"
    given: Any = row.get("probabilities", [1.0, *[0.0] * (options - 1)])
    well = fits(given, Sequence[float]) and len(given) == options and min(given) >= 0
    return "" if well and abs(sum(given) - 1) <= SUMS_TO_ONE else f"probabilities is {shortened(repr(given), 200)}"
