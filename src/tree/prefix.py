"""The prefix tree: sequences with common prefixes, laid out as one row in which every shared token appears once.

Four sequences, the tree of their tokens, and the row it becomes, in the order of a walk that visits a token before its
continuations (pre-order):

    a b c              a ─┬─ b ─┬─ c              index   0  1  2  3  4  5
    a b d e               │     └─ d ── e         token   a  b  c  d  e  f
    a b d                 └─ f                    depth   0  1  2  2  3  1
    a f                                           end     6  5  3  5  5  6

`end[k]` is one past the last token of k's subtree. Token q may look at k when it comes after k in some sequence, which
is exactly when q lies in that subtree:

    q sees k  ⇔  k <= q < end[k]                        q\\k  a b c d e f
                                                         a   ■
    and its position is its depth. What a causal          b   ■ ■
    model computes for q then depends on the same         c   ■ ■ ■
    tokens at the same positions as in the sequence       d   ■ ■ · ■
    alone: the row is the same function, not an           e   ■ ■ · ■ ■
    approximation. A sliding window counts depths:        f   ■ · · · · ■
    depth[q] - depth[k] < window.

Needs torch and numpy only. It knows nothing of what the token sequences mean. The code below is a whole loss over
chosen tokens of the sequences, with a Hugging Face model; its gradient equals that of the sequences computed alone:

    row = build(sequences)
    chosen = [(s, p) for s, one in enumerate(sequences) for p in range(len(one) - 2, len(one))]
    source = torch.tensor([row.paths[s][p - 1] for s, p in chosen])  # where token p of sequence s is predicted
    target = torch.tensor([sequences[s][p] for s, p in chosen])
    ids, depth, end = (torch.from_numpy(one) for one in (row.ids, row.depth, row.end))
    out = model(
        input_ids=ids[None],
        position_ids=depth[None],
        attention_mask=attention_mask(model.config, depth, end),
        logits_to_keep=source,
        use_cache=False,
    )
    loss = torch.nn.functional.cross_entropy(out.logits[0].float(), target)

`pack` splits many sequences over several rows. `pad` fills a row up to a length, since flex attention needs whole
tiles.
"""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Tokens on a side of flex attention's tiles; rows for it are padded to a multiple."""
LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Tree:
    """The row of a tree of n tokens. All arrays are int64.

    ids, depth, end: (n,), see the module's docstring
    paths: for each sequence, in the order they were given, the positions of its tokens in the row
    """

    ids: np.ndarray
    depth: np.ndarray
    end: np.ndarray
    paths: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.ids)


def build(sequences: Sequence[Sequence[int]]) -> Tree:
    """The tree of `sequences`, none of them empty. Linear in their tokens, after sorting.

    In sorted order, a sequence shares with the one before it everything that it shares with any earlier one. So it adds
    only the tokens after that common prefix, and the row is these additions one after the other. A token's subtree ends
    where the next sequence begins that leaves the path at or before the token's depth.
    """
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    if not arrays or any(one.ndim != 1 or not len(one) for one in arrays):
        raise ValueError("a tree needs sequences of at least one token each")
    order = _order(arrays)
    shared = _shared([arrays[number] for number in order])
    start = np.concatenate(
        [[0], np.cumsum([len(arrays[number]) - common for number, common in zip(order, shared, strict=True)])]
    )
    total = int(start[-1])
    ids, depth, end = np.empty(total, np.int64), np.empty(total, np.int64), np.empty(total, np.int64)
    paths: list[np.ndarray] = [np.empty(0, np.int64)] * len(arrays)
    before = np.empty(0, np.int64)
    for rank, (number, common) in enumerate(zip(order, shared, strict=True)):
        new = np.arange(start[rank], start[rank + 1])
        ids[new], depth[new] = arrays[number][common:], np.arange(common, len(arrays[number]))
        before = paths[number] = np.concatenate([before[:common], new])
    # departs[d]: where the first later sequence begins that shares at most d tokens with those before it.
    departs = np.full(max(map(len, arrays)), total, np.int64)
    for rank in reversed(range(len(arrays))):
        common = shared[rank]
        end[start[rank] : start[rank + 1]] = departs[common : len(arrays[order[rank]])]
        departs[common:] = start[rank]
    return Tree(ids, depth, end, tuple(paths))


def pack(sequences: Sequence[Sequence[int]], budget: int, groups: Sequence[int] | None = None) -> list[list[int]]:
    """Indices of the sequences of each row. Trees hold at most `budget` tokens each, and are as even as possible.

    Neighbours in sorted order stay together, since they share most. A sequence longer than `budget` gets its own row.
    groups: the group of each sequence; those of one group are never in different rows.
    """
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    units = together(_order(arrays), groups)
    order = [number for unit in units for number in unit]
    shared = dict(zip(order, _shared([arrays[number] for number in order]), strict=True))
    # Tokens that a unit adds after others in a row, and tokens that it has at the beginning of a row.
    added = [sum(len(arrays[number]) - shared[number] for number in unit) for unit in units]
    alone = [more + shared[unit[0]] for more, unit in zip(added, units, strict=True)]

    def split(limit: int) -> list[list[int]]:
        rows: list[list[int]] = []
        filled = limit + 1
        for unit, more, whole in zip(units, added, alone, strict=True):
            filled += more
            if filled > limit:
                rows.append([])
                filled = whole
            rows[-1] += unit
        return rows

    count = len(split(budget))
    even = bisect.bisect_left(range(budget), True, key=lambda limit: len(split(limit)) <= count)
    return split(even)


def together(order: Iterable[int], groups: Sequence[int] | None) -> list[list[int]]:
    """`order` by group, each at the position of its first index. Without groups, each index is its own group."""
    units: dict[int, list[int]] = {}
    for number in order:
        units.setdefault(number if groups is None else groups[number], []).append(number)
    return list(units.values())


def key_copies(end: np.ndarray, tiles: int, longest: int = 0) -> tuple[int, int]:
    """(prefix, copies): how `block_mask` should repeat the keys of the row's root, the tokens that all others see.

    Flex attention's backward pass goes through all queries of a tile of keys one after the other. For the root's keys
    that takes longer than everything else together. So each copy of them serves only `tiles` tiles of queries of a row
    of `longest` tokens. Shorter rows have as many copies, because layers are compiled anew for another number of them:
    half as many, and so on, only where a copy would serve fewer queries than it has keys.
    """
    root = int(np.argmax(end != end[0])) if (end != end[0]).any() else len(end)
    prefix, count = -(-root // BLOCK) * BLOCK, len(end) // BLOCK
    copies = max(1, max(len(end), longest) // (tiles * BLOCK))
    while copies > 1 and -(-count // copies) * BLOCK < prefix:
        copies //= 2
    return prefix, copies


def visible(depth: torch.Tensor, end: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """(n, n) bool, [q, k]: whether token q sees token k, at most `window` - 1 depths above it."""
    every = torch.arange(len(end), device=end.device)
    return visible_part(depth, end, window, every, every)


def visible_part(
    depth: torch.Tensor, end: torch.Tensor, window: int | None, queries: torch.Tensor, keys: torch.Tensor
) -> torch.Tensor:
    """(queries, keys) bool: `visible` for these positions alone."""
    at = queries[:, None]
    seen = (keys[None, :] <= at) & (at < end[keys][None, :])
    if window is not None:
        seen &= depth[queries][:, None] - depth[keys][None, :] < window
    return seen


def block_mask(
    depth: torch.Tensor, end: torch.Tensor, window: int | None = None, prefix: int = 0, copies: int = 1
) -> BlockMask:
    """`visible` for flex attention, computed by whole tiles: no (n, n) tensor is made. BLOCK divides n.

    prefix, copies: the first `prefix` keys are repeated in front `copies` - 1 times, and each copy serves its part of
    the queries. The mask is then that of n + prefix · (copies - 1) keys.

    Key k is seen by the queries from start[k] up to stop[k]. A tile is partial when some query may see some key of it,
    and full when every query sees every key.
    """
    count = len(end) // BLOCK
    assert count * BLOCK == len(end), f"a row of {len(end)} tokens is no multiple of {BLOCK}"
    part = -(-count // copies) * BLOCK
    assert prefix <= part, (prefix, part)
    start, stop, above = torch.arange(len(end), device=end.device), end.clone(), depth
    if copies > 1:
        turns = torch.arange(1, copies, device=end.device).repeat_interleave(prefix) * part
        stop[:prefix] = end[:prefix].clamp(max=part)
        start = torch.cat([turns, start])
        stop = torch.cat([torch.minimum(end[:prefix].repeat(copies - 1), turns + part), stop])
        above = torch.cat([depth[:prefix].repeat(copies - 1), depth])
    starts, stops, aboves, depths = (value.view(-1, BLOCK) for value in (start, stop, above, depth))
    first = torch.arange(count, device=end.device)[:, None] * BLOCK
    some = (starts.amin(1) < first + BLOCK) & (stops.amax(1) > first)
    whole = (starts.amax(1) <= first) & (stops.amin(1) >= first + BLOCK)
    if window is not None:
        some &= depths.amin(1)[:, None] - aboves.amax(1) < window
        whole &= depths.amax(1)[:, None] - aboves.amin(1) < window

    def seen(batch: Any, head: Any, q: Any, k: Any) -> Any:
        inside = (start[k] <= q) & (q < stop[k])
        return inside if window is None else inside & (depth[q] - above[k] < window)

    return BlockMask.from_kv_blocks(
        *_tiles(some & ~whole), *_tiles(whole), BLOCK_SIZE=BLOCK, mask_mod=seen, seq_lengths=(len(end), len(start))
    )


def attention_mask(
    config: Any,
    depth: torch.Tensor,
    end: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    copies: tuple[int, int] | None = None,
) -> Any:
    """The `attention_mask` of a Hugging Face causal model for a row, with `position_ids=depth[None]`.

    copies: (prefix, copies) of a `block_mask`, for an attention that repeats its keys and values in this way; the
    result is then a `BlockMask`, whatever the config's attention.

    Returns one mask, or one for each layer type where the config has them: bool for sdpa, added scores in `dtype` for
    eager, a `BlockMask` for flex attention. ValueError for layers that a tree cannot branch (`obstacle`).
    """
    if why := obstacle(config):
        raise ValueError(why)
    config = _text(config)
    types = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if not types:
        return _one_mask(config, depth, end, dtype, window, copies)
    return {
        kind: _one_mask(config, depth, end, dtype, window if kind == "sliding_attention" else None, copies)
        for kind in types
    }


def window_of(config: Any, layer: int) -> int | None:
    """How many depths a layer's tokens see, themselves counted; None where they see all."""
    config = _text(config)
    types = getattr(config, "layer_types", None)
    if types and types[layer] != "sliding_attention":
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window


def obstacle(config: Any) -> str:
    """Why a config's layers cannot branch (some carry a state along the row); "" when all can."""
    strange = sorted(set(getattr(_text(config), "layer_types", None) or ()) - set(LAYER_TYPES))
    if not strange:
        return ""
    return f"{config.model_type}: layers of type {', '.join(strange)} cannot branch; {', '.join(LAYER_TYPES)} can"


def pad(tree: Tree, length: int, pad_id: int) -> Tree:
    """The tree's row filled up to `length` tokens; each added token sees only itself, and no other token sees it."""
    fill = np.arange(len(tree), length)
    return Tree(
        np.concatenate([tree.ids, np.full(len(fill), pad_id)]),
        np.concatenate([tree.depth, np.zeros(len(fill), np.int64)]),
        np.concatenate([tree.end, fill + 1]),
        tree.paths,
    )


def _text(config: Any) -> Any:
    """The config of the text model, where a model has other parts, too."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _one_mask(
    config: Any,
    depth: torch.Tensor,
    end: torch.Tensor,
    dtype: torch.dtype,
    window: int | None,
    copies: tuple[int, int] | None,
) -> Any:
    kind = config._attn_implementation.removeprefix("tree-")  # src/tree/branches.py
    if kind == "flex_attention" or copies:
        return block_mask(depth, end, window, *(copies or ()))
    seen = visible(depth, end, window)[None, None]
    if kind == "sdpa":
        return seen
    if kind == "eager":
        return torch.zeros(seen.shape, dtype=dtype, device=end.device).masked_fill_(~seen, torch.finfo(dtype).min)
    raise ValueError(
        f"there is no tree mask for the attention implementation {kind!r}; eager, sdpa and flex_attention have one"
    )


def _order(arrays: Sequence[np.ndarray]) -> list[int]:
    """Indices of the sequences in lexicographic order. Big-endian bytes sort like non-negative numbers."""
    return sorted(range(len(arrays)), key=lambda number: arrays[number].astype(">i8").tobytes())


def _shared(ordered: Sequence[np.ndarray]) -> list[int]:
    """For each sequence, the length of the prefix that it shares with the one before it."""
    shared = [0]
    for one, other in itertools.pairwise(ordered):
        length = min(len(one), len(other))
        differ = np.flatnonzero(one[:length] != other[:length])
        shared.append(int(differ[0]) if len(differ) else length)
    return shared


def _tiles(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(counts, indices) of the chosen tiles of each row of tiles, as `BlockMask` wants them."""
    indices = torch.argsort(chosen.int(), dim=1, descending=True, stable=True)
    return chosen.sum(1, dtype=torch.int32)[None, None], indices.to(torch.int32)[None, None]
