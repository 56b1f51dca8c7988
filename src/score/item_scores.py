"""The scores of an item: a logit for each letter under each order of the options, and the file that keeps them."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.console.cli import UserError
from src.data import OUTPUTS, SPLITS
from src.files.writing import write_jsonl

# Derived values are recomputed on reading; exp and log of another machine may differ in the last digits.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class ItemScores:
    """What a run thought of one item.

    `orders`: which option stands under which letter, "201" = A shows option 2, B option 0, C option 1.
    At least one, none twice.
    `logits`: for each order the logits of the letters A, B, C (natural units, finite).
    `samples`, `agreement`: where chains of reasoning were generated, how many for each order, and the share of them
    that by themselves choose the item's prediction; else None.
    UserError when orders and logits do not fit together or a logit is not finite.
    """

    id: str
    orders: tuple[str, ...]
    logits: tuple[tuple[float, ...], ...]
    samples: int | None = None
    agreement: float | None = None

    def __post_init__(self) -> None:
        if not self.orders or len(set(self.orders)) < len(self.orders) or len(self.orders) != len(self.logits):
            raise UserError(
                f"item {self.id}: found the orders {self.orders} with {len(self.logits)} rows of logits; "
                "allowed: different orders, at least one, and a row for each"
            )
        if any(sorted(order) != ["0", "1", "2"] for order in self.orders):
            raise UserError(f"item {self.id}: found orders {self.orders}; allowed: 012 021 102 120 201 210")
        if any(len(row) != 3 or not all(map(math.isfinite, row)) for row in self.logits):
            raise UserError(
                f"item {self.id}: found the logits {self.logits}; allowed: three finite numbers per order. "
                "A model that gives others has diverged in training or overflows in float16: use bfloat16 or float32."
            )

    @property
    def logprobs(self) -> tuple[float, float, float]:
        """Per option (not letter), in nats.

        Log-softmax over the three letters of each order, averaged per option over the orders, then log-softmax again:
        the geometric mean of the orders' probabilities, normalised.
        """
        by_option: tuple[list[float], ...] = ([], [], [])
        for order, row in zip(self.orders, self.logits, strict=True):
            for option, logprob in zip(order, _log_softmax(row), strict=True):
                by_option[int(option)].append(logprob)
        # fsum rounds once, so options that saw the same values in another sequence tie exactly.
        first, second, third = _log_softmax([math.fsum(values) / len(values) for values in by_option])
        return first, second, third

    @property
    def prediction(self) -> int:
        """The likeliest option (0..2); of exact ties, which `margin` 0.0 shows, the first."""
        logprobs = self.logprobs
        return logprobs.index(max(logprobs))

    @property
    def margin(self) -> float:
        """Best minus second-best log-probability, in nats."""
        _, second, best = sorted(self.logprobs)
        return best - second


def write_scores(path: str | Path, rows: Sequence[ItemScores]) -> None:
    """One item a line. logprobs, prediction and margin are written for the reader and checked by `read_scores`."""
    assert rows and len({row.id for row in rows}) == len(rows), "scores are of at least one item, each once"
    write_jsonl(
        path,
        (
            {
                "id": row.id,
                "orders": row.orders,
                "logits": row.logits,
                "logprobs": row.logprobs,
                "prediction": OUTPUTS[row.prediction],
                "margin": row.margin,
                **({} if row.samples is None else {"samples": row.samples, "agreement": row.agreement}),
            }
            for row in rows
        ),
    )


def read_scores(path: str | Path) -> list[ItemScores]:
    """The rows in the file's order. UserError when there is no file or it is not just what `write_scores` writes."""
    path = Path(path)
    split, _, beside = path.stem.removeprefix("scores_").partition(".")
    remedy = f"Score it again: python -m run.test --model_id {path.parent}" + f" --split {split}" * (split in SPLITS)
    remedy += f" --orders {beside.removesuffix('orders')}" if beside else ""
    if not path.is_file():
        raise UserError(f"{path}: no such file. {remedy}")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: it is not UTF-8. {remedy}") from error
    if not text.endswith("\n"):
        raise UserError(f"{path} is damaged: {'its last line is cut off' if text else 'it is empty'}. {remedy}")
    rows: list[ItemScores] = []
    seen: set[str] = set()
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            row = _read_row(line)
            if row.id in seen:
                raise ValueError(f"item {row.id} has a line already")
        except (ValueError, TypeError, KeyError) as error:
            reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path} is damaged: line {number}: {reason}. {remedy}") from error
        seen.add(row.id)
        rows.append(row)
    return rows


def _read_row(line: str) -> ItemScores:
    found = json.loads(line)
    if not isinstance(found, dict) or not isinstance(found["id"], str):
        raise ValueError("not the scores of an item")
    logits: list[tuple[float, float, float]] = []
    for row in found["logits"]:
        first, second, third = map(float, row)
        logits.append((first, second, third))
    chains = (int(found["samples"]), float(found["agreement"])) if "samples" in found else (None, None)
    scores = ItemScores(found["id"], tuple(found["orders"]), tuple(logits), *chains)
    derived = [*scores.logprobs, scores.margin]
    written = [*map(float, found["logprobs"]), float(found["margin"])]
    if len(written) != len(derived) or any(
        abs(one - other) > TOLERANCE for one, other in zip(derived, written, strict=True)
    ):
        raise ValueError(f"item {scores.id}: logprobs or margin do not follow from its logits")
    if found["prediction"] != OUTPUTS[scores.prediction]:
        raise ValueError(f"item {scores.id}: prediction {found['prediction']!r} does not follow from its logits")
    return scores


def _log_softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    total = top + math.log(math.fsum(math.exp(value - top) for value in values))
    return [value - total for value in values]
