"""Attention over a row of a tree on a CPU: the row in blocks, each over the keys that its tokens may see.

A CPU has no attention that skips what a mask hides: over a row of 1,000 tokens it computes a million pairs of tokens,
where a token sees about 250 others. A block is a part of the row from token s to t. In a walk that visits a token
before its continuations, all that the block's tokens see beside each other is the path to s, as long as s is deep:

    row     P P P P a a b b b c c c        the block b b b: keys P P P P b b b, 3 · 7 pairs instead of 3 · 12
    depth   0 1 2 3 4 5 4 5 6 4 5 6

The attention itself is the one that the model was loaded with (sdpa, or eager where logits are capped), called once for
each block. `NAMES` are the attentions of transformers that do so for a row of a tree, and for any other row what they
are named after.

What this file relies on, for an upgrade of transformers: the arguments of an attention function; the module's
`eager_attention_forward` beside each attention class, and its `layer_idx` and `config`; a mask of four dimensions is
handed on as it is; and `_can_set_attn_implementation`.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from src.model.causal import causal_of
from src.tree import prefix

NAMES = {"sdpa": "tree-sdpa", "eager": "tree-eager"}
"""Attention that a model was loaded with → ours by blocks."""
PIECE = 128
"""Most tokens of a piece: a block is made of whole ones."""
CALL = 10_000
"""Pairs of tokens in whose time a block's call is made, about. Rows of 960 and 1,961 tokens, four heads of 32, one core
(torch 2.13): 16.5 and 80.9 ms in one block, 7.0 and 13.4 ms in blocks chosen by this; by 1,000 or 30,000, 7.8 and 13.9,
or 7.2 and 14.6 ms.
"""


@dataclass(frozen=True)
class Block:
    """Tokens from `start` to `stop` of a row: its pieces from `first` to `last`. above: pieces of the path to it."""

    start: int
    stop: int
    first: int
    last: int
    above: tuple[int, ...]


class Blocks:
    """The blocks of a row.

    sizes    tokens of each piece
    blocks   in the order of the row
    """

    def __init__(self, depth: torch.Tensor, end: torch.Tensor) -> None:
        self.depth, self.end = depth, end
        bounds, found = divided(depth.numpy(), end.numpy())
        ends = end.numpy()[bounds[:-1]]
        self.sizes = np.diff(bounds).tolist()
        self.blocks = [
            Block(int(bounds[i]), int(bounds[j]), i, j, tuple(np.flatnonzero(ends[:i] > bounds[i]).tolist()))
            for i, j in found
        ]
        self._masks: dict[tuple[int | None, torch.dtype], list[torch.Tensor]] = {}

    def masks(self, window: int | None, dtype: torch.dtype) -> list[torch.Tensor]:
        """For each block, what is added to the scores: (1, 1, tokens, tokens of its path and its own)."""
        if (window, dtype) not in self._masks:
            none, least = torch.zeros((), dtype=dtype), torch.finfo(dtype).min
            every = torch.arange(len(self.depth))
            of_pieces = every.split(self.sizes)
            self._masks[window, dtype] = masks = []
            for one in self.blocks:
                keys = torch.cat([of_pieces[piece] for piece in pieces_of(one)])
                seen = prefix.visible_part(self.depth, self.end, window, every[one.start : one.stop], keys)
                masks.append(none.where(seen, least)[None, None])
        return self._masks[window, dtype]


def pieces_of(block: Block) -> list[int]:
    """The pieces that a block's tokens may see, in the row's order."""
    return [*block.above, *range(block.first, block.last)]


def divided(depth: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """(bounds of the pieces, (first piece, piece behind the last) of each block) of a row, in as few pairs of tokens as
    can be, where a block counts `CALL` besides.

    All tokens of a piece continue each other, and a later token sees all of them or none.
    """
    bounds = _bounds(depth, end)
    starts, count = bounds[:-1], len(bounds) - 1
    best, origin = np.zeros(count + 1), np.zeros(count + 1, int)
    for last in range(1, count + 1):
        tokens = bounds[last] - starts[:last]
        costs = best[:last] + tokens * (depth[starts[:last]] + tokens) + CALL
        origin[last] = costs.argmin()
        best[last] = costs[origin[last]]
    blocks, last = [], count
    while last:
        blocks.append((int(origin[last]), last))
        last = int(origin[last])
    return bounds, blocks[::-1]


def pairs(depth: np.ndarray, end: np.ndarray) -> int:
    """Pairs of tokens that a row takes in blocks, with `CALL` for each."""
    bounds, blocks = divided(depth, end)
    sizes = [(int(bounds[first]), int(bounds[last] - bounds[first])) for first, last in blocks]
    return sum(tokens * (int(depth[start]) + tokens) + CALL for start, tokens in sizes)


def _bounds(depth: np.ndarray, end: np.ndarray) -> np.ndarray:
    cuts = np.flatnonzero((depth[1:] != depth[:-1] + 1) | (end[1:] != end[:-1])) + 1
    chains = np.concatenate([[0], cuts, [len(depth)]])
    parts = -(-np.diff(chains) // PIECE)
    inner = [start + size * np.arange(n) // n for start, size, n in zip(chains, np.diff(chains), parts, strict=False)]
    return np.concatenate([*inner, [len(depth)]])


def prepare(model: Any) -> bool:
    """Makes `model` compute rows of a tree by blocks if it is on a CPU and takes attentions of others; returns whether
    it does.
    """
    causal = causal_of(model)
    kind = causal.config._attn_implementation
    if kind in NAMES.values():
        return True
    if causal.device.type != "cpu" or kind not in NAMES or not causal._can_set_attn_implementation():
        return False
    if kind == "eager" and not hasattr(sys.modules[type(causal).__module__], "eager_attention_forward"):
        return False
    causal.set_attn_implementation(NAMES[kind])
    return True


def _by_blocks(whole: Callable[..., Any] | None) -> Callable[..., Any]:
    """The attention of a row of a tree with `tree_blocks`, of any other row `whole`; None: the module's eager one."""

    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        tree_blocks: Blocks | None = None,
        **keys: Any,
    ) -> tuple[torch.Tensor, None]:
        inner = whole or sys.modules[type(module).__module__].eager_attention_forward
        if tree_blocks is None:
            return inner(module, query, key, value, attention_mask, **keys)
        masks = tree_blocks.masks(prefix.window_of(module.config, module.layer_idx), query.dtype)
        queries = query.split([one.stop - one.start for one in tree_blocks.blocks], 2)
        parts = [part.split(tree_blocks.sizes, 2) for part in (key, value)]
        found = []
        for one, some, mask in zip(tree_blocks.blocks, queries, masks, strict=True):
            seen = (_joined(part, pieces_of(one)) for part in parts)
            found.append(inner(module, some, *seen, mask, **keys)[0])
        return torch.cat(found, 1), None

    return attend


def _joined(parts: Sequence[torch.Tensor], numbers: Sequence[int]) -> torch.Tensor:
    return parts[numbers[0]] if len(numbers) == 1 else torch.cat([parts[number] for number in numbers], 2)


for _name, _whole, _mask in (("sdpa", sdpa_attention_forward, sdpa_mask), ("eager", None, eager_mask)):
    AttentionInterface.register(NAMES[_name], _by_blocks(_whole))
    AttentionMaskInterface.register(NAMES[_name], _mask)
