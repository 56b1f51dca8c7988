"""Rows of few sizes: beside the tokens, the terms of a row are filled up too, so that steps repeat the same shapes.

Compiled layers want rows of few lengths. A captured step (src/train/step_graphs.py) also wants few numbers of terms.
What is added weighs nothing in the loss.
"""

from collections.abc import Sequence
from typing import Any

import torch

from src.tree.rows import Row

LEAST, STEPS = 128, 256
"""Numbers of terms are 128, or multiples of 256: hardly an answer has more than 128 tokens."""
FILLING = {"source": 0, "target": 0, "weight": 0.0, "term": 0}
"""Values of the terms that are added; `sequence` repeats its last one, `answer` has an answer of its own."""
Signature = tuple[tuple[Any, ...], ...]


def filled_size(count: int) -> int:
    """The number of terms that `count` terms are filled up to."""
    return LEAST if count <= LEAST else -(-count // STEPS) * STEPS


def filled(row: Row) -> Row:
    """The row of a tree with its terms filled up. Rows of pairs get one more answer, of no pair, that the filling
    belongs to; its number is -1.
    """
    found = dict(row)
    size = filled_size(len(row["source"]))
    for name in ("source", "target", "weight"):
        found[name] = _longer(row[name], size, FILLING[name])
    if "sequence" in row:
        found["sequence"] = _longer(row["sequence"], size, int(row["sequence"][-1]))
    if "answer" in row:
        tokens = filled_size(len(row["answer"]))
        found["answer"] = _longer(row["answer"], tokens, len(row["lengths"]))
        found["term"] = _longer(row["term"], tokens, FILLING["term"])
        found["lengths"] = _longer(row["lengths"], len(row["lengths"]) + 1, 1)
        found["numbers"] = _longer(row["numbers"], len(row["numbers"]) + 1, -1)
    return found


def signature(rows: Sequence[Row]) -> Signature:
    """What has to be equal for two steps to run the same kernels on tensors of the same sizes."""
    return tuple(
        (
            row["copies"] if row["copies"][1] > 1 else None,
            *((name, tuple(value.shape)) for name, value in row.items() if isinstance(value, torch.Tensor)),
        )
        for row in rows
    )


def _longer(values: torch.Tensor, size: int, filling: float) -> torch.Tensor:
    return torch.nn.functional.pad(values, (0, size - len(values)), value=filling)
