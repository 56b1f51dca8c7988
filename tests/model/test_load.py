import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import errors
from peft import PeftModel

from src.console.cli import UserError
from src.model import hub, load
from src.model.backbones import backbones
from src.model.load import (
    add_adapter,
    compute_dtype,
    count_parameters,
    load_base,
    load_config,
    load_run,
    load_tokenizer,
    merged,
    pick_device,
)
from src.prompt.prompts import parse_prompt
from src.score.letters import LetterScorer
from tests import toys

CPU = torch.device("cpu")
SHORT = parse_prompt(toys.SHORT, "short")
Folder = Callable[[str], Path]


def logits(network: Any, short: str, batch_tokens: int = 16384) -> torch.Tensor:
    """(items, 3): what the network says of eight items."""
    one = toys.encoder(short, SHORT)
    examples = one.for_scoring(toys.items(8))
    found = LetterScorer(network, one.letter_ids or (), one.pad_id).score(examples, batch_tokens=batch_tokens)
    return torch.tensor([scores.logits[0] for scores in found.items])


def moved(network: Any) -> Any:
    """`network` with its adapters as if they were trained."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return network


def copied(folder: Path, to: Path, **config: Any) -> Path:
    """A copy of a toy's folder, with other values in its config."""
    shutil.copytree(folder, to)
    path = to / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | config), encoding="utf-8")
    return to


# Devices


def test_devices() -> None:
    assert pick_device("cpu") == CPU and compute_dtype(CPU) == torch.float32
    for wrong in ("gpu", "meta", "mps", "cuda:x", "cpu:0", ""):
        with pytest.raises(UserError, match=rf"--device: found '{wrong}', allowed: cpu, cuda, cuda:0"):
            pick_device(wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpus_have_numbers() -> None:
    assert pick_device("cuda") == pick_device("cuda:0") == pick_device() == torch.device("cuda", 0)
    with pytest.raises(UserError, match=r"--device cuda:64: there are \d+ GPUs here, numbered from 0"):
        pick_device("cuda:64")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    assert pick_device() == CPU
    with pytest.raises(UserError, match=r"--device cuda: there is no GPU that torch .* can use here"):
        pick_device("cuda")


# Bases and adapters


@pytest.mark.parametrize("short", ["polar", "kogemma", "qwen2"])
def test_the_base_as_it_lies_there(short: str, backbone_folder: Folder) -> None:
    recipe = toys.recipe(backbone_folder(short), short)
    network = load_base(recipe, CPU)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert network.config._attn_implementation == ("eager" if short == "kogemma" else "sdpa")
    assert not network.config.use_cache
    torch.testing.assert_close(logits(network, short), logits(toys.network(short), short))
    assert {p.dtype for p in load_base(recipe, CPU, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_parameters_are_counted(method: str, backbone_folder: Folder) -> None:
    bare = toys.network("polar")
    total = sum(parameter.numel() for parameter in bare.parameters())
    recipe = toys.recipe(backbone_folder("polar"), "polar", method=method, lora_r=3)
    network = load_base(recipe, CPU)
    assert count_parameters(network)[1] == total
    adapted = add_adapter(network, recipe)
    # Rank times inputs and outputs of each linear layer but the head.
    expected = sum(
        3 * sum(module.weight.shape)
        for name, module in bare.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    )
    assert count_parameters(adapted) == (expected, total + expected)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained) and not any("lm_head" in name for name in trained)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}


def test_the_quantised_base_is_nf4_twice_over(backbone_folder: Folder) -> None:
    from bitsandbytes.nn import Linear4bit

    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", method="qlora")
    network = load_base(recipe, CPU)
    packed = {name: module for name, module in network.named_modules() if isinstance(module, Linear4bit)}
    assert len(packed) == 2 * 7 and "lm_head" not in packed
    for module in packed.values():
        assert (module.weight.quant_type, module.compute_dtype) == ("nf4", torch.float32)
        assert module.weight.quant_state.nested
    # Close to the base it came from, but not it; the same with each batch and each time.
    near, base = logits(network, "qwen2"), logits(toys.network("qwen2"), "qwen2")
    assert 1e-3 < (near - base).abs().max() < 3 * base.std()
    torch.testing.assert_close(logits(network, "qwen2", batch_tokens=1), near, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_is_loaded_on_the_base_it_was_trained_on(
    method: str, backbone_folder: Folder, tmp_path: Path
) -> None:
    recipe = toys.recipe(backbone_folder("kogemma"), "kogemma", method=method)
    adapted = moved(add_adapter(load_base(recipe, CPU), recipe))
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_run(tmp_path, recipe, CPU)
    assert isinstance(loaded, PeftModel) and not loaded.training
    expected = logits(adapted, "kogemma")
    torch.testing.assert_close(logits(loaded, "kogemma"), expected, atol=1e-5, rtol=0)
    # Merged into that base it answers the same; merged into the base before it was quantised it would not.
    plain = merged(loaded)
    assert not isinstance(plain, PeftModel) and not any("lora" in name for name, _ in plain.named_parameters())
    torch.testing.assert_close(logits(plain, "kogemma"), expected, atol=1e-4, rtol=0)
    other = PeftModel.from_pretrained(load_base(recipe.replace(method="lora"), CPU), str(tmp_path / "adapter"))
    gap = (logits(other, "kogemma") - expected).abs().max()
    assert gap < 1e-5 if method == "lora" else gap > 1e-3


def test_a_run_that_has_lost_its_weights(backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2")
    with pytest.raises(UserError, match="has lost its weights: there is neither model/ nor adapter/"):
        load_run(tmp_path, recipe, CPU)
    torch.testing.assert_close(
        logits(load_run(tmp_path, recipe, CPU, trained=False), "qwen2"), logits(toys.network("qwen2"), "qwen2")
    )
    (tmp_path / "adapter").mkdir()
    with pytest.raises(UserError, match=r"adapter holds no complete model: .*adapter_config.json"):
        load_run(tmp_path, recipe, CPU)


def test_an_adapter_that_asks_for_more_than_ours_do(backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", method="lora")
    moved(add_adapter(load_base(recipe, CPU), recipe)).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    ours = json.loads(file.read_text(encoding="utf-8"))
    for odd in (
        {"megatron_config": {"a": 1}, "megatron_core": "megatron.theirs"},
        {"auto_mapping": {"base_model_class": "x", "parent_library": "theirs"}},
        {"layer_replication": [[0, 1]]},
    ):
        file.write_text(json.dumps({**ours, **odd}), encoding="utf-8")
        with pytest.raises(UserError, match=rf"json sets .*{next(iter(odd))}.*, which no adapter of ours does"):
            load_run(tmp_path, recipe, CPU)
    # Adapters of other tools may keep whole modules; ours has none of their weights.
    file.write_text(json.dumps({**ours, "modules_to_save": ["lm_head"]}), encoding="utf-8")
    with pytest.raises(UserError, match=r"not whole, or not of this base model: it lacks .*lm_head"):
        load_run(tmp_path, recipe, CPU)
    file.write_text('{"peft_type": "LOHA"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"json: found LoHaConfig, allowed: LoraConfig"):
        load_run(tmp_path, recipe, CPU)
    file.write_text(json.dumps(ours), encoding="utf-8")
    load_run(tmp_path, recipe, CPU)


def test_a_base_model_that_comes_with_an_adapter(backbone_folder: Folder, tmp_path: Path) -> None:
    """transformers would load it, too, or the base that it names."""
    folder = copied(backbone_folder("qwen2"), tmp_path / "both")
    recipe = toys.recipe(folder, "qwen2", method="lora")
    add_adapter(load_base(recipe, CPU), recipe).save_pretrained(folder)
    with pytest.raises(UserError, match=r"both holds an adapter \(adapter_config\.json\), where a whole"):
        load_base(recipe, CPU)


def test_a_fully_trained_run_needs_its_base_no_more(backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", method="full")
    toys.network("qwen2", seed=5).save_pretrained(tmp_path / "model")
    gone = recipe.replace(model_id=str(tmp_path / "gone"))
    torch.testing.assert_close(
        logits(load_run(tmp_path, gone, CPU), "qwen2"), logits(toys.network("qwen2", seed=5), "qwen2")
    )
    assert load_config(gone, tmp_path / "model").max_position_embeddings == 1024


# Targets


def test_adapters_on_named_layers(backbone_folder: Folder) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", lora_targets="q_proj, v_proj")
    names = [name for name, p in add_adapter(load_base(recipe, CPU), recipe).named_parameters() if p.requires_grad]
    assert len(names) == 2 * 2 * 2 and all("q_proj" in name or "v_proj" in name for name in names)
    with pytest.raises(UserError, match=r"qwen2: lora_targets 'query': .*not found"):
        add_adapter(load_base(recipe, CPU), recipe.replace(lora_targets="query"))


def test_the_head_is_no_target_where_it_is_the_embeddings(backbone_folder: Folder) -> None:
    recipe = toys.recipe(backbone_folder("kogemma"), "kogemma", lora_targets="q_proj,lm_head")
    with pytest.raises(UserError, match="kogemma: lm_head shares its weights with the embeddings"):
        add_adapter(load_base(recipe, CPU), recipe)
    untied = toys.recipe(backbone_folder("qwen2"), "qwen2", lora_targets="q_proj,lm_head")
    adapted = moved(add_adapter(load_base(untied, CPU), untied))
    assert (logits(adapted, "qwen2") - logits(merged(adapted), "qwen2")).abs().max() < 1e-4


# What is known of a backbone


def test_a_config_that_is_not_what_is_known(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(backbone_folder("kogemma"), tmp_path / "copy", query_pre_attn_scalar=224)
    recipe = toys.recipe(folder, "kogemma")
    assert load_config(recipe).query_pre_attn_scalar == 224, "another model under the name is not held to it"
    expect = {"query_pre_attn_scalar": 256, "no_such_key": 1}
    changes = {"model_id": str(folder), "checked": ("model_type", "layers"), "expect": expect}
    facts = dataclasses.replace(backbones()["kogemma"], **changes)
    monkeypatch.setattr(load, "backbones", lambda: {"kogemma": facts})
    with pytest.raises(
        UserError,
        match=r"differs from .*: num_hidden_layers is 2, expected 42, query_pre_attn_scalar is 224, expected 256, "
        r"no_such_key is None, expected 1. Pin",
    ):
        load_config(recipe)


# What the hub and folders lack


def run_train(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "run.train", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )


def test_a_model_that_is_not_on_this_machine(tmp_path: Path) -> None:
    from src.data import dump_items
    from tests.conftest import make_item

    for split in ("train", "dev"):
        (tmp_path / f"data_{split}.json").write_text(dump_items([make_item(0)]), encoding="utf-8")
    done = run_train(
        *("--model_id", "nobody/no-such-model", "--data", str(tmp_path), "--save_dir", str(tmp_path / "run")),
        *("--device", "cpu"),
        HF_HOME=str(tmp_path / "hub"),
    )
    (line,) = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert done.returncode == 2
    assert line.startswith("error: nobody/no-such-model is not on this machine and the hub cannot be reached.")
    assert "hf download nobody/no-such-model" in line and "Traceback" not in done.stderr


@pytest.mark.parametrize("model_id", ["/no/such/folder", "./nowhere/at/all"])
def test_a_folder_that_is_not_there(model_id: str, backbone_folder: Folder) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", model_id=model_id)
    for loaded in (load_config, load_tokenizer):
        with pytest.raises(UserError, match=rf"^there is no folder {model_id}\.$"):
            loaded(recipe)


def test_folders_that_lack_something(backbone_folder: Folder, tmp_path: Path) -> None:
    folder = copied(backbone_folder("qwen2"), tmp_path / "pickled")
    network = toys.network("qwen2")
    (folder / "model.safetensors").unlink()
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    recipe = toys.recipe(folder, "qwen2")
    with pytest.raises(UserError, match=r"pickled holds no complete model: .*safetensors"):
        load_base(recipe, CPU)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"pickled holds no complete model: .*config\.json"):
        load_config(recipe)


def test_a_folder_that_has_lost_its_tokenizer(backbone_folder: Folder, tmp_path: Path) -> None:
    folder = copied(backbone_folder("qwen2"), tmp_path / "lost")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"lost: its tokenizer cannot tell the letters A, B, C apart"):
        load_tokenizer(toys.recipe(folder, "qwen2"))


def test_code_of_the_repository_is_not_run(backbone_folder: Folder, tmp_path: Path) -> None:
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    folder = copied(backbone_folder("qwen2"), tmp_path / "own", model_type="own_model", auto_map=classes)
    marker = tmp_path / "it_ran"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\n", encoding="utf-8")
    recipe = toys.recipe(folder, "qwen2")
    assert recipe.trust_remote_code is False
    with pytest.raises(UserError, match=r"own needs Python code of its own. .*--trust_remote_code"):
        load_config(recipe)
    assert not marker.exists()


def test_a_tokenizer_from_elsewhere(backbone_folder: Folder) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", tokenizer=str(backbone_folder("polar")))
    assert load_tokenizer(recipe).bos_token == "<s>"
    assert load_tokenizer(recipe, backbone_folder("kogemma")).bos_token == "<bos>"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.GatedRepoError, r"someone/m is gated: accept its terms at https://huggingface.co/someone/m, then"),
        (errors.RepositoryNotFoundError, "someone/m is neither a local folder nor a model that you can see"),
        (errors.RevisionNotFoundError, "someone/m has no such revision; see https://huggingface.co/someone/m/commits"),
        (errors.LocalEntryNotFoundError, "someone/m is not on this machine and the hub cannot be reached"),
        (None, "someone/m cannot be loaded: We could not"),
    ],
)
def test_what_the_hub_says(kind: type[Exception] | None, message: str) -> None:
    with pytest.raises(UserError, match=message), hub.messages("someone/m"):
        try:
            if kind:
                raise kind.__new__(kind)  # their constructors want an answer of the server
        except Exception as error:
            raise OSError("We could not\nload it") from error
        raise OSError("We could not\nload it")


QUIET = """
import copy, torch, transformers
import src
from src.model.load import add_adapter
from tests import toys

transformers.utils.logging.set_verbosity_warning()
small = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "num_hidden_layers": 1, "num_attention_heads": 4}
recipe = toys.recipe("unused", "qwen2", lora_dropout=0.0)
for config in (
    transformers.GPT2Config(**small, n_embd=16),
    transformers.MixtralConfig(**small, hidden_size=16, intermediate_size=8, num_key_value_heads=2),
):
    add_adapter(transformers.AutoModelForCausalLM.from_config(config), recipe)
tokenizer = copy.deepcopy(toys.tokenizer("bllossom"))
tokenizer.clean_up_tokenization_spaces = True
print(repr(tokenizer.decode(tokenizer.encode("정답 : A .", add_special_tokens=False))))
"""


@pytest.mark.trains
def test_libraries_warn_of_nothing_that_a_user_could_act_on() -> None:
    """Layers of GPT-2, experts that are adapted as parameters, and Llama 3's wish for a text without blanks."""
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("'정답 : A .'", "")
