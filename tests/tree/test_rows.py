"""Rows against the sequences they are made of, and models on each kind of row against models on a padded batch."""

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as flex
import transformers.integrations.flex_attention as hf_flex
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from src.model.adapters import patch_lora_forward
from src.tree import prefix as tree
from src.tree import rows
from src.tree.prefix import BLOCK
from src.tree.rows import (
    ATTENTION,
    Layout,
    Row,
    Term,
    lay_out,
    lengths_for,
    logits_at,
    make_ready,
    make_usual,
    sizes,
    to_device,
    usually,
)
from tests import toys

CPU = torch.device("cpu")
PAD = 9
KINDS = ("tree", "single", "padded")

# Few words and short sequences: prefixes, duplicates and one sequence inside another are common.
forests = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12)


# Laid out


def as_lists(row: Row) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in row.items()}


SEQUENCES = [(1, 2, 3), (1, 2, 4, 5), (1, 2), (1, 2, 3), (7,)]
TERMS = [Term(1, 3, 50, 0.5), Term(1, 1, 51), Term(4, 0, 52, 2.0), Term(0, 2, 53), Term(3, 2, 54), Term(2, 1, 55)]


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


def contexts(row: Row) -> list[list[int]]:
    """What the model has read at each of the row's terms, in their order."""
    ids = row["input_ids"]
    if "end" not in row:
        return [ids[number, : place + 1].tolist() for number, place in row["source"].nonzero().tolist()]
    sees = tree.visible(row["depth"], row["end"])
    return [ids[0, sees[source]].tolist() for source in row["source"].tolist()]


@given(
    wanted(),
    st.sampled_from(KINDS),
    st.integers(1, 30),
    st.one_of(st.none(), st.integers(1, 4)),
    st.sampled_from([(), (4,), (3, 6, 9, 40)]),
)
def test_each_term_stands_where_its_sequence_predicts(
    made: tuple[list[list[int]], list[Term]],
    kind: str,
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
    monkeypatch.setattr(rows.tree, "build", lambda chosen, build=tree.build: built.append(len(chosen)) or build(chosen))
    laid = lay_out([[1], [2], [3]], [], Layout("single", 1, PAD))
    assert built == []
    next(laid)
    assert built == [1]


# Lengths


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


# Models on rows


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("polar", {}),
    "qwen2": ("qwen2", {}),
    # One of the two layers looks 16 tokens back, of 60 and more.
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "gemma2": ("kogemma", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}),
}


def network(name: str, attention: str | None = None, **changes: Any) -> Any:
    short, values = NETWORKS[name]
    model = toys.network(short, **{**values, **changes})
    if attention:
        model.set_attn_implementation(attention)
    return model


def alike(root: int = 37, seed: int = 1, longer: int = 0) -> tuple[list[list[int]], list[Term]]:
    """Six sequences of 60 to 80 tokens that share `root` and more, the last twice, one inside another; three terms at
    the end of each, of weights that are not equal.
    """
    rng = random.Random(seed)

    def words(count: int) -> list[int]:
        return [rng.randrange(3, 90) for _ in range(count)]

    system, sequences = words(root), []
    for items in (3, 2, 1):
        dialogue = words(20 + longer)
        sequences += [system + dialogue + words(9 + 2 * item + longer) for item in range(items)]
    sequences += [sequences[-1], sequences[0][:-4]]
    terms = [
        Term(number, len(one) - back, rng.randrange(3, 90), rng.random())
        for number, one in enumerate(sequences)
        for back in (3, 2, 1)
    ]
    return sequences, terms


def read(model: Any, made: tuple[list[list[int]], list[Term]], layout: Layout, train: bool = False) -> torch.Tensor:
    """(terms, vocabulary): what `model` says at the terms, in the order of the sequences; with `train` also backward
    through their weighted loss.
    """
    found = {}
    for row in lay_out(*made, layout):
        row = to_device(row, model.device)
        with torch.set_grad_enabled(train):
            logits = logits_at(model, row)
            if train:
                losses = torch.nn.functional.cross_entropy(logits.float(), row["target"], reduction="none")
                (losses * row["weight"]).sum().backward()
        for context, sequence, values in zip(contexts(row), row["sequence"].tolist(), logits.detach(), strict=True):
            found[sequence, len(context)] = values
    assert len(found) == len(made[1])
    return torch.stack([found[key] for key in sorted(found)])


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


@pytest.fixture
def flex_with_gradients(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """torch refuses flex attention's backward on a CPU; its definition, compiled by aot_eager, has one. Notes the
    lengths of queries and keys of each call.
    """
    torch._dynamo.reset()
    monkeypatch.setattr(flex, "_validate_device", lambda query, key, value: None)
    compiled = torch.compile(flex.flex_attention, backend="aot_eager")
    seen: list[tuple[int, int]] = []

    def attend(query: Any, key: Any, value: Any, training: bool = False, **more: Any) -> Any:
        seen.append((query.shape[2], key.shape[2]))
        return compiled(query, key, value, **more)

    monkeypatch.setattr(hf_flex, "compile_friendly_flex_attention", attend)
    yield seen
    torch._dynamo.reset()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("name", ["qwen2-window", "gemma2"])
def test_repeated_keys_learn_the_same(
    name: str, flex_with_gradients: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "SPREAD", 1)
    made = alike(root=140, longer=20)
    plain, ours = network(name), network(name, ATTENTION)
    expected = read(plain, made, Layout("padded", 10**4, PAD), train=True)
    found = read(ours, made, Layout("tree", 10**4, PAD, (768,)), train=True)
    assert flex_with_gradients == [(768, 768 + 256 * 2)] * 2, "three copies of the first two tiles, in each layer"
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    wanted, got = gradients(plain), gradients(ours)
    assert wanted.keys() == got.keys() and wanted
    for parameter, value in wanted.items():
        assert (got[parameter] - value).abs().max() <= 1e-5 * value.abs().max() + 1e-6, parameter


def kept_bytes(model: Any, row: Row) -> int:
    """What autograd holds after a forward pass, weights aside."""
    weights = {one.untyped_storage().data_ptr() for one in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits_at(model, row)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(("name", "checkpointing"), [("llama", False), ("gemma2", True)])
def test_compiled_layers_learn_the_same(name: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made, layout = alike(), Layout("tree", 10**4, PAD, (384,))
    plain, ours = network(name).train(), network(name).train()
    expected = read(plain, made, Layout("padded", 10**4, PAD), train=True)
    with toys.compiled_on_a_cpu(monkeypatch):
        assert make_ready(ours, checkpointing)
        found = read(ours, made, layout, train=True)
        torch.testing.assert_close(read(ours, made, layout), found, atol=1e-5, rtol=1e-5)
        (row,) = lay_out(*made, layout)
        inputs = 2 * 384 * 64 * 4  # bytes: layers, tokens, values
        assert (kept_bytes(ours, row) < 4 * inputs) == checkpointing, "a layer's input alone, or 14 times as much"
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    wanted, got = gradients(plain), gradients(ours)
    assert wanted.keys() == got.keys() and wanted
    for parameter, value in wanted.items():
        assert (got[parameter] - value).abs().max() <= 1e-5 * value.abs().max() + 1e-6, parameter


def test_one_length_too_many_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "COMPILATIONS", 2)
    model, made = network("llama").train(), alike()
    with toys.compiled_on_a_cpu(monkeypatch):
        make_ready(model)
        for length in (384, 512):
            read(model, made, Layout("tree", 10**4, PAD, (length,)), train=True)
        with pytest.raises(Exception, match="recompile_limit"):
            read(model, made, Layout("tree", 10**4, PAD, (640,)), train=True)


@pytest.mark.skipif(not shutil.which("g++"), reason="flex attention is compiled on a CPU, which needs a C++ compiler")
def test_repeated_keys_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(rows, "SPREAD", 1)
    made, model = alike(root=140), network("llama")
    expected = read(model, made, Layout("padded", 10**4, PAD))
    model.set_attn_implementation(ATTENTION)
    layout = Layout("tree", 10**4, PAD, (512,))
    (row,) = lay_out(*made, layout)
    assert row["copies"] == (256, 2)
    torch.testing.assert_close(read(model, made, layout), expected, atol=1e-4, rtol=1e-4)


# What can and what cannot


@pytest.mark.parametrize(
    ("kind", "device", "why"),
    [
        ("llama", "cuda", ""),
        ("gemma2", "cuda", ""),
        ("mistral", "cpu", ""),
        ("rwkv", "cpu", "rwkv carries a state"),
        ("mamba", "cuda", "mamba carries a state"),
        ("bloom", "cpu", "bloom takes no positions"),
        ("lfm2", "cpu", "lfm2: layers of type conv cannot branch"),
        ("llama4_text", "cuda", "layers of type chunked_attention cannot branch"),
        ("gptj", "cuda", "gptj has no flex attention"),
        ("gptj", "cpu", ""),
    ],
)
def test_who_can_compute_rows(kind: str, device: str, why: str) -> None:
    more = {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2} if kind == "lfm2" else {}
    config = CONFIG_MAPPING[kind](**more)
    found = rows.obstacle(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config, torch.device(device))
    assert why in found and bool(why) == bool(found)


def test_dropout_in_attention_and_code_of_its_own_are_obstacles_on_a_gpu() -> None:
    config = CONFIG_MAPPING["llama"](attention_dropout=0.1)
    llama = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    assert "dropout in its attention" in rows.obstacle(llama, config, torch.device("cuda"))
    assert "no flex attention" in rows.obstacle(None, CONFIG_MAPPING["llama"](), torch.device("cuda"))
    assert rows.obstacle(llama, config, CPU) == rows.obstacle(None, config, CPU) == ""


# On a GPU and back


def test_on_a_cpu_nothing_is_made_ready() -> None:
    model = network("gemma2")
    assert not rows.rows_on_gpu(CPU) and not make_ready(model)
    assert model.config._attn_implementation == "eager"
    assert not any(layer._compiled_call_impl for layer in model.model.layers)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`make_ready` serves; what it sets in torch is set back."""
    monkeypatch.setattr(rows, "rows_on_gpu", lambda device: True)
    with toys.limits():
        yield


def adapted(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("wrap", [lambda model: model, adapted], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_what_is_made_ready_is_taken_back(name: str, wrap: Callable[[Any], Any]) -> None:
    model, made = wrap(network(name)), alike()
    usual = model.config._attn_implementation
    expected = read(model, made, Layout("padded", 10**4, PAD))
    layers = rows.causal_of(model).model.layers
    assert make_ready(model)
    compiled = [layer._compiled_call_impl for layer in layers]
    assert model.config._attn_implementation == ATTENTION and None not in compiled
    assert torch._dynamo.config.fail_on_recompile_limit_hit
    assert make_ready(model) and [layer._compiled_call_impl for layer in layers] == compiled, "once is enough"
    make_usual(model)
    assert model.config._attn_implementation == usual
    assert [layer._compiled_call_impl for layer in layers] == [None] * len(layers)
    torch.testing.assert_close(read(model, made, Layout("tree", 10**4, PAD)), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read(model, made, Layout("padded", 10**4, PAD)), expected, atol=0, rtol=0)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_first_layer_is_like_the_others() -> None:
    # LoRA's embeddings want no gradient; the layers are compiled for one kind of input.
    model = adapted(network("llama"))
    embeddings = rows.causal_of(model).get_input_embeddings()
    ids = torch.arange(5)[None]
    assert not embeddings(ids).requires_grad
    assert make_ready(model) and embeddings(ids).requires_grad
    with torch.no_grad():
        assert not embeddings(ids).requires_grad
    with torch.inference_mode():
        assert not embeddings(ids).requires_grad


@pytest.mark.usefixtures("as_on_a_gpu")
def test_taken_back_the_embeddings_are_as_they_were() -> None:
    model = adapted(network("llama"))
    embeddings = rows.causal_of(model).get_input_embeddings()
    for _ in range(2):
        make_ready(model)
        make_usual(model)
    assert len(embeddings._forward_hooks) == 0


@pytest.mark.parametrize(("name", "wrap"), [("llama", adapted), ("gemma2", lambda model: model)])
def test_the_usual_way_for_a_while(name: str, wrap: Callable[[Any], Any]) -> None:
    model, made = wrap(network(name)), alike()
    usual, layout = model.config._attn_implementation, Layout("padded", 10**4, PAD)
    expected = read(model, made, layout)
    causal = rows.causal_of(model)
    with usually(model):
        assert causal.config._attn_implementation == usual

    def refuse(*args: Any) -> Any:
        raise AssertionError("asked to compile")

    causal.set_attn_implementation(ATTENTION)
    for layer in causal.model.layers:
        layer.compile(backend=refuse)
    with usually(model):
        assert causal.config._attn_implementation == usual
        torch.testing.assert_close(read(model, made, layout), expected, atol=0, rtol=0)
    assert causal.config._attn_implementation == ATTENTION
    with pytest.raises(RuntimeError, match="on purpose"), usually(model):
        raise RuntimeError("on purpose")
    assert causal.config._attn_implementation == ATTENTION and all(
        one._compiled_call_impl for one in causal.model.layers
    )
    with pytest.raises(Exception, match="asked to compile"):
        read(model, made, layout)
    torch._dynamo.reset()


def test_moving_a_row_leaves_what_is_no_tensor() -> None:
    (row,) = lay_out(SEQUENCES, TERMS, Layout("tree", 100, PAD))
    moved = to_device(row, torch.device("meta"))
    assert moved.keys() == row.keys() and moved["copies"] == row["copies"]
    assert {value.device.type for value in moved.values() if isinstance(value, torch.Tensor)} == {"meta"}


@pytest.fixture
def compiler() -> Iterator[None]:
    """Nothing compiled before, and nothing set for good."""
    torch._dynamo.reset()
    with toys.limits():
        yield
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("name", "head_dim"), [("llama", 64), ("qwen2", 64), ("qwen2-window", 64), ("gemma2", 64), ("gemma2", 256)]
)
def test_compiled_rows_in_bf16(name: str, head_dim: int, checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "SPREAD", 1)
    values = {"hidden_size": 256, "intermediate_size": 512, "head_dim": head_dim, "initializer_range": 0.06}
    values |= {"query_pre_attn_scalar": head_dim} if name == "gemma2" else {}
    base = network(name, **values).to("cuda", torch.bfloat16)
    config = LoraConfig(r=6, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.data = torch.randn_like(parameter, dtype=torch.float32) * 0.05
    patch_lora_forward(model)
    model.train()
    made = alike(root=140, longer=20)
    targets = torch.tensor([term.target for term in sorted(made[1], key=lambda term: (term.sequence, term.place))])

    def learn(layout: Layout) -> tuple[torch.Tensor, float, float]:
        model.zero_grad(set_to_none=True)
        logits = read(model, made, layout, train=True).float().cpu()
        loss = torch.nn.functional.cross_entropy(logits, targets).item()
        return logits, loss, torch.stack([one.norm() for one in gradients(model).values()]).norm().item()

    alone = Layout("padded", 10**4, PAD, sequences=1)
    expected, loss, norm = learn(alone)
    assert make_ready(model, checkpointing)
    (row,) = lay_out(*made, Layout("tree", 10**4, PAD, (1024,)))
    assert row["copies"] == (256, 4)
    for layout in (Layout("tree", 10**4, PAD, (1024,)), Layout("single", 10**4, PAD, (384,))):
        found = learn(layout)
        assert (found[0][:, :3] - expected[:, :3]).abs().max() < 0.1
        assert found[1:] == (pytest.approx(loss, rel=0.05), pytest.approx(norm, rel=0.05))
    with usually(model):
        found = learn(alone)
        assert found[1:] == (pytest.approx(loss, rel=1e-3), pytest.approx(norm, rel=1e-3))
    assert expected[:, :3].std() > 0.1, "a model that says the same of everything shows nothing"
