"""Rows against the sequences they are made of, and models on each kind of row against models on a padded batch."""

from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.tree import prefix, rows
from src.tree.prefix import BLOCK
from src.tree.rows import Kind, Layout, Row, Term, assign, filled_tokens, lay_out, lengths_for, sizes, to_device
from tests.made_sequences import NETWORKS, PAD, alike, contexts, network, read

CPU = torch.device("cpu")
KINDS = get_args(Kind)

# Few words and short sequences: prefixes, duplicates and one sequence inside another are common.
forests = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12)
SEQUENCES = [(1, 2, 3), (1, 2, 4, 5), (1, 2), (1, 2, 3), (7,)]
TERMS = [Term(1, 3, 50, 0.5), Term(1, 1, 51), Term(4, 0, 52, 2.0), Term(0, 2, 53), Term(3, 2, 54), Term(2, 1, 55)]


def as_lists(row: Row) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in row.items()}


def test_a_tree_by_hand() -> None:
    (row,) = lay_out(SEQUENCES, TERMS, Layout("tree", 100, PAD))
    found = as_lists(row)
    assert found.pop("copies") == (BLOCK, 1)
    # In sorted order: 1 2 | 3 | 4 5 | 7. Terms by sequence; equal sequences share their place.
    assert found == {
        "input_ids": [[1, 2, 3, 4, 5, 7]],
        "depth": [0, 1, 2, 2, 3, 0],
        "end": [5, 5, 3, 5, 5, 6],
        "source": [1, 2, 2, 4, 1, 5],
        "sequence": [2, 0, 3, 1, 1, 4],
        "target": [55, 53, 54, 50, 51, 52],
        "weight": [1, 1, 1, 0.5, 1, 2],
    }
    assert row["weight"].dtype == torch.float32 and row["source"].dtype == row["target"].dtype == torch.int64
    (row,) = lay_out(SEQUENCES[:2], TERMS[:2], Layout("tree", 300, PAD, (128, 256)))
    assert row["input_ids"][0, :6].tolist() == [1, 2, 3, 4, 5, PAD] and row["input_ids"].shape == (1, 128)
    assert row["end"][:7].tolist() == [5, 5, 3, 5, 5, 6, 7] and row["source"].tolist() == [4, 1]


def test_single_sequences_by_hand() -> None:
    found = [as_lists(row) for row in lay_out(SEQUENCES, TERMS, Layout("single", 100, PAD))]
    assert [row["input_ids"] for row in found] == [[[1, 2, 4, 5]], [[1, 2, 3]], [[1, 2, 3]], [[1, 2]], [[7]]]
    assert [row["end"] for row in found] == [[4] * 4, [3] * 3, [3] * 3, [2] * 2, [1]]
    assert [(row["source"], row["sequence"], row["target"]) for row in found] == [
        ([3, 1], [1, 1], [50, 51]),
        ([2], [0], [53]),
        ([2], [3], [54]),
        ([1], [2], [55]),
        ([0], [4], [52]),
    ]


def test_a_padded_batch_by_hand() -> None:
    first, second, third = (as_lists(row) for row in lay_out(SEQUENCES, TERMS, Layout("padded", 8, PAD)))
    assert first == {
        "input_ids": [[1, 2, 4, 5], [1, 2, 3, PAD]],
        "source": [[False, True, False, True], [False, False, True, False]],
        # As the model gives them back: by place, not as they were asked for.
        "sequence": [1, 1, 0],
        "target": [51, 50, 53],
        "weight": [1, 0.5, 1],
    }
    assert second["input_ids"] == [[1, 2, 3], [1, 2, PAD]]
    assert third["input_ids"] == [[7]] and third["source"] == [[True]] and third["weight"] == [2]
    by_count = lay_out(SEQUENCES, TERMS, Layout("padded", 100, PAD, sequences=3))
    assert [row["input_ids"].tolist() for row in by_count] == [
        [[1, 2, 4, 5], [1, 2, 3, PAD], [1, 2, 3, PAD]],
        [[1, 2], [7, PAD]],
    ]


@st.composite
def wanted(draw: st.DrawFn) -> tuple[list[list[int]], list[Term]]:
    """Sequences, and terms in any order; a term's target is its number."""
    sequences = draw(forests)
    places = [(number, place) for number, one in enumerate(sequences) for place in range(len(one))]
    chosen = draw(st.lists(st.sampled_from(places), unique=True))
    weights = draw(st.lists(st.floats(0, 4, width=32), min_size=len(chosen), max_size=len(chosen)))
    return sequences, [Term(*place, target, weights[target]) for target, place in enumerate(chosen)]


@given(
    wanted(),
    st.sampled_from(KINDS),
    st.integers(1, 30),
    st.one_of(st.none(), st.integers(1, 4)),
    st.sampled_from([(), (4,), (3, 6, 9, 40)]),
)
def test_each_term_stands_where_its_sequence_predicts(
    made: tuple[list[list[int]], list[Term]],
    kind: Kind,
    tokens: int,
    most: int | None,
    lengths: tuple[int, ...],
) -> None:
    sequences, terms = made
    layout = Layout(kind, tokens, PAD, lengths if kind != "padded" else (), most)
    laid = list(lay_out(sequences, terms, layout))
    found = []
    for row in laid:
        assert len(row["sequence"]) == len(row["target"]) == len(row["weight"]) == len(contexts(row))
        for context, *term in zip(
            contexts(row), *(row[name].tolist() for name in ("sequence", "target", "weight")), strict=True
        ):
            number, target, weight = term
            assert terms[target] == Term(number, len(context) - 1, target, weight)
            assert context == sequences[number][: len(context)]
            found.append(target)
    assert sorted(found) == list(range(len(terms)))
    real = sizes(sequences, layout)
    assert len(real) == len(laid)
    for row, size in zip(laid, real, strict=True):
        width = row["input_ids"].shape[1]
        if kind == "padded":
            assert size == row["input_ids"].numel()
            assert size <= tokens or len(row["input_ids"]) == 1
            assert len(row["input_ids"]) <= (most or len(sequences))
            continue
        fitting = [length for length in lengths if length >= size]
        assert width == (size if not lengths else fitting[0] if fitting else -(-size // BLOCK) * BLOCK)
        assert (row["input_ids"][0, size:] == PAD).all() and not (row["input_ids"][0, :size] == PAD).any()
        assert kind == "single" or size <= tokens or size in map(len, sequences)
    if kind == "single":
        assert real == sorted(map(len, sequences), reverse=True)
    if kind == "padded" and most == 1:
        assert [row["input_ids"].shape[1] for row in laid] == sorted(map(len, sequences), reverse=True)


def test_padded_batches_are_as_large_as_they_may_be() -> None:
    sequences = [[1] * length for length in (5, 9, 3, 9, 1, 7, 2)]
    assert sizes(sequences, Layout("padded", 20, PAD)) == [18, 14, 9]
    assert sizes(sequences, Layout("padded", 20, PAD, sequences=1)) == [9, 9, 7, 5, 3, 2, 1]
    assert sizes(sequences, Layout("padded", 6, PAD)) == [9, 9, 7, 5, 6, 1]


@pytest.mark.parametrize("kind", ["tree", "single"])
@pytest.mark.parametrize("sequences", [[[]], [[1, 2], []]])
def test_a_sequence_of_nothing_is_refused(kind: str, sequences: list[list[int]]) -> None:
    layout = Layout(kind, 100, PAD)
    for ask in (lambda: list(lay_out(sequences, [], layout)), lambda: sizes(sequences, layout)):
        with pytest.raises(ValueError, match="at least one token"):
            ask()


def test_rows_are_made_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    monkeypatch.setattr(
        rows.prefix, "build", lambda chosen, build=prefix.build: built.append(len(chosen)) or build(chosen)
    )
    laid = lay_out([[1], [2], [3]], [], Layout("single", 1, PAD))
    assert built == []
    next(laid)
    assert built == [1]


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=6), st.integers(1, 3)), min_size=1, max_size=8),
    st.integers(1, 40),
    st.sampled_from(["tree", "single", "padded"]),
)
def test_groups_are_never_split_over_rows(prompts: list[tuple[list[int], int]], tokens: int, kind: str) -> None:
    sequences = [[*prompt, 7 + answer, 5] for prompt, answers in prompts for answer in range(answers)]
    groups = [item for item, (_, answers) in enumerate(prompts) for _ in range(answers)]
    layout = Layout(kind, tokens, 0, sequences=2)
    found = assign(sequences, layout, groups)
    assert sorted(number for row in found for number in row) == list(range(len(sequences)))
    for item in set(groups):
        assert len([row for row in found if any(groups[number] == item for number in row)]) == 1
    if kind == "tree":
        for row in found:
            whole = len(prefix.build([sequences[number] for number in row]))
            assert whole <= tokens or len({groups[number] for number in row}) == 1
    elif kind == "single":
        assert len(found) == len(prompts)
    assert len(sizes(sequences, layout, groups)) == len(found)


@given(st.lists(st.integers(1, 1200), min_size=1, max_size=12), st.sampled_from([0, 100, 400, 1000, 10**6]))
def test_lengths_cost_least(found: list[int], compiling: int) -> None:
    def cost(lengths: Sequence[int]) -> int:
        return compiling * len(lengths) + sum(min(one for one in lengths if one >= size) for size in found)

    lengths = lengths_for(found, compiling)
    assert list(lengths) == sorted(set(lengths))
    assert all(length % BLOCK == 0 for length in lengths)
    assert max(found) <= lengths[-1] < max(found) + BLOCK
    tiles = range(BLOCK, lengths[-1], BLOCK)
    subsets = [
        [one for place, one in enumerate(tiles) if chosen >> place & 1] + [lengths[-1]]
        for chosen in range(2 ** len(tiles))
    ]
    assert cost(lengths) == min(map(cost, subsets))


def test_lengths_by_hand() -> None:
    found = [100, 1000, 1000, 4000]
    assert lengths_for(found, 0) == (128, 1024, 4096)
    # To fill 100 up to 1,024 costs 896 tokens, a length more.
    assert lengths_for(found, 1000) == (1024, 4096)
    assert lengths_for(found, 10**6) == (4096,)
    assert lengths_for([1], 10**6) == (128,) and lengths_for([129], 0) == (256,)


def test_what_rows_hold_when_they_are_filled_up() -> None:
    assert filled_tokens([1, 128, 129, 1000, 1024], (128, 512, 1024)) == 128 + 128 + 512 + 1024 + 1024
    assert filled_tokens([], (128,)) == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_of_a_tree_say_what_padded_batches_say(name: str) -> None:
    model, made = network(name), alike()
    expected = read(model, made, Layout("padded", 10**4, PAD, sequences=1))
    assert expected.std() > 0.1, "a model that says the same of everything shows nothing"
    layouts = [
        Layout("padded", 10**4, PAD),
        Layout("tree", 10**4, PAD),
        Layout("tree", 10**4, PAD, (384,)),
        Layout("tree", 130, PAD),
        Layout("single", 10**4, PAD),
        Layout("single", 10**4, PAD, (128,)),
    ]
    for layout in layouts:
        torch.testing.assert_close(read(model, made, layout), expected, atol=1e-5, rtol=1e-5)
    sizes_of_trees = sizes(made[0], layouts[3])
    assert len(sizes_of_trees) > 1, "in several rows, too"


def test_the_window_bites() -> None:
    made = alike()
    wide, narrow = network("qwen2-window", sliding_window=512), network("qwen2-window")
    layout = Layout("tree", 10**4, PAD)
    assert (read(wide, made, layout) - read(narrow, made, layout)).abs().max() > 0.1


def test_moving_a_row_leaves_what_is_no_tensor() -> None:
    (row,) = lay_out(SEQUENCES, TERMS, Layout("tree", 100, PAD))
    moved = to_device(row, torch.device("meta"))
    assert moved.keys() == row.keys() and moved["copies"] == row["copies"]
    assert {value.device.type for value in moved.values() if isinstance(value, torch.Tensor)} == {"meta"}
