"""The sizes of decoders by arithmetic, against the table of backbones and real models of toy size."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src.model import shapes
from src.model.backbones import backbones
from src.model.shapes import Shape
from tests.toy_configs import toy_config

BLLOSSOM = Shape.of_backbone(backbones()["bllossom"])


@pytest.mark.parametrize("short", [short for short, row in backbones().items() if row.model_type in shapes.FAMILIES])
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


@pytest.mark.parametrize("model_type", shapes.FAMILIES)
def test_the_attention_of_a_family_is_what_its_class_has(model_type: str) -> None:
    from src.model.causal import attention_of
    from src.model.weights import class_of

    assert attention_of(class_of(toy_config(model_type))) == shapes.FAMILIES[model_type].attention


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


@pytest.mark.parametrize("size", [[1], "x", -1, 0, True, 1.5, 10**18, None])
def test_of_sizes_that_no_model_has_nothing_is_guessed(size: Any) -> None:
    sound = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 9}
    assert Shape.of_json(sound) is not None
    assert Shape.of_json(sound | {"hidden_size": size}) is None
    assert (Shape.of_json(sound | {"head_dim": size}) is None) == (size is not None)
