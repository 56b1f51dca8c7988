import argparse
import json
from pathlib import Path
from typing import Any

import peft
import pytest

from src.console.cli import UserError
from src.model import foreign, hub
from src.model.foreign import base_words, find_adapter, lora_settings, with_base
from src.model.weights import adapter_config
from tests.small_hub import put_in_cache

PLAIN = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM").to_dict()


def put(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    found = {**PLAIN, "base_model_name_or_path": "owner/base", **changes}
    (folder / foreign.CONFIG).write_text(json.dumps(found, default=sorted), encoding="utf-8")
    (folder / foreign.WEIGHTS).write_bytes(b"")
    return folder


def asked(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"base": None, "name": None, "trust_remote_code": None, "lora_r": None, **changes})


def test_every_setting_that_peft_writes_by_itself_is_known(tmp_path: Path) -> None:
    found = find_adapter(str(put(tmp_path / "lora")))
    assert found is not None and found.settings["r"] == 8 and found.base == "owner/base"
    # What is taken is what a run may hold: written anew, it is read without a complaint.
    every = {"use_rslora": True, "use_dora": True, "fan_in_fan_out": True, "modules_to_save": ["lm_head"]}
    every |= {"layers_to_transform": [0], "rank_pattern": {"q_proj": 2}, "exclude_modules": ["k_proj"]}
    settings = lora_settings({**PLAIN, **every, "target_modules": ["q_proj"]}, "x")
    peft.LoraConfig(**settings, task_type="CAUSAL_LM").save_pretrained(tmp_path / "run")
    read = adapter_config(tmp_path / "run").to_dict()
    assert {key: sorted(read[key]) if isinstance(read[key], set) else read[key] for key in every} == every


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"peft_type": "IA3"}, "peft_type: found 'IA3', allowed: 'LORA'"),
        ({"peft_type": None}, "peft_type: found None"),
        ({"task_type": "SEQ_CLS"}, "task_type: found 'SEQ_CLS'"),
        ({"init_lora_weights": "pissa"}, "'pissa', which changed the base's own weights"),
        ({"init_lora_weights": 1.5}, "init_lora_weights: found 1.5"),
        ({"bias": "all"}, "sets bias: 'all'"),
        ({"lora_bias": True}, "sets lora_bias: True"),
        ({"megatron_config": {"a": 1}}, "sets megatron_config: {'a': 1}"),
        ({"trainable_token_indices": [5]}, "sets trainable_token_indices: [5]"),
        ({"layer_replication": [[0, 2]]}, "sets layer_replication"),
        ({"of_tomorrow": "yes"}, "sets of_tomorrow: 'yes'"),
        ({"r": "8"}, "is damaged: r: '8'"),
        ({"r": 0}, "is damaged: r: 0"),
        ({"target_modules": {"q": 1}}, "is damaged: target_modules"),
        ({"use_dora": True, "target_modules": ["lm_head"]}, "DoRA on lm_head"),
    ],
)
def test_what_is_no_plain_lora_is_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_adapter(str(put(tmp_path, **changes)))
    assert told in str(caught.value)


def test_no_class_that_a_config_names_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = tmp_path / "code" / "sprung.py"
    trap.parent.mkdir()
    trap.write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(trap.parent))
    named = {"base_model_class": "Any", "parent_library": "sprung", "unsloth_fixed": True}
    found = find_adapter(str(put(tmp_path / "lora", auto_mapping=named, megatron_core="sprung")))
    assert found is not None and not {"auto_mapping", "megatron_core"} & set(found.settings)


def test_what_is_no_adapter(tmp_path: Path) -> None:
    assert find_adapter(None) is None and find_adapter(str(tmp_path)) is None and find_adapter("bare-name") is None
    # A whole model with an adapter beside it is refused where it is loaded.
    (put(tmp_path / "both") / "model.safetensors").write_bytes(b"")
    assert find_adapter(str(tmp_path / "both")) is None


def test_an_adapter_in_the_hubs_cache(empty_hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "unreachable", lambda: "no network")
    hub.find_commit.cache_clear()
    config = json.dumps({**PLAIN, "base_model_name_or_path": "owner/base"}, default=sorted)
    put_in_cache(empty_hub_cache, "owner/lora", {foreign.CONFIG: config, foreign.WEIGHTS: "x"}, "a" * 40)
    put_in_cache(empty_hub_cache, "owner/whole", {"config.json": "{}", "model.safetensors": "x"}, "b" * 40)
    put_in_cache(empty_hub_cache, "owner/other", {"README.md": ""}, "c" * 40)
    found = find_adapter("owner/lora")
    assert found is not None and (found.commit, found.name, found.base) == ("a" * 40, "lora", "owner/base")
    assert (found.folder / foreign.WEIGHTS).is_file()
    assert find_adapter("owner/whole") is None and find_adapter("owner/other") is None
    with pytest.raises(UserError, match="owner/gone is not on this machine"):
        find_adapter("owner/gone")


def test_damaged_folders(tmp_path: Path) -> None:
    folder = put(tmp_path)
    (folder / foreign.WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"no adapter_model.safetensors. adapter_model.bin is a pickle"):
        find_adapter(str(folder))
    for text in ("[]", "{", '"' + "x" * 20):
        (folder / foreign.CONFIG).write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="is damaged: it is no JSON object"):
            find_adapter(str(folder))


def test_the_recipe_is_the_bases_with_the_adapters_shape(tmp_path: Path) -> None:
    found = find_adapter(str(put(tmp_path / "out" / "checkpoint-40", lora_alpha=16.0, revision="abc")))
    assert found is not None and found.name == "out-checkpoint-40"
    made = with_base(asked(), found)
    assert (made.model_id, made.revision, made.name) == ("owner/base", "abc", "out-checkpoint-40")
    assert (made.lora_r, made.lora_alpha, made.lora_targets) == (8, 16, "q_proj,v_proj")
    other = with_base(asked(base="owner/other", name="mine"), found)
    assert (other.model_id, other.revision, other.name) == ("owner/other", None, "mine")


def test_a_quantised_base_is_told_of_with_the_whole_one(tmp_path: Path) -> None:
    found = find_adapter(str(put(tmp_path, base_model_name_or_path="unsloth/Qwen2-7B-unsloth-bnb-4bit")))
    assert found is not None
    first, second = base_words(found, "unsloth/Qwen2-7B-unsloth-bnb-4bit")
    assert first.endswith("a LoRA adapter of rank 8 on unsloth/Qwen2-7B-unsloth-bnb-4bit")
    assert "--base unsloth/Qwen2-7B, or" in second
    assert base_words(found, "unsloth/Qwen2-7B") == [
        f"{tmp_path}: a LoRA adapter of rank 8 on unsloth/Qwen2-7B "
        "(--base; its config names unsloth/Qwen2-7B-unsloth-bnb-4bit)"
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"rank_pattern": {"(" * 1000 + ")" * 1000: 3}},
        {"alpha_pattern": {"(": 3}},
        {"exclude_modules": "(q_proj"},
        {"target_modules": "x" * 5000},
    ],
)
def test_patterns_that_are_none_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"damaged: .*(regular expression|5,000 characters)"):
        lora_settings({**PLAIN, "target_modules": ["q_proj"], **changes}, "adapter")
    assert lora_settings({**PLAIN, "target_modules": r"model\.layers\.\d+\.(q|v)_proj"}, "adapter")
