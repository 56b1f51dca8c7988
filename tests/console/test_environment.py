"""What the shell hands over changes no result: a training under hostile variables is held against a plain one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from src.console.environment import clear, drop_lost_cache, ignored, processes
from tests.conftest import make_item

HOSTILE = {
    # accelerate
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_MEGATRON_LM": "true",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "ACCELERATE_DYNAMO_MODE": "max-autotune",
    "ACCELERATE_CPU_AFFINITY": "1",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_BYPASS_DEVICE_MAP": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
    "MEGATRON_LM_TP_DEGREE": "2",
    "XLA_USE_BF16": "1",
    # launchers
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "PMI_SIZE": "1",
    "OMPI_COMM_WORLD_SIZE": "1",
    "TORCHELASTIC_RUN_ID": "none",
    # torch and its compilers
    "NVIDIA_TF32_OVERRIDE": "1",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "TORCH_BLAS_PREFER_CUBLASLT": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "TORCHDYNAMO_SUPPRESS_ERRORS": "1",
    "TORCHINDUCTOR_MAX_AUTOTUNE": "1",
    "TORCHINDUCTOR_USE_FAST_MATH": "1",
    "PYTORCH_TUNABLEOP_ENABLED": "1",
    "TRITON_F32_DEFAULT": "tf32",
    "TRITON_INTERPRET": "1",
    "ATEN_CPU_CAPABILITY": "default",
    # transformers
    "TRANSFORMERS_SDPA_FORCE_GQA": "1",
    "USE_HUB_KERNELS": "1",
    "SM_HP_MP_PARAMETERS": '{"partitions": 2}',
    # what multiplies
    "CUBLAS_WORKSPACE_CONFIG": ":16:8",
    "CUBLASLT_WORKSPACE_SIZE": "1",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "DNNL_DEFAULT_FPMATH_MODE": "BF16",
}
"""Each of them is taken out."""
HARMLESS = {
    "TOKENIZERS_PARALLELISM": "true",
    "PYTHONHASHSEED": "7",
    "CUDA_LAUNCH_BLOCKING": "1",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "PYTORCH_VERSION": "2.13",
    "TORCH_LOGS": "+all",
    "TORCH_HOME": "/nowhere",
    "TORCH_CUDA_ARCH_LIST": "9.0",
    "TORCHINDUCTOR_CACHE_DIR": "/nowhere",
    "TRITON_CACHE_DIR": "/nowhere",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_THREADING_LAYER": "GNU",
}
"""Each of them stays, and changes nothing."""


def test_what_could_change_a_result_is_taken_out_and_the_rest_stays() -> None:
    there = {**HOSTILE, **HARMLESS, "HOME": "/root"}
    assert clear(there) == sorted(HOSTILE)
    assert there == {**HARMLESS, "HOME": "/root"}
    assert clear(there) == []


def test_several_processes_are_left_to_be_refused() -> None:
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        there = {name: "2", "LOCAL_RANK": "1", "ACCELERATE_MIXED_PRECISION": "bf16"}
        assert processes(there) == 2
        assert clear(there) == ["ACCELERATE_MIXED_PRECISION"] and there == {name: "2", "LOCAL_RANK": "1"}
    assert processes({"WORLD_SIZE": "many"}) == processes({}) == 1


def test_what_was_ignored_is_one_line() -> None:
    assert ignored(["A", "B"]).startswith("ignored from the environment: A, B. Only recipe and flags decide")
    many = ignored([f"NAME{number}" for number in range(20)])
    assert "NAME7 and 12 more." in many and "\n" not in many


def trained(folder: Path, backbone: Path, environment: dict[str, str]) -> tuple[dict[str, bytes], list[object], str]:
    """(the files that hold results, the losses, what stderr said) of a command that trains under `environment`."""
    command = [sys.executable, "-m", "run.train", "--model_id", str(backbone), "--method", "lora", "--device", "cpu"]
    command += ["--data", str(folder.parent / "data"), "--save_dir", str(folder), "--batch_size", "2", "--epoch", "1"]
    command += ["--lora_dropout", "0.1", "--lr", "1e-3"]
    plain = {name: value for name, value in os.environ.items() if name not in {**HOSTILE, **HARMLESS}}
    shell = {**plain, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=shell, capture_output=True, encoding="utf-8", errors="replace", check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    names = ("adapter/adapter_model.safetensors", "scores_dev.jsonl", "predictions_dev.json")
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return {name: (folder / name).read_bytes() for name in names}, record["training"]["loss"], done.stderr


@pytest.mark.trains
@pytest.mark.thorough
def test_no_variable_changes_what_is_trained_or_scored(backbone_folder: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, start, count in (("train", 0, 6), ("dev", 6, 6)):
        items = json.dumps([make_item(number) for number in range(start, start + count)], ensure_ascii=False)
        (tmp_path / "data" / f"data_{split}.json").write_text(items, encoding="utf-8")
    backbone = backbone_folder("qwen2")
    files, losses, said = trained(tmp_path / "plain", backbone, {"PYTHONHASHSEED": "0"})
    assert "ignored" not in said
    harmless = {name: value for name, value in HARMLESS.items() if value != "/nowhere" and name != "TORCH_LOGS"}
    others, found, said = trained(tmp_path / "hostile", backbone, {**HOSTILE, **harmless})
    assert said.count("ignored from the environment: ACCELERATE_BYPASS_DEVICE_MAP, ACCELERATE_CPU_AFFINITY") == 1
    assert found == losses
    assert others == files, [name for name in files if files[name] != others[name]]


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_ranks_have_to_know_where_they_meet(name: str) -> None:
    """Launchers other than torchrun and accelerate say only how many there are."""
    command = [sys.executable, "-m", "run.train", "--recipe", "resource/recipes/published/polar.yaml"]
    done = subprocess.run(command, env={**os.environ, name: "2"}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and f"({name}=2) without RANK" in done.stderr and "torchrun" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cache_that_cannot_be_made_is_known_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    lost = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "file" / "cache")}
    assert drop_lost_cache(lost).startswith("TORCHINDUCTOR_CACHE_DIR is ") and lost == {}
    kept = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "made")}
    assert drop_lost_cache(kept) == "" and (tmp_path / "made").is_dir() and kept
    assert drop_lost_cache({}) == ""
