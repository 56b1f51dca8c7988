"""The scores of an item: a logit for each letter under each order of the options, and the file that keeps them."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from src import task
from src.console.cli import UserError
from src.files.kinds import fits
from src.files.reading import decoded, parse_json, read_bytes, shortened
from src.files.writing import as_jsonl, write_text

# Derived values are recomputed on reading; exp and log of another machine may differ in the last digits.
TOLERANCE = 1e-6
LARGEST_LOGIT = 1e100
"""Far beyond what any model gives; differences of larger ones are not finite."""

KINDS = {
    "orders": Sequence[str],
    "logits": Sequence[Sequence[float]],
    "logprobs": Sequence[float],
    "margin": float,
    "samples": int,
    "agreement": float,
}
"""Key of a line → type of its value."""

Logits = tuple[float, ...]
"""One for each letter, in the order of the letters, in natural units."""
Logprobs = tuple[float, ...]
"""One for each option, in the order of the data file, in nats."""


@dataclass(frozen=True)
class ItemScores:
    """A run's scores of one item.

    `orders`: which option stands under which letter, "201" = A shows option 2, B option 0, C option 1.
    At least one, all different, each with every option of the current task.
    `logits`: for each order those of the letters, all finite.
    `samples`, `agreement`: with reasoning, how many chains were generated for each order, and the share of them that
    by themselves choose the item's prediction; else None.
    UserError when orders and logits do not fit together or a logit is not finite.
    """

    id: str
    orders: tuple[str, ...]
    logits: tuple[Logits, ...]
    samples: int | None = None
    agreement: float | None = None

    def __post_init__(self) -> None:
        if not self.orders or len(set(self.orders)) < len(self.orders) or len(self.orders) != len(self.logits):
            raise UserError(
                f"item {self.id}: found the orders {_told(self.orders)} and logits of {len(self.logits)}; "
                "allowed: one or more different orders, and logits of each"
            )
        options = task.current().file_order
        if any(sorted(order) != list(options) for order in self.orders):
            allowed = " ".join(task.current().all_orders) if len(options) < 4 else f"the digits {options}, each once"
            raise UserError(f"item {self.id}: found orders {_told(self.orders)}; allowed: {allowed}")
        small = all(abs(logit) <= LARGEST_LOGIT for logits in self.logits for logit in logits)  # not so for NaN
        if not small or any(len(logits) != len(options) for logits in self.logits):
            raise UserError(
                f"item {self.id}: found the logits {_told(self.logits)}; "
                f"allowed: {len(options)} finite numbers per order. "
                "A model that gives others has diverged in training or overflows in float16: use bfloat16 or float32."
            )

    @cached_property
    def logprobs(self) -> Logprobs:
        """Log-softmax over the letters of each order, averaged per option over the orders, then log-softmax again:
        the geometric mean of the orders' probabilities, normalised.
        """
        by_option: list[list[float]] = [[] for _ in self.orders[0]]
        for order, logits in zip(self.orders, self.logits, strict=True):
            for option, logprob in zip(order, log_softmax(logits), strict=True):
                by_option[int(option)].append(logprob)
        # fsum rounds once, so options with the same values in another sequence tie exactly.
        return tuple(log_softmax([math.fsum(values) / len(values) for values in by_option]))

    @property
    def prediction(self) -> int:
        """Index of the likeliest option; of options that tie exactly, which shows as `margin` 0.0, the first."""
        logprobs = self.logprobs
        return logprobs.index(max(logprobs))

    @property
    def margin(self) -> float:
        """Best minus second-best log-probability, in nats."""
        *_, second, best = sorted(self.logprobs)
        return best - second


def write_scores(path: str | Path, scores: Sequence[ItemScores]) -> None:
    write_text(path, scores_text(scores))


def scores_text(scores: Sequence[ItemScores]) -> str:
    """One item a line. logprobs, prediction and margin are written for the reader and checked by `read_scores`."""
    assert scores and len({one.id for one in scores}) == len(scores), "scores are of at least one item, each once"
    options = task.current().options
    return as_jsonl(
        (
            {
                "id": one.id,
                "orders": one.orders,
                "logits": one.logits,
                "logprobs": one.logprobs,
                "prediction": options[one.prediction],
                "margin": one.margin,
                **({} if one.samples is None else {"samples": one.samples, "agreement": one.agreement}),
            }
            for one in scores
        ),
    )


def read_scores(path: str | Path) -> list[ItemScores]:
    """Scores in the file's order. UserError without a file, or when it is not exactly what `write_scores` writes."""
    path = Path(path)
    split, _, beside = path.stem.removeprefix("scores_").partition(".")
    remedy = f"Score it again: python -m run.test --model_id {shlex.quote(str(path.parent))}"
    remedy += f" --split {split}" if split in task.SPLITS else ""
    remedy += f" --orders {beside.removesuffix('orders')}" if beside else ""
    remedy += task.flag()
    if not path.is_file():
        raise UserError(f"{path}: no such file. {remedy}")
    try:
        return list(_parsed(read_bytes(path), task.current().sha256))
    except UserError as error:
        raise UserError(f"{path} is damaged: {str(error).rstrip('.')}. {remedy}") from error


@lru_cache(maxsize=256)
def _parsed(content: bytes, task_sha256: str) -> tuple[ItemScores, ...]:
    """The scores in a file's bytes. A command asks for the same file several times, and reading it is slow: bytes that
    were read under the same task are not read again.
    """
    text = decoded(content, "it")
    if not text.endswith("\n"):
        raise UserError("its last line is cut off" if text else "it is empty")
    scores: dict[str, ItemScores] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            one = _read_line(line)
            if one.id in scores:
                raise ValueError(f"item {one.id} has a line already")
        except (ValueError, TypeError, KeyError) as error:
            reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"line {number}: {reason}") from error
        scores[one.id] = one
    return tuple(scores.values())


def _read_line(line: str) -> ItemScores:
    found = parse_json(line)
    if not fits(found, Mapping[str, Any]) or not isinstance(found["id"], str):
        raise ValueError("not the scores of an item")
    for key, hint in KINDS.items():
        if not fits(found[key] if key not in ("samples", "agreement") else found.get(key, 0), hint):
            raise ValueError(f"{key} is {_told(found[key])}")
    logits = tuple(tuple(map(float, values)) for values in found["logits"])
    chains = (found["samples"], float(found["agreement"])) if "samples" in found else (None, None)
    scores = ItemScores(found["id"], tuple(found["orders"]), logits, *chains)
    derived = [*scores.logprobs, scores.margin]
    written = [*map(float, found["logprobs"]), float(found["margin"])]
    if len(written) != len(derived) or any(
        not abs(one - other) <= TOLERANCE for one, other in zip(derived, written, strict=True)
    ):
        raise ValueError(f"item {scores.id}: logprobs or margin do not follow from its logits")
    if found["prediction"] != task.current().options[scores.prediction]:
        raise ValueError(f"item {scores.id}: prediction {_told(found['prediction'])} does not follow from its logits")
    return scores


def _told(value: Any) -> str:
    return shortened(repr(value), 200)


def log_softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    total = top + math.log(math.fsum(math.exp(value - top) for value in values))
    return [value - total for value in values]
