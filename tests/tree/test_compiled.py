"""Layers compiled for rows learn what the standard ones do, and the way there and back leaves nothing."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as flex
import transformers.integrations.flex_attention as hf_flex
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from src.model.adapters import patch_lora_forward
from src.model.causal import causal_of
from src.tree import compiled, rows
from src.tree.compiled import ATTENTION, make_ready, obstacle, restore_standard_layers, rows_on_gpu, standard_attention
from src.tree.rows import Layout, Row, lay_out, logits_at
from tests import toys
from tests.made_sequences import PAD, alike, gradients, network, read

CPU = torch.device("cpu")


@pytest.fixture
def flex_with_gradients(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """torch refuses flex attention's backward on a CPU; its definition, compiled by aot_eager, has one. Notes the
    lengths of queries and keys of each call.
    """
    torch._dynamo.reset()
    monkeypatch.setattr(flex, "_validate_device", lambda query, key, value: None)
    attention = torch.compile(flex.flex_attention, backend="aot_eager")
    seen: list[tuple[int, int]] = []

    def attend(query: Any, key: Any, value: Any, training: bool = False, **more: Any) -> Any:
        seen.append((query.shape[2], key.shape[2]))
        return attention(query, key, value, **more)

    monkeypatch.setattr(hf_flex, "compile_friendly_flex_attention", attend)
    yield seen
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["qwen2-window", pytest.param("gemma2", marks=pytest.mark.thorough)])
def test_repeated_keys_learn_the_same(
    name: str, flex_with_gradients: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "TILES_PER_COPY", 1)
    made = alike(root=140, longer=20)
    plain, ours = network(name), network(name, ATTENTION)
    expected = read(plain, made, Layout("padded", 10**4, PAD), train=True)
    found = read(ours, made, Layout("tree", 768, PAD, (768,)), train=True)
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "checkpointing"), [("llama", False), pytest.param("gemma2", True, marks=pytest.mark.thorough)]
)
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "checkpointing"), [("llama", True), pytest.param("gemma2", True, marks=pytest.mark.thorough)]
)
def test_layers_compiled_for_all_lengths_learn_the_same(
    name: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two compilations of Gemma2's two kinds of layers, and none for the next lengths, with as many copies of the keys.
    monkeypatch.setattr(compiled, "DYNAMIC", True)
    monkeypatch.setattr(compiled, "COMPILATIONS", 2 if name == "gemma2" else 1)
    made = alike()
    plain, ours = network(name).train(), network(name).train()
    expected = read(plain, made, Layout("padded", 10**4, PAD), train=True)
    with toys.compiled_on_a_cpu(monkeypatch):
        assert make_ready(ours, checkpointing)
        for length in (384, 512, 640):
            ours.zero_grad()
            found = read(ours, made, Layout("tree", 10**4, PAD, (length,)), train=True)
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
            wanted, got = gradients(plain), gradients(ours)
            assert wanted.keys() == got.keys() and wanted
            for parameter, value in wanted.items():
                assert (got[parameter] - value).abs().max() <= 1e-5 * value.abs().max() + 1e-6, parameter


def test_one_length_too_many_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "COMPILATIONS", 1)
    monkeypatch.setattr(compiled, "DYNAMIC", False)
    model, made = network("llama").train(), alike()
    with toys.compiled_on_a_cpu(monkeypatch):
        make_ready(model)
        read(model, made, Layout("tree", 10**4, PAD, (384,)), train=True)
        with pytest.raises(Exception, match="recompile_limit"):
            read(model, made, Layout("tree", 10**4, PAD, (512,)), train=True)


@pytest.mark.skipif(not shutil.which("g++"), reason="flex attention is compiled on a CPU, which needs a C++ compiler")
def test_repeated_keys_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(rows, "TILES_PER_COPY", 1)
    made, model = alike(root=140), network("llama")
    expected = read(model, made, Layout("padded", 10**4, PAD))
    model.set_attn_implementation(ATTENTION)
    layout = Layout("tree", 10**4, PAD, (512,))
    (row,) = lay_out(*made, layout)
    assert row["copies"] == (256, 2)
    torch.testing.assert_close(read(model, made, layout), expected, atol=1e-4, rtol=1e-4)


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
    found = obstacle(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config, torch.device(device))
    assert why in found and bool(why) == bool(found)


def test_dropout_in_attention_and_code_of_its_own_are_obstacles_on_a_gpu() -> None:
    config = CONFIG_MAPPING["llama"](attention_dropout=0.1)
    llama = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    assert "dropout in its attention" in obstacle(llama, config, torch.device("cuda"))
    assert "no flex attention" in obstacle(None, CONFIG_MAPPING["llama"](), torch.device("cuda"))
    assert obstacle(llama, config, CPU) == obstacle(None, config, CPU) == ""


def test_on_a_cpu_nothing_is_made_ready() -> None:
    model = network("gemma2")
    assert not rows_on_gpu(CPU) and not make_ready(model)
    assert model.config._attn_implementation == "eager"
    assert not any(layer._compiled_call_impl for layer in model.model.layers)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`make_ready` serves; what it sets in torch is set back."""
    monkeypatch.setattr(compiled, "rows_on_gpu", lambda device: True)
    with toys.limits():
        yield


def adapted(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("wrap", [lambda model: model, adapted], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_what_is_made_ready_is_taken_back(name: str, wrap: Callable[[Any], Any]) -> None:
    model, made = wrap(network(name)), alike()
    usual = model.config._attn_implementation
    expected = read(model, made, Layout("padded", 10**4, PAD))
    layers = causal_of(model).model.layers
    assert make_ready(model)
    calls = [layer._compiled_call_impl for layer in layers]
    assert model.config._attn_implementation == ATTENTION and None not in calls
    assert torch._dynamo.config.fail_on_recompile_limit_hit
    assert make_ready(model) and [layer._compiled_call_impl for layer in layers] == calls, "once is enough"
    restore_standard_layers(model)
    assert model.config._attn_implementation == usual
    assert [layer._compiled_call_impl for layer in layers] == [None] * len(layers)
    torch.testing.assert_close(read(model, made, Layout("tree", 10**4, PAD)), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read(model, made, Layout("padded", 10**4, PAD)), expected, atol=0, rtol=0)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_first_layer_is_like_the_others() -> None:
    # LoRA's embeddings want no gradient; the layers are compiled for one kind of input.
    model = adapted(network("llama"))
    embeddings = causal_of(model).get_input_embeddings()
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
    embeddings = causal_of(model).get_input_embeddings()
    for _ in range(2):
        make_ready(model)
        restore_standard_layers(model)
    assert len(embeddings._forward_hooks) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wrap"), [("llama", adapted), pytest.param("gemma2", lambda model: model, marks=pytest.mark.thorough)]
)
@pytest.mark.usefixtures("compiler")
def test_the_standard_way_for_a_while(name: str, wrap: Callable[[Any], Any]) -> None:
    model, made = wrap(network(name)), alike()
    usual, layout = model.config._attn_implementation, Layout("padded", 10**4, PAD)
    expected = read(model, made, layout)
    causal = causal_of(model)
    with standard_attention(model):
        assert causal.config._attn_implementation == usual

    def refuse(*args: Any) -> Any:
        raise AssertionError("asked to compile")

    causal.set_attn_implementation(ATTENTION)
    for layer in causal.model.layers:
        layer.compile(backend=refuse)
    with standard_attention(model):
        assert causal.config._attn_implementation == usual
        torch.testing.assert_close(read(model, made, layout), expected, atol=0, rtol=0)
    assert causal.config._attn_implementation == ATTENTION
    with pytest.raises(RuntimeError, match="on purpose"), standard_attention(model):
        raise RuntimeError("on purpose")
    assert causal.config._attn_implementation == ATTENTION and all(
        one._compiled_call_impl for one in causal.model.layers
    )
    with pytest.raises(Exception, match="asked to compile"):
        read(model, made, layout)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("name", "head_dim"), [("llama", 64), ("qwen2", 64), ("qwen2-window", 64), ("gemma2", 64), ("gemma2", 256)]
)
def test_compiled_rows_in_bf16(name: str, head_dim: int, checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "TILES_PER_COPY", 1)
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
    targets = torch.tensor([term.target for term in sorted(made[1], key=lambda term: (term.sequence, term.position))])

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
    with standard_attention(model):
        found = learn(alone)
        assert found[1:] == (pytest.approx(loss, rel=1e-3), pytest.approx(norm, rel=1e-3))
    assert expected[:, :3].std() > 0.1, "a model that says the same of everything shows nothing"
