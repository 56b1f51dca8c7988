"""Rows of a tree by blocks of attention: the same as each sequence alone, with fewer pairs of tokens."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.tree import branches, prefix
from src.tree.rows import Layout, Term
from tests import toys
from tests.made_sequences import gradients, read

TREE, PADDED = Layout("tree", 10**6, 0), Layout("padded", 10**6, 0)
trees = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40), min_size=1, max_size=12)


def sequences(short: str) -> tuple[list[list[int]], list[Term]]:
    """Three dialogues of four items behind one beginning, with terms in all their parts."""
    draw = np.random.default_rng(3)
    size = toys.network(short).config.vocab_size

    def tokens(count: int) -> list[int]:
        return draw.integers(5, size, count).tolist()

    start = tokens(40)
    dialogues = [start + tokens(60 + 30 * number) for number in range(3)]
    found = [dialogue + tokens(25) for dialogue in dialogues for _ in range(4)]
    return found, [
        Term(number, place, int(one[place]), 1 / place)
        for number, one in enumerate(found)
        for place in (30, 50, len(one) - 20, len(one) - 1)
    ]


@pytest.mark.parametrize("call", [0, 2_000])
@pytest.mark.parametrize("short", ["bllossom", "kogemma", "qwen2"])
def test_a_row_by_blocks_is_each_sequence_alone(short: str, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sequences(short)
    usual = toys.network(short)
    alone, right = read(usual, made, Layout("padded", 1, 0, sequences=1), train=True), gradients(usual)
    monkeypatch.setattr(branches, "CALL", call)
    monkeypatch.setattr(branches, "PIECE", 16)
    monkeypatch.setattr(prefix, "attention_mask", None)  # no mask of the whole row
    asked: list[int] = []
    init = branches.Blocks.__init__

    def noted(self: Any, *args: Any) -> None:
        init(self, *args)
        asked.append(len(self.blocks))

    monkeypatch.setattr(branches.Blocks, "__init__", noted)
    network = toys.network(short)
    torch.testing.assert_close(read(network, made, TREE, train=True), alone, atol=2e-5, rtol=0)
    for name, value in gradients(network).items():
        torch.testing.assert_close(value, right[name], atol=2e-5, rtol=1e-4)
    assert asked[0] > (12 if call == 0 else 2)
    # What is not a row of a tree, such a model computes as it did before.
    network.zero_grad()
    torch.testing.assert_close(read(network, made, PADDED, train=True), alone, atol=2e-5, rtol=0)


@settings(max_examples=200, deadline=None)
@given(trees, st.integers(0, 200), st.integers(1, 9))
def test_blocks_hold_all_that_is_seen(made: list[list[int]], call: int, piece: int) -> None:
    row = prefix.build(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branches, "CALL", call)
        patch.setattr(branches, "PIECE", piece)
        blocks = branches.Blocks(torch.from_numpy(row.depth), torch.from_numpy(row.end))
        assert sum(blocks.sizes) == len(row) and max(blocks.sizes) <= piece
        seen = prefix.visible(blocks.depth, blocks.end)
        where = torch.arange(len(row)).split(blocks.sizes)
        taken = 0
        for one, mask in zip(blocks.blocks, blocks.masks(None, torch.float32), strict=True):
            keys = torch.cat([where[number] for number in branches.pieces_of(one)])
            assert keys.tolist() == sorted(set(keys.tolist()))
            hidden = torch.ones(len(row), dtype=torch.bool)
            hidden[keys] = False
            assert not seen[one.start : one.stop, hidden].any()
            assert torch.equal(mask[0, 0] == 0, seen[one.start : one.stop, keys])
            assert len(keys) == row.depth[one.start] + one.stop - one.start
            taken += mask.numel() + call
        assert [(one.start, one.stop) for one in blocks.blocks] == list(
            itertools.pairwise([0, *(one.stop for one in blocks.blocks)])
        )
        assert branches.pairs(row.depth, row.end) == taken <= len(row) ** 2 + call


def test_the_fewest_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all ways to divide a small row."""
    monkeypatch.setattr(branches, "PIECE", 4)
    row = prefix.build([[1, 1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 1, 3, 3, 3, 4], [1, 1, 1, 1, 1, 3, 3, 3, 5, 5], [7, 8]])
    for call in (0, 5, 20, 1000):
        monkeypatch.setattr(branches, "CALL", call)
        bounds, _ = branches.divided(row.depth, row.end)
        inner = bounds[1:-1].tolist()
        found = []
        for some in itertools.chain.from_iterable(
            itertools.combinations(inner, count) for count in range(len(inner) + 1)
        ):
            cuts = [0, *some, len(row)]
            found.append(sum((b - a) * (row.depth[a] + b - a) + call for a, b in itertools.pairwise(cuts)))
        assert branches.pairs(row.depth, row.end) == min(found)


def test_windows_are_those_of_the_layers() -> None:
    gemma, qwen = toys.network("kogemma").config, toys.network("qwen2").config
    windows = [prefix.window_of(gemma, layer) for layer in range(gemma.num_hidden_layers)]
    assert set(windows) == {None, gemma.sliding_window}
    assert all(
        (window is not None) == (kind == "sliding_attention")
        for window, kind in zip(windows, gemma.layer_types, strict=True)
    )
    assert {prefix.window_of(qwen, layer) for layer in range(qwen.num_hidden_layers)} == {None}


def test_a_model_that_takes_no_attention_of_ours_has_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    network = toys.network("qwen2")
    monkeypatch.setattr(type(network), "_can_set_attn_implementation", classmethod(lambda cls: False))
    made = sequences("qwen2")
    right = read(network, made, PADDED)
    monkeypatch.setattr(branches, "Blocks", None)
    torch.testing.assert_close(read(network, made, TREE), right, atol=2e-5, rtol=0)
    assert network.config._attn_implementation == "sdpa"


def test_nothing_of_it_is_saved(tmp_path: Any) -> None:
    network = toys.network("qwen2")
    read(network, sequences("qwen2"), TREE)
    assert network.config._attn_implementation == branches.NAMES["sdpa"]
    network.save_pretrained(tmp_path)
    assert "tree-" not in (tmp_path / "config.json").read_text(encoding="utf-8")
