"""What folders of weights lack, or hold too much of: found in their headers, before anything is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BitsAndBytesConfig

from src.console.cli import UserError
from src.model.load import add_adapter, check_trainable, load_base, load_run, merged
from src.model.weights import check_weights, quantisation_of, read_headers
from tests import toys

CPU = torch.device("cpu")
Folder = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]


def changed(folder: Path, to: Path, change: Callable[[Tensors], Any] = lambda tensors: None, **config: Any) -> Path:
    """A copy of a model's folder whose tensors went through `change`, with other values in its config."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    path = to / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | config), encoding="utf-8")
    return to


def without(*names: str) -> Callable[[Tensors], Any]:
    return lambda tensors: [tensors.pop(name) for name in names]


def check(folder: Path) -> Any:
    return check_weights(AutoConfig.from_pretrained(folder), str(folder), {})


def saved(config: Any, folder: Path) -> Path:
    """A random model of `config`, saved as transformers saves it."""
    torch.manual_seed(0)
    kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    kind(config).save_pretrained(folder)
    return folder


SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.MixtralConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, num_local_experts=3)
    return saved(config, tmp_path_factory.mktemp("experts"))


@pytest.fixture(scope="module")
def in_four_bits(backbone_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bits")
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    network = transformers.AutoModelForCausalLM.from_pretrained(backbone_folder("qwen2"), quantization_config=how)
    network.save_pretrained(folder)
    return folder


# What is missing


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_missing_tensor_is_named_before_anything_is_loaded(
    method: str, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = ["model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.bias"]
    recipe = toys.recipe(changed(backbone_folder("qwen2"), tmp_path / "m", without(*lost)), "qwen2", method=method)
    loaded = "transformers.AutoModelForCausalLM.from_pretrained"
    monkeypatch.setattr(loaded, lambda *given, **keys: pytest.fail("no need to load the weights"))
    for use in (check_trainable, lambda recipe: load_base(recipe, CPU)):
        with pytest.raises(UserError, match=rf"m lacks 2 of the tensors .*: {lost[1]}, {lost[0]}\. They would be rand"):
            use(recipe)


def test_an_untied_model_needs_its_head_and_a_tied_one_has_none(backbone_folder: Folder, tmp_path: Path) -> None:
    headless = changed(backbone_folder("qwen2"), tmp_path / "untied", without("lm_head.weight"))
    with pytest.raises(UserError, match=r'untied lacks 1 .*: lm_head\.weight\..*"tie_word_embeddings": true'):
        check(headless)
    assert "lm_head.weight" not in read_headers([backbone_folder("kogemma") / "model.safetensors"])
    check(backbone_folder("kogemma"))
    # Called untied, the same file lacks the head; called tied, the first one is whole.
    with pytest.raises(UserError, match=r"lacks 1 .*: lm_head\.weight\."):
        check(changed(backbone_folder("kogemma"), tmp_path / "gemma", tie_word_embeddings=False))
    check(changed(headless, tmp_path / "tied", tie_word_embeddings=True))
    with pytest.raises(UserError, match=r"lacks .*model\.embed_tokens\.weight"):
        check(changed(backbone_folder("kogemma"), tmp_path / "bare", without("model.embed_tokens.weight")))


def test_an_expert_that_is_missing_is_named(experts: Path, tmp_path: Path) -> None:
    assert check(experts) is not None
    headers = read_headers([experts / "model.safetensors"])
    one = next(name for name in headers if ".layers.1." in name and ".experts.1." in name)
    with pytest.raises(UserError, match=rf"lacks tensors: {one}\."):
        check(changed(experts, tmp_path / "one", without(one)))
    of_all = [name for name in headers if ".experts.2." in name]
    with pytest.raises(UserError, match=r"not those of its config: .*experts.* is 2 x .*, by the config 3 x "):
        check(changed(experts, tmp_path / "third", without(*of_all)))


def test_shards_that_are_not_there_are_named(backbone_folder: Folder, tmp_path: Path) -> None:
    toys.network("qwen2").save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    check(tmp_path / "sharded")
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises(UserError, match=rf"index\.json names {shards[1].name}, which is not there"):
        check(tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text('{"weight_map"', encoding="utf-8")
    with pytest.raises(UserError, match=r"holds no complete model: model\.safetensors\.index\.json is damaged"):
        check(tmp_path / "sharded")


def test_a_file_that_was_cut_off(backbone_folder: Folder, tmp_path: Path) -> None:
    folder = changed(backbone_folder("qwen2"), tmp_path / "cut")
    data = (folder / "model.safetensors").read_bytes()
    for kept in (data[: len(data) // 2], data[:100], b""):
        (folder / "model.safetensors").write_bytes(kept)
        with pytest.raises(UserError, match=r"cut holds no complete model: model\.safetensors is damaged .*again\.$"):
            check(folder)


def test_weights_of_other_kinds_are_named_with_what_to_do(backbone_folder: Folder, tmp_path: Path) -> None:
    folder = changed(backbone_folder("qwen2"), tmp_path / "kinds")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    with pytest.raises(UserError, match=r"there is no model\.safetensors; found consolidated\.safetensors\.$"):
        check(folder)
    (folder / "consolidated.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"found pytorch_model\.bin\. Pickles .* can run code.*save_pretrained"):
        check(folder)


# What does not fit


def test_a_vocabulary_that_is_not_the_weights(backbone_folder: Folder, tmp_path: Path) -> None:
    rows = load_file(backbone_folder("qwen2") / "model.safetensors")["lm_head.weight"].shape[0]
    with pytest.raises(UserError, match=rf"not those of its config: lm_head\.weight is {rows} x 64, by the config 99 "):
        check(changed(backbone_folder("qwen2"), tmp_path / "m", vocab_size=99, pad_token_id=None))


def test_a_config_that_no_model_can_be_made_of(backbone_folder: Folder, tmp_path: Path) -> None:
    for name, values, message in (
        ("layers", {"num_hidden_layers": 1}, r"layers: its config\.json is not sound: .*layer_types"),
        ("words", {"vocab_size": "many"}, r"words: its config\.json is not sound: .*vocab_size"),
        ("heads", {"num_key_value_heads": 0}, r"heads: no model can be made of its config\.json: "),
    ):
        recipe = toys.recipe(changed(backbone_folder("qwen2"), tmp_path / name, **values), "qwen2")
        with pytest.raises(UserError, match=message):
            load_base(recipe, CPU)


def test_a_padding_id_beyond_the_embedding_is_not_needed(backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(changed(backbone_folder("qwen2"), tmp_path / "m", pad_token_id=10**6), "qwen2")
    assert load_base(recipe, CPU).config.pad_token_id is None


def test_what_the_config_leaves_out_of_the_weights(backbone_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"m holds \d+ tensors that its config does not ask for: model\.layers\.1\."):
        check(changed(backbone_folder("polar"), tmp_path / "m", num_hidden_layers=1))

    def add_bias(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(64)

    with pytest.raises(UserError, match=r"holds 1 tensors .*: model\.layers\.0\.self_attn\.q_proj\.bias\."):
        check(changed(backbone_folder("polar"), tmp_path / "bias", add_bias))


def test_what_is_surplus_and_harmless_is_left_alone(backbone_folder: Folder, tmp_path: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        tensors["vision_tower.blocks.0.proj.weight"] = torch.ones(4, 4)
        tensors["v_head.summary.weight"] = torch.ones(1, 64)

    folder = changed(backbone_folder("polar"), tmp_path / "more", add)
    assert check(folder) is not None
    load_base(toys.recipe(folder, "polar"), CPU)


def test_models_of_other_kinds_are_whole(tmp_path: Path) -> None:
    of_text = {"intermediate_size": 64, "num_key_value_heads": 2}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    configs = {
        "neox": transformers.GPTNeoXConfig(**SMALL, intermediate_size=64),
        "gpt2": transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4),
        "phi3": transformers.Phi3Config(**SMALL, **of_text, pad_token_id=2),
        "gemma3": transformers.Gemma3Config(
            text_config={**SMALL, **of_text, "head_dim": 8},
            vision_config={**vision, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
        ),
    }
    for name, config in configs.items():
        folder = saved(config, tmp_path / name)
        assert check(folder) is not None, name
        headers = read_headers([folder / "model.safetensors"])
        lost = next(one for one in sorted(headers) if ".1." in one and one.endswith("weight") and "norm" not in one)
        with pytest.raises(UserError, match="lacks 1 of the tensors"):
            check(changed(folder, tmp_path / f"{name}-lacks", without(lost)))


# Weights in 4 bits


def test_a_model_kept_in_four_bits(in_four_bits: Path, tmp_path: Path) -> None:
    assert quantisation_of(AutoConfig.from_pretrained(in_four_bits)) == "bitsandbytes, 4 bits"
    assert check(in_four_bits) is not None
    packed = "model.layers.1.mlp.down_proj.weight"
    for lost in (packed, f"{packed}.absmax", f"{packed}.nested_absmax", f"{packed}.quant_map"):
        with pytest.raises(UserError, match=rf"lacks 1 of the tensors .*: {packed}\."):
            check(changed(in_four_bits, tmp_path / lost, without(lost)))
    with pytest.raises(UserError, match=r"kept quantised \(bitsandbytes, 4 bits\), and full training needs whole.*qlo"):
        check_trainable(toys.recipe(in_four_bits, "qwen2", method="full"))
    check_trainable(toys.recipe(in_four_bits, "qwen2", method="qlora"))
    with pytest.raises(UserError, match=r"the weights are not those of its config: .* is \d+ x 1, by the config"):
        check(changed(in_four_bits, tmp_path / "plain", quantization_config=None))


def test_an_adapter_on_four_bits_is_merged_into_whole_weights(
    in_four_bits: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a model kept in 4 bits is merged into is saved and loaded again as any other."""
    recipe = toys.recipe(in_four_bits, "qwen2", method="qlora")
    network = add_adapter(load_base(recipe, CPU), recipe)
    assert not [one for one in recwarn if "quantization_config" in str(one.message)], "its own is the one that counts"
    for name, value in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.05)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = network.eval()(ids).logits
    merged(network).save_pretrained(tmp_path / "merged")
    assert quantisation_of(AutoConfig.from_pretrained(tmp_path / "merged")) is None
    check(tmp_path / "merged")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, expected, atol=1e-3, rtol=0)
    # Of other ways to keep weights some cannot be undone.
    network = add_adapter(load_base(recipe, CPU), recipe)

    def refuse(*given: Any, **keys: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(transformers.PreTrainedModel, "dequantize", refuse)
    with pytest.raises(UserError, match=r"kept in bitsandbytes, 4 bits cannot be made whole again, so nothing is merg"):
        merged(network)


# Adapters


def damaged(adapter: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_that_is_not_whole(method: str, backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", method=method)
    add_adapter(load_base(recipe, CPU), recipe).save_pretrained(tmp_path / "whole" / "adapter")
    load_run(tmp_path / "whole", recipe, CPU)
    one = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"

    def other_rank(tensors: Tensors) -> None:
        tensors[one] = torch.zeros(tensors[one].shape[0], 3)

    def surplus(tensors: Tensors) -> None:
        tensors[one.replace("layers.1", "layers.7")] = torch.zeros(2, 2)

    for name, change, message in (
        ("lacks", without(one), rf"adapter is not whole.*: it lacks {one}\."),
        ("surplus", surplus, r"it holds base_model\.model\.model\.layers\.7\..*, for which the base has no place"),
        ("rank", other_rank, rf"{one} is 128 x 3, expected 128 x 6"),
    ):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        damaged(tmp_path / name / "adapter", change)
        with pytest.raises(UserError, match=message):
            load_run(tmp_path / name, recipe, CPU)
    (tmp_path / "whole" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter holds no complete model: there is no adapter_model\.safetensors"):
        load_run(tmp_path / "whole", recipe, CPU)


def test_an_adapter_of_another_base(backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2")
    add_adapter(load_base(recipe, CPU), recipe).save_pretrained(tmp_path / "adapter")
    for name, size, message in (
        ("shallow", {"num_hidden_layers": 1}, r"it holds base_model\.model\.model\.layers\.1\..*, for which the base"),
        (
            "narrow",
            {"intermediate_size": 96},
            r"not of this base model: .*mlp.*lora_A\.weight is 6 x 128, expected 6 x 96",
        ),
    ):
        other = recipe.replace(model_id=str(toys.save("qwen2", tmp_path / name, **size)))
        with pytest.raises(UserError, match=message):
            load_run(tmp_path, other, CPU)


def test_a_fully_trained_run_that_is_not_whole(backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", method="full")
    changed(backbone_folder("qwen2"), tmp_path / "model", without("model.norm.weight"))
    with pytest.raises(UserError, match=r"model lacks 1 of the tensors that its config asks for: model\.norm\.weight"):
        load_run(tmp_path, recipe, CPU)


def test_experts_are_trained_without_dropout(experts: Path) -> None:
    recipe = toys.recipe(experts, "experts")
    with pytest.raises(UserError, match="add --lora_dropout 0"):
        check_trainable(recipe)
    check_trainable(recipe.replace(lora_dropout=0.0))
    check_trainable(recipe.replace(lora_targets="q_proj,v_proj"))
    with pytest.raises(UserError, match=r"lora_targets 'query': .*not found"):
        check_trainable(recipe.replace(lora_targets="query"))
