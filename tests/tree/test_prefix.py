"""The tree against its definition, and models on its rows against models on the sequences one by one."""

import itertools
import random
import re
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.flex_attention as flex
import transformers.integrations.flex_attention as hf_flex
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3NextConfig,
)

from src.tree import prefix as tree
from src.tree.prefix import BLOCK, Tree, attention_mask, block_mask, build, key_copies, pack, pad, visible

WORDS = 97
WINDOW = 24  # bites inside every sequence of `examples`

# Few words and short sequences: prefixes, duplicates and one sequence inside another are common.
forests = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12)


def seen(row: Tree, window: int | None = None) -> np.ndarray:
    return visible(torch.from_numpy(row.depth), torch.from_numpy(row.end), window).numpy()


@given(forests)
def test_a_row_holds_each_prefix_once_and_each_path_its_sequence(sequences: list[list[int]]) -> None:
    row = build(sequences)
    assert len(row) == len({tuple(one[: end + 1]) for one in sequences for end in range(len(one))})
    for one, path in zip(sequences, row.paths, strict=True):
        assert row.ids[path].tolist() == one
        assert row.depth[path].tolist() == list(range(len(one)))
        assert (np.diff(path) > 0).all()


@given(forests, st.one_of(st.none(), st.integers(1, 9)))
def test_a_token_sees_what_stands_before_it_in_its_sequence(sequences: list[list[int]], window: int | None) -> None:
    row = build(sequences)
    expected = np.zeros((len(row), len(row)), dtype=bool)
    for path in row.paths:
        for place, token in enumerate(path):
            first = 0 if window is None else max(0, place - window + 1)
            expected[token, path[first : place + 1]] = True
    assert (seen(row, window) == expected).all()


@given(forests, st.integers(0, 5))
def test_padding_is_seen_by_nobody_and_sees_itself(sequences: list[list[int]], more: int) -> None:
    row = build(sequences)
    padded = seen(pad(row, len(row) + more, 0))
    assert (padded[: len(row), : len(row)] == seen(row)).all()
    assert (padded[len(row) :] == np.eye(len(row) + more, dtype=bool)[len(row) :]).all()
    assert not padded[: len(row), len(row) :].any()


@given(forests, st.integers(1, 30))
def test_packing_keeps_every_sequence_and_the_budget(sequences: list[list[int]], budget: int) -> None:
    rows = pack(sequences, budget)
    assert sorted(number for row in rows for number in row) == list(range(len(sequences)))
    for row in rows:
        assert len(row) == 1 or len(build([sequences[number] for number in row])) <= budget
    if budget >= sum(map(len, sequences)):
        assert len(rows) == 1


def test_packing_keeps_what_is_alike_together() -> None:
    one, other = [1] * 50, [2] * 50
    sequences = [[*start, 3 + number] for number in range(4) for start in (one, other)]
    assert sorted(sorted(row) for row in pack(sequences, 60)) == [[0, 2, 4, 6], [1, 3, 5, 7]]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=7), st.integers(1, 30))
def test_packing_takes_the_fewest_rows_and_then_the_most_even(sequences: list[list[int]], budget: int) -> None:
    def tokens(row: Sequence[int]) -> int:
        return len(build([sequences[number] for number in row]))

    def cost(rows: Sequence[Sequence[int]]) -> tuple[int, int]:
        """How many rows, and the largest of those that hold more than one sequence, which alone could be emptied."""
        return len(rows), max((tokens(row) for row in rows if len(row) > 1), default=0)

    order = sorted(range(len(sequences)), key=lambda number: sequences[number])
    costs = []
    for cuts in itertools.product([False, True], repeat=len(order) - 1):
        places = [0, *(place for place, cut in enumerate(cuts, 1) if cut), len(order)]
        rows = [order[first:last] for first, last in itertools.pairwise(places)]
        if all(len(row) == 1 or tokens(row) <= budget for row in rows):
            costs.append(cost(rows))
    assert cost(pack(sequences, budget)) == min(costs)


def test_rows_are_filled_evenly_by_hand() -> None:
    sequences = [[number] * 4 for number in range(9)]
    # Greedily 7, 2: 28 and 8 tokens.
    assert [len(row) for row in pack(sequences, 28)] == [5, 4]
    assert [len(row) for row in pack([*sequences, [9] * 40], 28)] == [5, 4, 1]


@pytest.mark.parametrize("sequences", [[], [[]], [[1], []]])
def test_there_is_no_tree_of_nothing(sequences: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        build(sequences)


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([None, 40, 200]))
def test_tiles_are_those_of_the_definition(rng: random.Random, window: int | None) -> None:
    base = [rng.randrange(5) for _ in range(150)]
    sequences = [
        base[: rng.randint(1, 150)] + [rng.randrange(50) for _ in range(rng.randint(1, 200))]
        for _ in range(rng.randint(1, 12))
    ]
    row = build(sequences)
    row = pad(row, -(-len(row) // BLOCK) * BLOCK, 0)
    depth, end = torch.from_numpy(row.depth), torch.from_numpy(row.end)
    mask = block_mask(depth, end, window)
    count = len(row) // BLOCK
    tiles = visible(depth, end, window).view(count, BLOCK, count, BLOCK).transpose(1, 2)
    partial, whole = torch.zeros(count, count, dtype=torch.bool), torch.zeros(count, count, dtype=torch.bool)
    for q in range(count):
        partial[q, mask.kv_indices[0, 0, q, : mask.kv_num_blocks[0, 0, q]].long()] = True
        whole[q, mask.full_kv_indices[0, 0, q, : mask.full_kv_num_blocks[0, 0, q]].long()] = True
    assert not (partial & whole).any()
    assert (tiles.any(-1).any(-1) <= (partial | whole)).all()
    assert (whole <= tiles.all(-1).all(-1)).all()
    if window is None:
        assert torch.equal(tiles.any(-1).any(-1), partial | whole)
        assert torch.equal(tiles.all(-1).all(-1), whole)
    index = torch.arange(len(row))
    assert torch.equal(mask.mask_mod(0, 0, index[:, None], index[None, :]), visible(depth, end, window))


def random_row(rng: random.Random, roots: int) -> Tree:
    """A row of whole tiles, of sequences that leave one of `roots` trunks at any place."""
    trunks = [[10 * root, *(rng.randrange(5) for _ in range(rng.randint(0, 400)))] for root in range(roots)]
    sequences = []
    for _ in range(rng.randint(1, 12)):
        trunk = rng.choice(trunks)
        sequences.append(trunk[: rng.randint(1, len(trunk))] + [rng.randrange(50) for _ in range(rng.randint(1, 250))])
    row = build(sequences)
    return pad(row, (-(-len(row) // BLOCK) + rng.randint(0, 1)) * BLOCK, 0)


def listed(numbers: torch.Tensor, indices: torch.Tensor, columns: int) -> torch.Tensor:
    """(rows, columns) bool, of tiles: those that a `BlockMask` lists."""
    found = torch.zeros(len(numbers[0, 0]), columns, dtype=torch.bool)
    for row, count in enumerate(numbers[0, 0].tolist()):
        found[row, indices[0, 0, row, :count].long()] = True
    return found


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([None, 40, 200]), st.integers(1, 4), st.booleans())
def test_every_query_sees_one_copy_of_each_key(
    rng: random.Random, window: int | None, copies: int, spreads: bool
) -> None:
    row = random_row(rng, rng.randint(1, 3))
    depth, end = torch.from_numpy(row.depth), torch.from_numpy(row.end)
    count = len(row) // BLOCK
    prefix = rng.randint(0, -(-count // copies)) * BLOCK
    if spreads:
        prefix, copies = key_copies(row.end, rng.randint(1, 3))
    mask = block_mask(depth, end, window, prefix, copies)
    # The repeated keys stand in front; `origin` names the key that each is a copy of.
    origin = torch.cat([*[torch.arange(prefix)] * (copies - 1), torch.arange(len(row))])
    assert mask.seq_lengths == (len(row), len(origin))
    tiles = len(origin) // BLOCK
    whole = listed(mask.full_kv_num_blocks, mask.full_kv_indices, tiles)
    partial = listed(mask.kv_num_blocks, mask.kv_indices, tiles)
    assert not (whole & partial).any()
    # The backward pass goes by the lists of the keys' tiles.
    assert torch.equal(listed(mask.full_q_num_blocks, mask.full_q_indices, count), whole.T)
    assert torch.equal(listed(mask.q_num_blocks, mask.q_indices, count), partial.T)
    whole, partial = (one.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1) for one in (whole, partial))
    by_pairs = mask.mask_mod(0, 0, torch.arange(len(row))[:, None], torch.arange(len(origin))[None, :])
    assert by_pairs[whole].all(), "a tile that is seen whole has no pair that is not seen"
    assert not by_pairs[~whole & ~partial].any(), "a tile that is skipped has no pair that is seen"
    times = torch.zeros(len(row), len(row), dtype=torch.int).index_add_(1, origin, (by_pairs & (whole | partial)).int())
    assert torch.equal(times, visible(depth, end, window).int())


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 6), st.integers(1, 2))
def test_what_all_see_is_repeated_for_so_many_tiles_of_queries(rng: random.Random, tiles: int, roots: int) -> None:
    row = random_row(rng, roots)
    prefix, copies = key_copies(row.end, tiles)
    count = len(row) // BLOCK
    part = -(-count // copies) * BLOCK
    assert prefix % BLOCK == 0 and BLOCK <= prefix <= part
    assert copies == 1 or part >= tiles * BLOCK
    most = max(1, count // tiles)
    assert copies in [most >> halved for halved in range(6)]
    assert (
        copies == most or -(-count // (2 * copies)) * BLOCK < prefix or -(-count // (2 * copies + 1)) * BLOCK < prefix
    )
    if roots == 1:
        real = len(set(np.concatenate(row.paths).tolist()))
        by_all = seen(row)[:real, :real].sum(0) == np.arange(real, 0, -1)
        root = real if by_all.all() else int(np.argmin(by_all))
        assert prefix == -(-root // BLOCK) * BLOCK


def test_copies_by_hand() -> None:
    # 130 tokens that all see, and 24 branches of 120: 3,010 tokens in 24 tiles.
    row = build([[0] * 130 + [branch] * 120 for branch in range(1, 25)])
    row = pad(row, 24 * BLOCK, 0)
    assert key_copies(row.end, 6) == (2 * BLOCK, 4)
    assert key_copies(row.end, 24) == (2 * BLOCK, 1)
    assert key_copies(row.end, 1) == (2 * BLOCK, 12), "a copy serves at least as many queries as it has keys"
    assert key_copies(row.end, 6, 30 * BLOCK) == (2 * BLOCK, 5), "as many as in the longest row"
    short = pad(build([[0] * 130 + [branch] * 120 for branch in (1, 2, 3)]), 4 * BLOCK, 0)
    assert key_copies(short.end, 6, 30 * BLOCK) == (2 * BLOCK, 2), "5 copies would serve one tile of queries each"
    alone = build([[0] * 300])
    assert key_copies(alone.end, 1) == (3 * BLOCK, 1)


# ---- models on rows


def network(kind: str, attention: str, lora: bool = False) -> Any:
    """A small random model; weights larger than usual, so that attention patterns and softcaps matter."""
    shape: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512}
    softcaps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16}
    config = {
        "llama": lambda: LlamaConfig(**shape),
        "mistral": lambda: MistralConfig(**shape, sliding_window=WINDOW),
        "qwen2": lambda: Qwen2Config(**shape, tie_word_embeddings=True),
        "qwen2-window": lambda: Qwen2Config(
            **shape, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2
        ),
        "gemma2": lambda: Gemma2Config(**shape, **softcaps, sliding_window=WINDOW),
    }[kind]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    if lora:
        model = get_peft_model(
            model, LoraConfig(r=6, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 or "bias" in name:  # LoRA's B too, whose zeros would hide A's gradient
                parameter.normal_(0, 0.12)
    return model.train()


def examples(groups: Sequence[int] = (3, 2, 1)) -> list[tuple[list[int], int]]:
    """(tokens, where the answer starts): system, dialogue, question, answer; the last one is there twice."""
    rng = random.Random(1)

    def words(count: int) -> list[int]:
        return [rng.randrange(3, WORDS) for _ in range(count)]

    made, system = [], words(37)
    for group, items in enumerate(groups):
        dialogue = words(20 + 3 * group)
        for item in range(items):
            prompt = system + dialogue + words(9 + item) + words(12 - item)
            made.append((prompt + words(3 + item), len(prompt)))
    return [*made, made[-1]]


def terms(made: Sequence[tuple[list[int], int]], per_item: bool) -> list[tuple[int, int, int, float]]:
    """(sequence, place of the predicting token, target, weight) of every supervised token."""
    total = sum(len(ids) - start for ids, start in made)
    return [
        (number, place - 1, ids[place], 1 / (len(ids) - start) / len(made) if per_item else 1 / total)
        for number, (ids, start) in enumerate(made)
        for place in range(start, len(ids))
    ]


def one_by_one(model: Any, made: Sequence[tuple[list[int], int]], per_item: bool) -> torch.Tensor:
    """Backward through the weighted loss, each sequence alone; the logits of the supervised places."""
    logits = []
    for number, (ids, _) in enumerate(made):
        chosen = [term for term in terms(made, per_item) if term[0] == number]
        out = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, [term[1] for term in chosen]]
        losses = torch.nn.functional.cross_entropy(out, torch.tensor([term[2] for term in chosen]), reduction="none")
        (losses * torch.tensor([term[3] for term in chosen])).sum().backward()
        logits.append(out.detach())
    return torch.cat(logits)


def as_a_row(model: Any, made: Sequence[tuple[list[int], int]], per_item: bool, length: int = 0) -> torch.Tensor:
    row = build([ids for ids, _ in made])
    wanted = terms(made, per_item)
    source = torch.tensor([int(row.paths[number][place]) for number, place, _, _ in wanted])
    row = pad(row, max(length, len(row)), 0)
    depth, end = torch.from_numpy(row.depth), torch.from_numpy(row.end)
    config = (model.get_base_model() if hasattr(model, "get_base_model") else model).config
    out = model(
        input_ids=torch.from_numpy(row.ids)[None],
        position_ids=depth[None],
        attention_mask=attention_mask(config, depth, end, torch.float32),
        logits_to_keep=source,
        use_cache=False,
    ).logits[0]
    losses = torch.nn.functional.cross_entropy(out, torch.tensor([term[2] for term in wanted]), reduction="none")
    (losses * torch.tensor([term[3] for term in wanted])).sum().backward()
    return out.detach()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def assert_same(one: Any, other: Any, logits: torch.Tensor, others: torch.Tensor) -> None:
    assert (logits - others).abs().max() < 2e-5
    expected, found = gradients(one), gradients(other)
    assert expected.keys() == found.keys() and expected
    for name, value in expected.items():
        assert (value - found[name]).abs().max() < 5e-6, name


MODELS = [
    ("llama", "sdpa", True),
    ("llama", "eager", False),
    ("mistral", "sdpa", False),
    ("qwen2", "sdpa", False),
    ("qwen2-window", "sdpa", True),
    ("qwen2-window", "eager", False),
    ("gemma2", "eager", True),
]
"""Each by default with adapters or without; the other way is thorough."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "attention", "lora"),
    [
        *MODELS,
        *(pytest.param(kind, attention, not lora, marks=pytest.mark.thorough) for kind, attention, lora in MODELS),
    ],
)
def test_logits_and_gradients_are_those_of_the_sequences_alone(kind: str, attention: str, lora: bool) -> None:
    for per_item in (False, True):
        alone, together = network(kind, attention, lora), network(kind, attention, lora)
        logits = one_by_one(alone, examples(), per_item)
        assert_same(alone, together, logits, as_a_row(together, examples(), per_item))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("kind", "attention"), [("llama", "sdpa"), ("gemma2", "eager")])
def test_activation_checkpointing_changes_nothing(kind: str, attention: str, reentrant: bool) -> None:
    alone, together = network(kind, attention, lora=True), network(kind, attention, lora=True)
    together.enable_input_require_grads()
    together.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
    logits = one_by_one(alone, examples(), True)
    assert_same(alone, together, logits, as_a_row(together, examples(), True))


def test_six_steps_end_in_the_same_weights() -> None:
    models = [network("llama", "sdpa", lora=True) for _ in range(2)]
    for model, through in zip(models, (one_by_one, as_a_row), strict=True):
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)
        for step in range(6):
            through(model, examples((2, 1, 1 + step % 3)), True)
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert (one - other).abs().max() < 1e-5


@pytest.mark.skipif(not shutil.which("g++"), reason="flex attention is compiled on a CPU, which needs a C++ compiler")
def test_flex_attention_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    plain, flexible = network("gemma2", "eager"), network("gemma2", "flex_attention")
    logits = one_by_one(plain, examples(), True)
    made = examples()
    row = build([ids for ids, _ in made])
    source = torch.tensor([int(row.paths[number][place]) for number, place, _, _ in terms(made, True)])
    row = pad(row, -(-len(row) // BLOCK) * BLOCK, 0)
    depth, end = torch.from_numpy(row.depth), torch.from_numpy(row.end)
    mask = attention_mask(flexible.config, depth, end, torch.float32)
    with torch.no_grad():
        out = flexible(
            input_ids=torch.from_numpy(row.ids)[None],
            position_ids=depth[None],
            attention_mask=mask,
            logits_to_keep=source,
            use_cache=False,
        ).logits[0]
    assert (out - logits).abs().max() < 1e-4


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("llama", marks=pytest.mark.thorough),
        pytest.param("qwen2-window", marks=pytest.mark.thorough),
        "gemma2",
    ],
)
def test_flex_attention_learns_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch refuses flex attention's backward on a CPU; its definition, compiled by aot_eager, has one.
    torch._dynamo.reset()
    monkeypatch.setattr(flex, "_validate_device", lambda query, key, value: None)
    compiled = torch.compile(flex.flex_attention, backend="aot_eager")
    monkeypatch.setattr(
        hf_flex,
        "compile_friendly_flex_attention",
        lambda query, key, value, training=False, **more: compiled(query, key, value, **more),
    )
    plain, flexible = network(kind, "eager"), network(kind, "flex_attention")
    logits = one_by_one(plain, examples(), True)
    assert_same(plain, flexible, logits, as_a_row(flexible, examples(), True, length=2 * BLOCK))


def test_layers_with_a_state_are_refused_by_name() -> None:
    config = Qwen3NextConfig(num_hidden_layers=4)
    ones = torch.ones(3, dtype=torch.long)
    with pytest.raises(ValueError, match="linear_attention"):
        attention_mask(config, ones, ones, torch.float32)
    config = LlamaConfig()
    config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2"):
        attention_mask(config, ones, ones, torch.float32)


def test_what_a_model_of_pictures_and_texts_reads_of_texts() -> None:
    # Its config keeps the layers' types and windows with the part that reads text.
    shape: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16}
    pictures = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=shape | {"sliding_window": WINDOW, "initializer_range": 0.2}, vision_config=pictures
    )
    assert "sliding_attention" in config.text_config.layer_types
    torch.manual_seed(0)
    models = [AutoModelForCausalLM.from_config(config, attn_implementation="sdpa") for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    logits = one_by_one(models[0], examples(), True)
    assert_same(*models, logits, as_a_row(models[1], examples(), True))


def test_the_example_is_true() -> None:
    assert tree.__doc__ is not None
    lines = tree.__doc__[tree.__doc__.index("    row = build(") :].split("\n\n")[0]
    code = "\n".join(line.removeprefix("    ") for line in lines.splitlines())
    sequences = [ids for ids, _ in examples()]
    one, other = network("qwen2-window", "sdpa", lora=True), network("qwen2-window", "sdpa", lora=True)
    names = {**vars(tree), "torch": torch, "model": one, "sequences": sequences}
    exec(code, names)
    names["loss"].backward()
    logits = [other(input_ids=torch.tensor([ids])).logits[0, -3:-1] for ids in sequences]
    targets = torch.tensor([token for ids in sequences for token in ids[-2:]])
    loss = torch.nn.functional.cross_entropy(torch.cat(logits), targets)
    loss.backward()
    assert names["loss"].item() == pytest.approx(loss.item(), abs=1e-6)
    assert_same(one, other, names["out"].logits[0].detach(), torch.cat(logits).detach())


def test_the_drawing_is_true() -> None:
    row = build([list(map(ord, word)) for word in ("abc", "abde", "abd", "af")])
    assert "".join(map(chr, row.ids)) == "abcdef"
    assert row.depth.tolist() == [0, 1, 2, 2, 3, 1]
    assert row.end.tolist() == [6, 5, 3, 5, 5, 6]
    assert tree.__doc__ is not None
    written = dict(re.findall(r"(depth|end) +((?:\d  ?)+\d)$", tree.__doc__, re.MULTILINE))
    assert written["depth"].split() == [str(value) for value in row.depth]
    assert written["end"].split() == [str(value) for value in row.end]
    drawn = [line.count("■") for line in tree.__doc__.splitlines() if "■" in line]
    assert drawn == seen(row).sum(1).tolist()
