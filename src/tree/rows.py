"""Tokenised sequences → the rows that a model is called with: prefix trees, or sequences side by side.

A `Term` is one position of a sequence at which the model's logits are wanted. Training wants them before every
supervised token, scoring after every prompt. Both lay their sequences out with `lay_out` and call the model with
`logits_at`. The layout changes how long that takes, and nothing else:

    tree      every token that sequences share appears once in a row
    single    one sequence, or one group of sequences, a row, by the same kernels
    padded    sequences side by side, filled up on the right: the standard, which the others are checked against

On a GPU rows of trees and of single sequences are computed in compiled layers (src/tree/compiled.py), on a CPU rows of
trees by blocks (src/tree/branches.py).
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from src.model.causal import causal_of
from src.tree import branches, compiled, prefix

Row = dict[str, Any]
Kind = Literal["tree", "single", "padded"]

TILES_PER_COPY = 24
"""Tiles of queries per copy of the root's keys. One H200, 20,736 tokens, 32 heads of 128: forward and backward take 8.1
ms without copies, 5.5 ms with 24 tiles, 5.4 ms with 12.
"""
AT_ONCE = 1024
"""Positions that the head reads at a time where log-probabilities are wanted: 1.6 GB for a vocabulary of 152,064."""
WORTHWHILE = 1.3
"""Sharing factor below which a tree is not worth it (unsloth's threshold, too)."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How sequences become rows.

    tokens      at most so many in a row, including padding; a longer sequence has its own row
    pad_id      an id to fill rows with; nothing attends to it
    lengths     the lengths that rows of a tree or of one sequence are filled up to, ascending: few of them, or a range
                of all whole tiles (`whole_tiles`); () for none
    sequences   at most so many in a padded batch, but for a group with more
    """

    kind: Kind
    tokens: int
    pad_id: int
    lengths: Sequence[int] = ()
    sequences: int | None = None

    @property
    def one_by_one(self) -> "Layout":
        """The standard layout, which rows are checked against: one sequence, or one group, at a time."""
        return Layout("padded", self.tokens, self.pad_id, sequences=1)


@dataclasses.dataclass(frozen=True)
class Term:
    """One wanted position: the token at `position` of sequence `sequence` predicts `target`, which counts `weight`."""

    sequence: int
    position: int
    target: int
    weight: float = 1.0


def lay_out(
    sequences: Sequence[Sequence[int]], terms: Sequence[Term], layout: Layout, groups: Sequence[int] | None = None
) -> Iterator[Row]:
    """The rows of `sequences`. Each is made when it is asked for, while the GPU may still compute the one before.

    groups: the group of each sequence; those of one group come in one row, whatever the layout.

    A row holds `input_ids` (int64, (sequences or 1, tokens)); `sequence`, `target` (int64) and `weight` (float32) of
    its m terms; and `source`, the positions that predict: (m,) int64 in a tree, else bool like input_ids. Rows of a
    tree also hold depth and end (int64, (tokens,)) and copies (`prefix.key_copies`).
    """
    wanted: dict[int, list[Term]] = {}
    for term in terms:
        wanted.setdefault(term.sequence, []).append(term)
    for numbers in assign(sequences, layout, groups):
        chosen, terms_of = [sequences[number] for number in numbers], [wanted.get(number, []) for number in numbers]
        padded = layout.kind == "padded"
        yield _padded_row(chosen, terms_of, layout.pad_id) if padded else _tree_row(chosen, terms_of, layout)


def assign(sequences: Sequence[Sequence[int]], layout: Layout, groups: Sequence[int] | None = None) -> list[list[int]]:
    """Indices of the sequences of each row. Padded batches and single sequences come by falling length: the largest
    comes first, so that memory problems show at once.
    """
    if layout.kind == "tree":
        return prefix.pack(sequences, layout.tokens, groups)
    order = sorted(range(len(sequences)), key=lambda number: -len(sequences[number]))
    units = prefix.together(order, groups)
    if layout.kind == "single":
        return units
    rows: list[list[int]] = []
    for unit in units:
        count = len(rows[-1]) + len(unit) if rows else 0
        full = not rows or len(sequences[rows[-1][0]]) * count > layout.tokens
        if full or (layout.sequences is not None and count > layout.sequences):
            rows.append([])
        rows[-1] += unit
    return rows


def logits_at(model: Any, row: Row) -> torch.Tensor:
    """(m, vocabulary): the model's logits at the row's terms, in their order."""
    if "end" not in row:
        # With padding on the right, causal attention needs no mask, and without a mask it uses its fast kernels.
        out = model(input_ids=row["input_ids"], logits_to_keep=row["source"], use_cache=False)
        return out.logits.reshape(-1, out.logits.shape[-1])
    mask, keys = _attention(model, row)
    out = model(
        input_ids=row["input_ids"],
        position_ids=row["depth"][None],
        attention_mask=mask,
        logits_to_keep=row["source"],
        use_cache=False,
        **keys,
    )
    return out.logits[0]


def _attention(model: Any, row: Row) -> tuple[Any, dict[str, Any]]:
    """(`attention_mask`, further arguments) with which the model computes a row of a tree."""
    depth, end = row["depth"], row["end"]
    if compiled.is_ready(model):
        return prefix.attention_mask(model.config, depth, end, copies=row["copies"]), {"tree_copies": row["copies"]}
    if not prefix.obstacle(model.config) and branches.prepare(model):
        return torch.empty(1, 1, 1, 1), {"tree_blocks": branches.Blocks(depth, end)}  # no mask of the whole row
    return prefix.attention_mask(model.config, depth, end), {}


def logprobs_at(model: Any, row: Row, at_once: int = AT_ONCE) -> torch.Tensor:
    """(m,): log-probability in nats of each term's target, in the order of the terms, at least in fp32.

    Logits over a vocabulary of 150,000 take more memory than everything else in a long row. So the head reads `at_once`
    positions at a time and, when there are more, reads them again in the backward pass.
    """
    with _headless(model) as (head, softcap):
        hidden = logits_at(model, row)

    def read(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")

    parts = list(zip(hidden.split(at_once), row["target"].split(at_once), strict=True))
    if len(parts) > 1 and torch.is_grad_enabled():
        return torch.cat([checkpoint(read, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
    return torch.cat([read(*part) for part in parts])


@contextlib.contextmanager
def _headless(model: Any) -> Iterator[tuple[Any, float | None]]:
    """Within, the model's "logits" are the input of its head. Gives the head and the softcap of its logits.

    Some models also multiply their logits by a factor. It is applied before the head, with the same result.
    """
    causal = causal_of(model)
    config, head = causal.config.get_text_config(), causal.get_output_embeddings()
    softcap = getattr(config, "final_logit_softcapping", None)
    causal.set_output_embeddings(torch.nn.Identity())
    if softcap is not None:
        config.final_logit_softcapping = None
    try:
        yield head, softcap
    finally:
        causal.set_output_embeddings(head)
        if softcap is not None:
            config.final_logit_softcapping = softcap


def sizes(sequences: Sequence[Sequence[int]], layout: Layout, groups: Sequence[int] | None = None) -> list[int]:
    """Tokens of each row that `lay_out` would make: of a padded batch with its padding, of others before they are
    filled up to a length.
    """
    if layout.kind != "padded":
        return list(map(len, trees(sequences, layout, groups)))
    assigned = [[len(sequences[number]) for number in numbers] for numbers in assign(sequences, layout, groups)]
    return [len(lengths) * max(lengths) for lengths in assigned]


def trees(
    sequences: Sequence[Sequence[int]], layout: Layout, groups: Sequence[int] | None = None
) -> Iterator[prefix.Tree]:
    """The rows that `lay_out` would make of a tree or of single sequences, before they are filled up to a length."""
    for numbers in assign(sequences, layout, groups):
        yield prefix.build([sequences[number] for number in numbers])


def whole_tiles(longest: int) -> range:
    """All lengths that rows of up to `longest` tokens can be filled up to."""
    return range(prefix.BLOCK, longest + prefix.BLOCK, prefix.BLOCK)


def lengths_for(found: Sequence[int], compiling: int) -> tuple[int, ...]:
    """The lengths to fill rows of `found` tokens up to: those that cost the fewest tokens, including padding, where
    each length costs `compiling` tokens once.
    """
    wanted, count = np.unique(-(-np.asarray(found) // prefix.BLOCK) * prefix.BLOCK, return_counts=True)
    # best[i]: (cost, lengths) of the i shortest
    best: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for last in range(1, len(wanted) + 1):
        top = int(wanted[last - 1])
        best.append(
            min(
                (best[first][0] + compiling + top * int(count[first:last].sum()), (*best[first][1], top))
                for first in range(last)
            )
        )
    return best[-1][1]


def filled_tokens(found: Sequence[int], lengths: Sequence[int]) -> int:
    """Tokens of rows of `found` tokens, each filled up to the next of `lengths`, the last of which is the longest."""
    return int(np.asarray(lengths)[np.searchsorted(lengths, found)].sum())


def totals(rows: Sequence[Row], *keys: str) -> torch.Tensor:
    """(keys,): for each key, the sum of its values over all rows."""
    return torch.stack([sum(row[key].sum() for row in rows) for key in keys])


def to_device(row: Row, device: torch.device) -> Row:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in row.items()
    }


def _tree_row(sequences: list[Sequence[int]], wanted: list[list[Term]], layout: Layout) -> Row:
    laid = prefix.build(sequences)
    source = [int(laid.paths[number][term.position]) for number, terms in enumerate(wanted) for term in terms]
    if layout.lengths:
        # A sequence longer than all `lengths` is filled up to whole tiles, which costs another compilation.
        longer = -(-len(laid) // prefix.BLOCK) * prefix.BLOCK
        laid = prefix.pad(laid, next((some for some in layout.lengths if some >= len(laid)), longer), layout.pad_id)
    return {
        "input_ids": torch.from_numpy(laid.ids)[None],
        "depth": torch.from_numpy(laid.depth),
        "end": torch.from_numpy(laid.end),
        "source": torch.tensor(source, dtype=torch.long),
        "copies": prefix.key_copies(laid.end, TILES_PER_COPY, layout.tokens),
        **_targets(wanted),
    }


def _padded_row(sequences: list[Sequence[int]], wanted: list[list[Term]], pad_id: int) -> Row:
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), pad_id)
    source = torch.zeros((len(sequences), longest), dtype=torch.bool)
    for number, (sequence, terms) in enumerate(zip(sequences, wanted, strict=True)):
        ids[number, : len(sequence)] = torch.tensor(sequence)
        source[number, [term.position for term in terms]] = True
    # The model returns the logits sequence by sequence, in the order of positions.
    in_order = [sorted(terms, key=lambda term: term.position) for terms in wanted]
    return {"input_ids": ids, "source": source, **_targets(in_order)}


def _targets(wanted: list[list[Term]]) -> Row:
    terms = [term for one in wanted for term in one]
    return {
        "sequence": torch.tensor([term.sequence for term in terms], dtype=torch.long),
        "target": torch.tensor([term.target for term in terms], dtype=torch.long),
        "weight": torch.tensor([term.weight for term in terms], dtype=torch.float32),
    }
