"""One self-contained sample per item and run: the text, the label, and the run's answer."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from src import task
from src.data import Item
from src.files import tables
from src.score.item_scores import ItemScores

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Spreadsheets take a text that begins with one of these for a formula."""


def sample(
    run: str, split: str, item: Item, scores: ItemScores | None, prediction: int, prompt_sha256: str | None
) -> dict[str, Any]:
    """An item with its answer, as JSON has it.

    probabilities   order → letter → share; the order's digits are the options that stand under the letters
    logprobs        of the options over all orders, in nats
    right           None without a label; probabilities, logprobs and margin are None where a run kept no scores
    """
    label, options = item.label, task.current().options
    return {
        "run": run,
        "id": item.id,
        "split": split,
        "category": item.category,
        "dialogue": "\n".join(f"{one.speaker}: {one.text}" for one in item.dialogue),
        "target_utterances": [f"{one.speaker}: {one.text}" for one in item.target_utterances],
        "options": list(item.options),
        "label": None if label is None else options[label],
        "prediction": options[prediction],
        "right": None if label is None else label == prediction,
        "margin": scores.margin if scores else None,
        "logprobs": list(scores.logprobs) if scores else None,
        "probabilities": letter_probabilities(scores) if scores else None,
        "prompt_sha256": prompt_sha256,
    }


def letter_probabilities(scores: ItemScores) -> dict[str, dict[str, float]]:
    """Order → letter → its probability among all letters."""
    found, letters = {}, task.current().letters
    for order, logits in zip(scores.orders, scores.logits, strict=True):
        top = max(logits)
        weights = [math.exp(value - top) for value in logits]
        found[order] = {letter: weight / sum(weights) for letter, weight in zip(letters, weights, strict=True)}
    return found


def as_jsonl(samples: Sequence[Mapping[str, Any]]) -> str:
    """One object a line. Signs at which some programs end a line (U+2028, say) are written as JSON's escapes."""
    text = "".join(json.dumps(one, ensure_ascii=False, allow_nan=False) + "\n" for one in samples)
    for sign in "\x85\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def as_csv(samples: Sequence[Mapping[str, Any]]) -> str:
    """The same for a spreadsheet: lists have columns of their own, `right` is 1 or 0, to be counted, and a text that
    would be a formula there has ' before it. Without a byte order mark, Excel decodes Korean wrongly.
    """
    return "\ufeff" + tables.as_csv([_flat(one) for one in samples])


def _flat(sample: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in sample.items():
        if key in ("options", "logprobs"):
            parts = value or [None] * len(task.current().options)
            found |= {f"{key.removesuffix('s')}_{place}": part for place, part in enumerate(parts, start=1)}
        elif key == "target_utterances":
            found[key] = "\n".join(value)
        elif key == "probabilities":
            orders = (value or {}).items()
            told = [f"{order}: " + " ".join(f"{one} {share:.4f}" for one, share in by.items()) for order, by in orders]
            found[key] = "; ".join(told)
        elif key == "right":
            found[key] = None if value is None else int(value)
        else:
            found[key] = value
    return {
        key: f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
        for key, value in found.items()
    }
