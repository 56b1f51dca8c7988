"""The arithmetic of `src.model.shapes` against real models of toy size, and against what was measured on an H200."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src.model import shapes
from src.model.backbones import backbones
from src.model.shapes import GIB, Shape

BLLOSSOM = Shape.of_backbone(backbones()["bllossom"])


def toy_config(model_type: str, **changes: Any) -> Any:
    from transformers import CONFIG_MAPPING

    sizes = {
        "hidden_size": 64,
        "intermediate_size": 144,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 300,
        "pad_token_id": 0,
    }
    return CONFIG_MAPPING[model_type](**{**sizes, **changes})


# Shapes


@pytest.mark.parametrize("short", backbones())
def test_parameters_by_arithmetic_agree_with_the_table_of_backbones(short: str) -> None:
    row = backbones()[short]
    config = SimpleNamespace(
        model_type=row.model_type,
        hidden_size=row.hidden_size,
        intermediate_size=row.intermediate_size,
        num_hidden_layers=row.layers,
        num_attention_heads=row.heads,
        num_key_value_heads=row.kv_heads,
        head_dim=row.head_dim,
        vocab_size=row.vocab,
        tie_word_embeddings=row.tied,
    )
    computed, listed = Shape.of_config(config), Shape.of_backbone(row)
    assert computed.parameters == pytest.approx(listed.parameters, rel=0.01)
    assert {**vars(computed), "parameters": 0} == {**vars(listed), "parameters": 0}
    assert row.download_bytes == pytest.approx(2 * row.parameters, rel=0.01)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", shapes.FAMILIES)
def test_parameters_of_a_real_model(model_type: str, tied: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = toy_config(model_type, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = Shape.of_config(config)
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    linear = [
        module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]
    assert shape.linear_parameters == sum(module.weight.numel() for module in linear)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {"head_dim": 32}]
)
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2"])
def test_shape_of_a_saved_config(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    config = toy_config(model_type, **changes)
    config.save_pretrained(tmp_path)
    keys = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert Shape.of_json(keys) == Shape.of_config(config)
    keys.pop("tie_word_embeddings", None)
    assert Shape.of_json(keys).tied == (model_type == "gemma2")  # as transformers has it


def test_of_an_architecture_without_arithmetic_nothing_is_guessed() -> None:
    assert Shape.of_json({"model_type": "mixtral", "hidden_size": 64}) is None
    assert Shape.of_json({"model_type": "llama"}) is None
    # With its config loaded a plan must be made all the same: as of a Llama.
    assert Shape.of_config(toy_config("phi3")).parameters == Shape.of_config(toy_config("llama")).parameters


@pytest.mark.parametrize(
    ("short", "millions"),
    [("bllossom", 15.7), ("polar", 31.5), ("kogemma", 20.3), ("solarko", 23.6), ("eeve", 23.6), ("qwen2", 15.1)],
)
def test_lora_parameters_of_the_backbones(short: str, millions: float) -> None:
    assert Shape.of_backbone(backbones()[short]).lora_parameters(6) / 1e6 == pytest.approx(millions, abs=0.06)


def test_lora_parameters_of_a_real_model() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = toy_config("gemma2")
    model = get_peft_model(
        AutoModelForCausalLM.from_config(config), LoraConfig(r=5, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    assert Shape.of_config(config).lora_parameters(5) == model.get_nb_trainable_parameters()[0]


# Memory


def saved_bytes(config: Any, attention: str, method: str, optimizer: str, checkpointing: bool, padded: bool) -> int:
    """What autograd holds after a forward pass over 2 · 256 or 1 · 512 tokens, without weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    pure = optimizer == "bf16-stochastic"
    dtype = torch.float32 if method == "full" and not pure else torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    if method == "lora":
        adapter = LoraConfig(r=2, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, adapter)
        model.enable_input_require_grads()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    held = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            saved[storage.data_ptr()] = storage  # held on to, so that its address is not used twice
        return tensor

    ids = torch.ones((2, 256) if padded else (1, 512), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[0, -3:] = 1 - padded
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast(
        "cpu", torch.bfloat16, enabled=not pure
    ):  # fmt: skip
        model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=torch.tensor([250]))
        return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("model_type", "attention", "method", "optimizer", "padded"),
    [
        ("llama", "sdpa", "lora", "fp32", False),
        ("llama", "sdpa", "lora", "fp32", True),
        ("llama", "sdpa", "full", "fp32-8bit", False),
        ("llama", "sdpa", "full", "bf16-stochastic", False),
        ("llama", "eager", "lora", "fp32", False),
        ("qwen2", "sdpa", "full", "bf16-stochastic", False),
        ("gemma2", "eager", "lora", "fp32", True),
        ("gemma2", "eager", "full", "fp32", False),
        ("gemma2", "eager", "full", "bf16-stochastic", False),
    ],
)
def test_activations_are_what_autograd_keeps(
    model_type: str,
    attention: str,
    method: str,
    optimizer: str,
    padded: bool,
    checkpointing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shapes, "MASK_BYTES", 4)
    sizes = {"hidden_size": 256, "intermediate_size": 896, "num_attention_heads": 8, "head_dim": 32, "vocab_size": 512}
    configs = [toy_config(model_type, num_hidden_layers=layers, **sizes) for layers in (1, 3)]
    few, many = (saved_bytes(one, attention, method, optimizer, checkpointing, padded) for one in configs)
    shape = Shape.of_config(configs[1])
    a_layer = (many - few) / 2  # what is kept once, outside the layers, falls out
    if method == "full" and optimizer != "bf16-stochastic" and not checkpointing:
        a_layer -= 2 * shape.linear_parameters / 3  # autocast's copies of the weights: counted as weights
    if checkpointing:
        expected = shapes.checkpoint_bytes(shape, method, optimizer, 512) / 3
    else:
        expected = shapes.layer_activations(shape, method, optimizer, 512, attention, 2 if padded else 1)
    assert a_layer == pytest.approx(expected, rel=0.04)


def test_memory_agrees_with_peaks_measured_on_an_h200() -> None:
    def training(method: str, tokens: int) -> float:
        return shapes.training_memory(BLLOSSOM, method, "fp32", tokens, 6, checkpointing=False).total / GIB

    assert training("lora", 8192) == pytest.approx(79.1, rel=0.03)
    assert training("lora", 1560) == pytest.approx(27.1, rel=0.01)
    assert training("qlora", 1560) == pytest.approx(17.8, rel=0.02)
    assert shapes.scoring_memory(BLLOSSOM, "lora", 16384).total / GIB == pytest.approx(16.8, rel=0.02)


def test_nf4_bytes_of_a_real_matrix() -> None:
    import torch
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(torch.randn(1024, 1024), compress_statistics=True, quant_type="nf4")
    stored = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert stored == shapes.NF4_BYTES * 1024 * 1024


def test_8_bit_moments_of_a_real_matrix() -> None:
    from torchao.optim.subclass_8bit import OptimState8bit

    moment = OptimState8bit.zeros((1024, 1024))
    assert 2 * (moment.codes.nbytes + moment.scale.nbytes) == shapes.STATE_8BIT_BYTES * 1024 * 1024


def test_8_bit_moments_of_a_real_model(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    config = toy_config("llama", hidden_size=128, intermediate_size=256, vocab_size=1000)
    row = {"input_ids": torch.arange(9), "labels": torch.arange(9)}
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
    arguments = TrainingArguments(output_dir=str(tmp_path), max_steps=1, optim="adamw_8bit", **quiet)
    trainer = Trainer(AutoModelForCausalLM.from_config(config), arguments, train_dataset=[row])
    trainer.train()
    states = [
        state[key] for state in trainer.optimizer.state.values() for key in state if key[:-1] in ("state", "absmax")
    ]
    stored = sum(state.nbytes for state in states)
    # Within what the norms take, which are too small for 8 bits.
    assert stored == pytest.approx(shapes._moments_bytes(Shape.of_config(config), "fp32-8bit"), rel=0.01)


@pytest.mark.parametrize(
    ("method", "optimizer", "weights", "gradients", "moments"),
    [
        ("full", "fp32", 4, 4, 8),
        ("full", "fp32-8bit", 4, 4, 2.42),
        ("full", "bf16-stochastic", 2, 2, 2.03),
        ("lora", "fp32", 2, 0, 0),
        ("qlora", "fp32", 0.71, 0, 0),
    ],
)
def test_bytes_a_parameter(method: str, optimizer: str, weights: float, gradients: float, moments: float) -> None:
    memory = shapes.training_memory(BLLOSSOM, method, optimizer, 1000, 6, checkpointing=True)
    copies = 2 * 7.5 / 8.03 if method == "full" and optimizer != "bf16-stochastic" else 0
    found = [part / BLLOSSOM.parameters for part in (memory.weights, memory.gradients, memory.optimizer)]
    assert found == pytest.approx([weights + copies, gradients, moments], abs=0.02)
    parts = memory.gradients, memory.optimizer, memory.activations, memory.logits
    assert memory.total == memory.weights + sum(parts) and min(parts) > 0


@pytest.mark.parametrize(
    ("tokens", "answers", "dropout", "measured"),
    [
        # answers: of 40 tokens, which the formula counts with
        (8_192, 24, False, 50.3),
        (20_736, 64 * 17 / 40, False, 104.3),
        (10_752, 33 * 17 / 40, True, 84.1),
        (14_592, 64 * 17 / 40, False, 77.9),
    ],
)
def test_rows_of_a_tree_on_an_h200(tokens: int, answers: float, dropout: bool, measured: float) -> None:
    need = shapes.training_memory(
        BLLOSSOM, "lora", "fp32", tokens, 6, False, "tree", sequences=round(answers), dropout=dropout
    )
    assert need.total / GIB == pytest.approx(measured, rel=0.03)


def test_nf4_packs_the_linear_layers_alone() -> None:
    plain, packed = (shapes.scoring_memory(BLLOSSOM, method, 1000).weights for method in ("lora", "qlora"))
    assert plain - packed == pytest.approx((2 - shapes.NF4_BYTES) * BLLOSSOM.linear_parameters, abs=1)
    assert packed / 1e9 == pytest.approx(5.7, abs=0.05)


def test_eager_attention_grows_with_the_square_of_a_sequence() -> None:
    gemma = Shape.of_backbone(backbones()["kogemma"])

    def activations(tokens: int, sequences: int, attention: str | None = None) -> int:
        return shapes.training_memory(gemma, "qlora", "fp32", tokens, 6, False, attention, sequences).activations

    scores = 42 * 16 * 1000 * 1000 * 8  # layers, heads, tokens², bytes
    assert activations(2000, 1) - activations(2000, 2) == 2 * scores
    assert activations(1000, 1) == activations(1000, 1, "eager") == activations(1000, 1, "sdpa") + scores


# The way that fits


def test_full_training_takes_the_first_way_that_fits() -> None:
    ways = [(kept, switch) for kept in shapes.OPTIMIZERS for switch in (False, True)]
    needs = [shapes.training_memory(BLLOSSOM, "full", kept, 4000, 6, switch).total for kept, switch in ways]
    assert needs == sorted(needs, reverse=True)  # at this length each way needs less than the one before
    for way, need in zip(ways, needs, strict=True):
        settled = shapes.settle(BLLOSSOM, "full", "auto", "auto", 4000, 6, int(need / shapes.USABLE) + 1)
        assert (settled.optimizer, settled.checkpointing, settled.fits) == (*way, True)
        assert settled.memory.total == need


def test_nothing_fits() -> None:
    settled = shapes.settle(BLLOSSOM, "full", "auto", "auto", 1000, 6, 10 * GIB)
    assert (settled.optimizer, settled.checkpointing, settled.fits) == ("bf16-stochastic", True, False)


def test_the_margin_is_kept() -> None:
    need = shapes.training_memory(BLLOSSOM, "qlora", "fp32", 1000, 6, False).total
    assert shapes.settle(BLLOSSOM, "qlora", "auto", "auto", 1000, 6, need).checkpointing
    assert not shapes.settle(BLLOSSOM, "qlora", "auto", "auto", 1000, 6, int(need / 0.91)).checkpointing


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_have_one_optimizer(method: str) -> None:
    for free in (GIB, 500 * GIB, None):
        settled = shapes.settle(BLLOSSOM, method, "bf16-stochastic", "auto", 1000, 6, free)
        assert (settled.optimizer, settled.checkpointing) == ("fp32", free == GIB)


def test_on_a_cpu_nothing_is_saved() -> None:
    settled = shapes.settle(BLLOSSOM, "full", "auto", "auto", 1000, 6, None)
    assert (settled.optimizer, settled.checkpointing, settled.fits) == ("fp32", False, True)


def test_a_recipe_decides_where_it_says_so() -> None:
    plenty = 1000 * GIB
    assert shapes.settle(BLLOSSOM, "full", "fp32-8bit", "on", 1000, 6, plenty).optimizer == "fp32-8bit"
    assert shapes.settle(BLLOSSOM, "full", "fp32-8bit", "on", 1000, 6, plenty).checkpointing
    settled = shapes.settle(BLLOSSOM, "full", "fp32", "off", 1000, 6, 48 * GIB)
    assert (settled.optimizer, settled.checkpointing, settled.fits) == ("fp32", False, False)


# Disk


def test_run_folder_holds_the_best_and_two_checkpoints() -> None:
    n, adapter = BLLOSSOM.parameters, BLLOSSOM.lora_parameters(6)
    assert shapes.run_folder_bytes(BLLOSSOM, "full", "fp32") == 2 * n + 2 * (4 + 8) * n
    assert shapes.run_folder_bytes(BLLOSSOM, "full", "fp32-8bit") == pytest.approx(2 * n + 2 * 6.42 * n, rel=0.01)
    assert shapes.run_folder_bytes(BLLOSSOM, "full", "bf16-stochastic") == pytest.approx(2 * n + 2 * 4.03 * n, rel=0.01)
    assert shapes.run_folder_bytes(BLLOSSOM, "qlora", "fp32") == 4 * adapter + 2 * 12 * adapter
    assert shapes.run_folder_bytes(BLLOSSOM, "lora", "fp32", 12) == 2 * shapes.run_folder_bytes(
        BLLOSSOM, "lora", "fp32"
    )
