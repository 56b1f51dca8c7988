"""The `TrainingArguments` of Hugging Face's `Trainer`, made from a recipe."""

from pathlib import Path

import torch
from transformers import TrainingArguments

from src.model.memory import MemoryPlan, in_fp32
from src.model.recipes import BF16_STOCHASTIC, FP32, FP32_8BIT, Recipe

OPTIMIZERS = {
    # Fused: the default one holds a copy of all moments at its peak.
    FP32: ("adamw_torch_fused", None),
    FP32_8BIT: ("adamw_8bit", None),
    # torchao rounds bf16 weights up or down at random (stochastic rounding). So updates below half a rounding step
    # count on average.
    BF16_STOCHASTIC: ("adamw_torch_8bit", "bf16_stochastic_round=True"),
}
"""Name of the optimizer in a recipe → (`optim`, `optim_args`)."""
CHECKPOINTING = {"use_reentrant": False}
"""Arguments of gradient checkpointing in the standard layers."""


def has_fp32_masters(recipe: Recipe, memory: MemoryPlan) -> bool:
    """Whether the weights are fp32 and computed with in bf16 (on a GPU)."""
    return in_fp32(recipe.method, memory.optimizer)


def optimizer_name(recipe: Recipe, memory: MemoryPlan) -> str:
    """The optimizer as recipes name it. Adapters have no choice of one."""
    return memory.optimizer if recipe.method == "full" else FP32


def training_arguments(
    recipe: Recipe, memory: MemoryPlan, device: torch.device, checkpoints: Path
) -> TrainingArguments:
    optim, optim_args = OPTIMIZERS[optimizer_name(recipe, memory)]
    when = "steps" if recipe.eval_steps else "epoch"
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=recipe.epoch,
        # A batch is a whole optimizer step; gradients are accumulated over its rows.
        per_device_train_batch_size=recipe.batch_size * recipe.gradient_accumulation_steps,
        learning_rate=recipe.lr,
        lr_scheduler_type=recipe.lr_scheduler,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim=optim,
        optim_args=optim_args,
        # Adapters are cast where they are used, and sharded weights when they are gathered.
        bf16=device.type == "cuda" and has_fp32_masters(recipe, memory) and memory.cards == 1,
        use_cpu=device.type == "cpu",
        eval_strategy=when,
        save_strategy=when,
        eval_steps=recipe.eval_steps,
        save_steps=recipe.eval_steps or 500,
        # Older checkpoints are removed by us, once the newest is whole: Trainer goes by clocks.
        save_total_limit=None,
        logging_strategy="steps",
        logging_steps=10,
        logging_nan_inf_filter=False,
        seed=recipe.seed,
        data_seed=recipe.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        # A step's rows are copied while the GPU still computes the step before.
        accelerator_config={"non_blocking": device.type == "cuda"},
        disable_tqdm=True,
        report_to="none",
    )
    # One process drives one GPU; several visible ones would make Trainer split each batch over them (DataParallel).
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments
