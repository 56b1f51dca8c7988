"""One line per item and run that stands for itself: the text, the label, and what the run made of it."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from src.data import OUTPUTS, Item
from src.prompt.prompts import LETTERS
from src.score.item_scores import ItemScores

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a text that begins so for a formula."""


def sample_row(
    run: str, split: str, item: Item, scores: ItemScores | None, prediction: int, prompt_sha256: str | None
) -> dict[str, Any]:
    """The line of an item, as JSON has it.

    probabilities   order → letter → share; the options that stand under A, B and C are the order's digits (0..2)
    logprobs        of the three options over all orders, in nats
    right           None without a label; probabilities, logprobs and margin are None where a run kept no scores
    """
    label = item.label
    return {
        "run": run,
        "id": item.id,
        "split": split,
        "category": item.category,
        "dialogue": "\n".join(f"{one.speaker}: {one.text}" for one in item.dialogue),
        "target_utterances": [f"{one.speaker}: {one.text}" for one in item.target_utterances],
        "options": list(item.options),
        "label": None if label is None else OUTPUTS[label],
        "prediction": OUTPUTS[prediction],
        "right": None if label is None else label == prediction,
        "margin": scores.margin if scores else None,
        "logprobs": list(scores.logprobs) if scores else None,
        "probabilities": letter_probabilities(scores) if scores else None,
        "prompt_sha256": prompt_sha256,
    }


def letter_probabilities(scores: ItemScores) -> dict[str, dict[str, float]]:
    """Order → letter → its probability among the three."""
    found = {}
    for order, logits in zip(scores.orders, scores.logits, strict=True):
        top = max(logits)
        weights = [math.exp(value - top) for value in logits]
        found[order] = {letter: weight / sum(weights) for letter, weight in zip(LETTERS, weights, strict=True)}
    return found


def as_jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    """One object a line. Signs at which some programs end a line (U+2028, say) are written as JSON's escapes."""
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    for sign in "\x85\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same lines for a spreadsheet: lists in columns of their own, and a byte order mark, without which Excel takes
    Korean for something else. `right` is 1 or 0, to be counted. A text that would be a formula there has ' before it.
    """
    out = io.StringIO(newline="")
    flat = [_flat(row) for row in rows]
    writer = csv.DictWriter(out, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return "\ufeff" + out.getvalue()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in row.items():
        if key in ("options", "logprobs"):
            parts = value or [None] * len(OUTPUTS)
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
