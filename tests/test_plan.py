"""The arithmetic of `src.plan` against real models of toy size, and against what was measured on an H200."""

import io
import json
import subprocess
import sys
import types
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from src import plan
from src.cli import UserError
from src.plan import GIB, Shape
from src.recipes import backbones, load_recipe, load_recipes, make_recipe

PUBLISHED = Path("resource/recipes/published")
BLLOSSOM = Shape.of_backbone(backbones()["bllossom"])
ITEMS = {"train": 758, "dev": 130, "test": 605}


@pytest.fixture(autouse=True)
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of the test's own: what this machine has downloaded must not change a result."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


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


def test_planning_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, src.plan; print({'torch', 'transformers', 'huggingface_hub', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Shapes


@pytest.mark.parametrize("short", backbones())
def test_parameters_by_arithmetic_agree_with_the_table_of_backbones(short: str) -> None:
    row = backbones()[short]
    config = SimpleNamespace(
        model_type=row.expect["model_type"],
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
@pytest.mark.parametrize("model_type", plan.FAMILIES)
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
    monkeypatch.setattr(plan, "MASK_BYTES", 4)
    sizes = {"hidden_size": 256, "intermediate_size": 896, "num_attention_heads": 8, "head_dim": 32, "vocab_size": 512}
    configs = [toy_config(model_type, num_hidden_layers=layers, **sizes) for layers in (1, 3)]
    few, many = (saved_bytes(one, attention, method, optimizer, checkpointing, padded) for one in configs)
    shape = Shape.of_config(configs[1])
    a_layer = (many - few) / 2  # what is kept once, outside the layers, falls out
    if method == "full" and optimizer != "bf16-stochastic" and not checkpointing:
        a_layer -= 2 * shape.linear_parameters / 3  # autocast's copies of the weights: counted as weights
    if checkpointing:
        expected = plan.checkpoint_bytes(shape, method, optimizer, 512) / 3
    else:
        expected = plan.layer_activations(shape, method, optimizer, 512, attention, 2 if padded else 1)
    assert a_layer == pytest.approx(expected, rel=0.04)


def test_memory_agrees_with_peaks_measured_on_an_h200() -> None:
    def training(method: str, tokens: int) -> float:
        return plan.training_memory(BLLOSSOM, method, "fp32", tokens, 6, checkpointing=False).total / GIB

    assert training("lora", 8192) == pytest.approx(79.1, rel=0.03)
    assert training("lora", 1560) == pytest.approx(27.1, rel=0.01)
    assert training("qlora", 1560) == pytest.approx(17.8, rel=0.02)
    assert plan.scoring_memory(BLLOSSOM, "lora", 16384).total / GIB == pytest.approx(16.8, rel=0.02)


def test_nf4_bytes_of_a_real_matrix() -> None:
    import torch
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(torch.randn(1024, 1024), compress_statistics=True, quant_type="nf4")
    stored = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert stored == plan.NF4_BYTES * 1024 * 1024


def test_8_bit_moments_of_a_real_matrix() -> None:
    from torchao.optim.subclass_8bit import OptimState8bit

    moment = OptimState8bit.zeros((1024, 1024))
    assert 2 * (moment.codes.nbytes + moment.scale.nbytes) == plan.STATE_8BIT_BYTES * 1024 * 1024


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
    assert stored == pytest.approx(plan._moments_bytes(Shape.of_config(config), "fp32-8bit"), rel=0.01)


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
    memory = plan.training_memory(BLLOSSOM, method, optimizer, 1000, 6, checkpointing=True)
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
    need = plan.training_memory(
        BLLOSSOM, "lora", "fp32", tokens, 6, False, "tree", sequences=round(answers), dropout=dropout
    )
    assert need.total / GIB == pytest.approx(measured, rel=0.03)


def test_nf4_packs_the_linear_layers_alone() -> None:
    plain, packed = (plan.scoring_memory(BLLOSSOM, method, 1000).weights for method in ("lora", "qlora"))
    assert plain - packed == pytest.approx((2 - plan.NF4_BYTES) * BLLOSSOM.linear_parameters, abs=1)
    assert packed / 1e9 == pytest.approx(5.7, abs=0.05)


def test_eager_attention_grows_with_the_square_of_a_sequence() -> None:
    gemma = Shape.of_backbone(backbones()["kogemma"])

    def activations(tokens: int, sequences: int, attention: str | None = None) -> int:
        return plan.training_memory(gemma, "qlora", "fp32", tokens, 6, False, attention, sequences).activations

    scores = 42 * 16 * 1000 * 1000 * 8  # layers, heads, tokens², bytes
    assert activations(2000, 1) - activations(2000, 2) == 2 * scores
    assert activations(1000, 1) == activations(1000, 1, "eager") == activations(1000, 1, "sdpa") + scores


# The way that fits


def test_full_training_takes_the_first_way_that_fits() -> None:
    ways = [(kept, switch) for kept in plan.OPTIMIZERS for switch in (False, True)]
    needs = [plan.training_memory(BLLOSSOM, "full", kept, 4000, 6, switch).total for kept, switch in ways]
    assert needs == sorted(needs, reverse=True)  # at this length each way needs less than the one before
    for way, need in zip(ways, needs, strict=True):
        settled = plan.settle(BLLOSSOM, "full", "auto", "auto", 4000, 6, int(need / plan.USABLE) + 1)
        assert (settled.optimizer, settled.checkpointing, settled.fits) == (*way, True)
        assert settled.memory.total == need


def test_nothing_fits() -> None:
    settled = plan.settle(BLLOSSOM, "full", "auto", "auto", 1000, 6, 10 * GIB)
    assert (settled.optimizer, settled.checkpointing, settled.fits) == ("bf16-stochastic", True, False)


def test_the_margin_is_kept() -> None:
    need = plan.training_memory(BLLOSSOM, "qlora", "fp32", 1000, 6, False).total
    assert plan.settle(BLLOSSOM, "qlora", "auto", "auto", 1000, 6, need).checkpointing
    assert not plan.settle(BLLOSSOM, "qlora", "auto", "auto", 1000, 6, int(need / 0.91)).checkpointing


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_have_one_optimizer(method: str) -> None:
    for free in (GIB, 500 * GIB, None):
        settled = plan.settle(BLLOSSOM, method, "bf16-stochastic", "auto", 1000, 6, free)
        assert (settled.optimizer, settled.checkpointing) == ("fp32", free == GIB)


def test_on_a_cpu_nothing_is_saved() -> None:
    settled = plan.settle(BLLOSSOM, "full", "auto", "auto", 1000, 6, None)
    assert (settled.optimizer, settled.checkpointing, settled.fits) == ("fp32", False, True)


def test_a_recipe_decides_where_it_says_so() -> None:
    plenty = 1000 * GIB
    assert plan.settle(BLLOSSOM, "full", "fp32-8bit", "on", 1000, 6, plenty).optimizer == "fp32-8bit"
    assert plan.settle(BLLOSSOM, "full", "fp32-8bit", "on", 1000, 6, plenty).checkpointing
    settled = plan.settle(BLLOSSOM, "full", "fp32", "off", 1000, 6, 48 * GIB)
    assert (settled.optimizer, settled.checkpointing, settled.fits) == ("fp32", False, False)


# Disk


def test_run_folder_holds_the_best_and_two_checkpoints() -> None:
    n, adapter = BLLOSSOM.parameters, BLLOSSOM.lora_parameters(6)
    assert plan.run_folder_bytes(BLLOSSOM, "full", "fp32") == 2 * n + 2 * (4 + 8) * n
    assert plan.run_folder_bytes(BLLOSSOM, "full", "fp32-8bit") == pytest.approx(2 * n + 2 * 6.42 * n, rel=0.01)
    assert plan.run_folder_bytes(BLLOSSOM, "full", "bf16-stochastic") == pytest.approx(2 * n + 2 * 4.03 * n, rel=0.01)
    assert plan.run_folder_bytes(BLLOSSOM, "qlora", "fp32") == 4 * adapter + 2 * 12 * adapter
    assert plan.run_folder_bytes(BLLOSSOM, "lora", "fp32", 12) == 2 * plan.run_folder_bytes(BLLOSSOM, "lora", "fp32")


def test_check_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return namedtuple("usage", "total used free")(10**12, 0, 5 * 10**9)

    monkeypatch.setattr(plan.shutil, "disk_usage", usage)
    plan.check_disk(tmp_path / "not" / "yet", 5e9, "the run polar")
    assert asked == [tmp_path]
    with pytest.raises(UserError, match=r"the run polar needs 5\.1 GB, but .*not/yet has 5\.0 GB free.*HF_HOME"):
        plan.check_disk(tmp_path / "not" / "yet", 5.1e9, "the run polar")


def put_in_cache(cache: Path, model_id: str, files: dict[str, str], commit: str = "c0ffee") -> None:
    folder = cache / f"models--{model_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    for name, text in files.items():
        path = folder / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_what_the_cache_holds_whole_is_not_downloaded(empty_hub_cache: Path) -> None:
    recipe = load_recipe(PUBLISHED / "qwen2.yaml")
    assert plan.download_bytes(recipe) == 15_200_000_000
    index = json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    put_in_cache(empty_hub_cache, "Qwen/Qwen2-7B", {"model.safetensors.index.json": index, "1.safetensors": ""})
    assert plan.download_bytes(recipe) == 15_200_000_000
    put_in_cache(empty_hub_cache, "Qwen/Qwen2-7B", {"2.safetensors": ""})
    assert plan.download_bytes(recipe) == 0
    assert plan.download_bytes(recipe.replace(revision="another")) == 15_200_000_000
    put_in_cache(empty_hub_cache, "someone/small", {"model.safetensors": ""})
    assert plan.is_cached("someone/small") and not plan.is_cached("someone/other")
    assert not plan.is_cached("no/hub/id")


# Time


@pytest.mark.parametrize(
    ("method", "checkpointing", "per_second"),
    [("qlora", False, 7.80), ("lora", False, 7.80), ("full", True, 2.06)],
)
def test_time_gives_back_what_was_measured(method: str, checkpointing: bool, per_second: float) -> None:
    recipe = load_recipe(PUBLISHED / "bllossom.yaml", {"method": method})
    seconds = plan.training_seconds(BLLOSSOM, recipe, 758, 1133, "NVIDIA H200", checkpointing)
    assert seconds == pytest.approx(758 * 15 / per_second)
    assert plan.scoring_seconds(BLLOSSOM, 605, 1133, "NVIDIA H200") == pytest.approx(605 / 138)


def test_time_of_a_pair_that_was_not_measured() -> None:
    recipe = load_recipe(PUBLISHED / "bllossom.yaml", {"method": "full", "epoch": 1})
    with_it, without = (plan.training_seconds(BLLOSSOM, recipe, 758, 1133, "H200", switch) for switch in (True, False))
    assert without == pytest.approx(with_it * 6 / 8)


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A40", 150),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA RTX A6000", 155),
        ("NVIDIA RTX 6000 Ada Generation", 364),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_are_found_by_name(device: str, peak: float | None) -> None:
    assert plan.peak_tflops(device) == peak
    recipe = load_recipe(PUBLISHED / "polar.yaml")
    seconds = plan.training_seconds(BLLOSSOM, recipe, 758, 1133, device, False)
    if peak is None:
        assert seconds is None and plan.scoring_seconds(BLLOSSOM, 605, 1133, device) is None
    else:
        assert seconds == pytest.approx(758 * 18 / 7.80 * 989 / peak)


def test_gpus_are_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(
        device_count=lambda: 2,
        mem_get_info=lambda index: (index + 10, index + 20),
        get_device_name=lambda index: f"NVIDIA L{index}",
    )
    torch = types.ModuleType("torch")
    torch.cuda = cuda
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert plan._ask_torch() == [plan.Gpu("NVIDIA L0", 20, 10), plan.Gpu("NVIDIA L1", 21, 11)]


def test_gpus_of_this_machine() -> None:
    import torch

    assert len(plan.gpus()) == torch.cuda.device_count()


# The table


def text_of(rows: list[plan.PlanRow], width: int = 120) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(plan.plan_table(rows))
    return console.file.getvalue()


def test_plan_of_the_published_recipes_without_a_gpu() -> None:
    rows = plan.plan_rows(list(load_recipes(PUBLISHED).values()), ITEMS)
    by_run = {row.run: row for row in rows}
    assert set(by_run) == set(backbones())
    for row in rows:
        assert list(row.cards) == ["24", "48", "80", "141"]
        assert row.settled == row.cards["141"] and row.settled.fits
        fits = [way.fits for way in row.cards.values()]
        assert fits == sorted(fits)
        assert row.cards["24"].fits == (row.method == "qlora")
        assert row.download == backbones()[row.run].download_bytes
    assert [row.run for row in rows if row.commercial is False] == ["spow12"]
    assert by_run["polar"].seconds == max(row.seconds for row in rows if row.method == "qlora")
    assert by_run["qwen2"].disk > 100 * by_run["polar"].disk


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_says_it_all(width: int) -> None:
    rows = plan.plan_rows(list(load_recipes(PUBLISHED).values()), ITEMS)
    text = text_of(rows, width)
    lines, words = text.splitlines(), " ".join(text.split())
    for row in rows:
        assert any(line.split()[:2] == [row.run, row.words] for line in lines), text
        assert f"{row.run}: {row.model_id}, licence {row.licence}" in words
    assert words.count("no commercial use") == 1
    assert "…" not in text and "?" not in text
    assert "no GPU here" in words and words.endswith("may not be used commercially")
    assert next(line for line in lines if line.split()[:1] == ["all"]).split()[1] == "152.3"


def test_the_table_for_the_gpu_at_hand() -> None:
    gpu = plan.Gpu("NVIDIA A100-SXM4-80GB", 80 * GIB, 79 * GIB)
    recipes = [load_recipe(PUBLISHED / f"{name}.yaml") for name in ("polar", "qwen2")]
    rows = plan.plan_rows(recipes, ITEMS, gpu=gpu)
    assert [row.settled.optimizer for row in rows] == ["fp32", "bf16-stochastic"]
    assert rows[0].settled == rows[0].cards[gpu.name]
    on_h200 = plan.plan_rows(recipes[:1], ITEMS)[0].seconds
    assert rows[0].seconds == pytest.approx(on_h200 * 989 / 312)
    text = text_of(rows)
    assert gpu.name in text and "no GPU here" not in text
    crowded = plan.plan_rows(recipes, ITEMS, gpu=plan.Gpu(gpu.name, 80 * GIB, 2 * GIB))
    assert not any(row.settled.fits for row in crowded)


def test_a_larger_batch_needs_no_more_memory() -> None:
    # Its items come one after the other in rows, as long as there is room for.
    recipe = load_recipe(PUBLISHED / "polar.yaml")
    one, two = plan.plan_rows([recipe, recipe.replace(batch_size=2)], ITEMS)
    assert one.settled is not None and two.settled is not None
    assert two.settled.memory == one.settled.memory


def test_a_download_for_two_runs_counts_once() -> None:
    recipe = load_recipe(PUBLISHED / "polar.yaml")
    text = text_of(plan.plan_rows([recipe, recipe.replace(name="again")], {}))
    assert next(line for line in text.splitlines() if line.split()[:1] == ["all"]).split()[1] == "28.5"


def test_what_is_not_known_is_a_question_mark(empty_hub_cache: Path) -> None:
    recipe = make_recipe({"name": "mine", "model_id": "someone/else"}, "here")
    (row,) = plan.plan_rows([recipe], ITEMS)
    assert (row.download, row.settled, row.weights, row.disk, row.seconds, row.commercial) == (None,) * 6
    assert text_of([row]).count("?") == 9  # five cells, the licence, and the three sums
    # Once its config is on this machine, only the licence and the download are open.
    keys = toy_config("qwen2").to_dict()
    put_in_cache(empty_hub_cache, "someone/else", {"config.json": json.dumps(keys)})
    (row,) = plan.plan_rows([recipe], ITEMS)
    assert row.settled is not None and row.disk is not None and row.download is None
    # A backbone's short name with another hub id is another model.
    (row,) = plan.plan_rows([make_recipe({"backbone": "polar", "model_id": "someone/polar"}, "here")], ITEMS)
    assert (row.download, row.settled, row.licence) == (None, None, None)


def test_no_hours_without_items() -> None:
    (row,) = plan.plan_rows([load_recipe(PUBLISHED / "polar.yaml")], {"test": 605})
    assert row.seconds is None and row.disk is not None


@pytest.mark.parametrize("settings", [{"backbone": "spow12"}, {}])
def test_a_miniature_lies_in_a_folder(settings: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "miniature"
    toy_config("qwen2").save_pretrained(folder)
    (row,) = plan.plan_rows([make_recipe({"name": "mini", "model_id": str(folder), **settings}, "here")], ITEMS)
    assert (row.download, row.note, row.seconds, row.commercial) == (0, "miniature", None, None)
    assert row.weights < 10**6 and row.cards["24"].fits
    assert "mini: " in text_of([row])


def test_a_copy_of_a_backbone_keeps_its_licence(tmp_path: Path) -> None:
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", **sizes, **heads}))
    (row,) = plan.plan_rows([make_recipe({"backbone": "spow12", "model_id": str(tmp_path)}, "here")], ITEMS)
    assert (row.download, row.licence, row.commercial) == (0, "cc-by-nc-4.0", False)
    assert row.note.startswith("local folder")
    (row,) = plan.plan_rows([make_recipe({"model_id": str(tmp_path)}, "here")], ITEMS)
    assert (row.licence, row.note) == (None, "local folder")


@pytest.mark.parametrize("text", [None, "{", '{"model_type": "mamba"}'])
def test_a_folder_without_a_usable_config(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    (row,) = plan.plan_rows([make_recipe({"model_id": str(tmp_path)}, "here")], ITEMS)
    assert (row.download, row.settled, row.note) == (0, None, "local folder")
