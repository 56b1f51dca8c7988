"""Fine-tuning: Hugging Face's `Trainer` does the loop; what is ours is the loss, the evaluation and what is kept on
disk.

The loss of an optimizer step is one weighted sum over all its supervised tokens, on all devices and in all
accumulated batches, divided by the sum of the weights: 1×8, 8×1 and 2×4 items a step give the same gradient.

Every evaluation is item accuracy on dev, read just as scoring reads it. The best weights by it (ties: lower
log-loss) are kept in `adapter/` or `model/`, and one checkpoint to go on from in `checkpoints/`; there is nothing else.
"""

import dataclasses
import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from src import model as models
from src import plan, progress
from src.cli import UserError
from src.data import Item
from src.encode import Encoder, Example
from src.metrics import evaluate
from src.recipes import Recipe
from src.records import ItemScores
from src.scores import pad, score

CHECKPOINTS = "checkpoints"
IGNORED = -100
"""Label of a token that carries no loss, torch's own `ignore_index`."""

OPTIMIZERS = {
    # Fused: the default one holds a copy of all moments at its peak.
    "fp32": ("adamw_torch_fused", None),
    "fp32-8bit": ("adamw_8bit", None),
    # torchao rounds each bf16 weight up or down by chance in proportion, so that updates below half a step count on
    # average.
    "bf16-stochastic": ("adamw_torch_8bit", "bf16_stochastic_round=True"),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What training leaves for the record."""

    trainable_parameters: int
    parameters: int
    training: dict[str, Any]


def fine_tune(
    recipe: Recipe, encoder: Encoder, train: Sequence[Item], dev: Sequence[Item], folder: Path, device: torch.device
) -> Outcome:
    """Trains `recipe` on `train`, evaluates on `dev`, leaves the best weights and the last checkpoint in `folder`.

    Goes on from the last whole checkpoint when `folder` holds one of the same recipe, data and prompt.
    """
    set_seed(recipe.seed)
    config = models.load_config(recipe)
    examples = objective_of(recipe, encoder.for_training(train))
    dev_examples = encoder.for_scoring(dev)
    assert encoder.letter_ids is not None
    _show(recipe, encoder, examples, dev_examples)
    shape = plan.Shape.of_config(config)
    longest = max(len(one.ids) for one in examples) * recipe.batch_size
    settled = plan.settle(
        shape,
        recipe.method,
        recipe.optimizer,
        recipe.gradient_checkpointing,
        longest,
        recipe.lora_r,
        torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None,
        sequences=recipe.batch_size,
    )
    if not settled.fits:
        print(f"this may run out of memory: about {settled.memory.total / 2**30:.0f} GiB are needed")
    plan.check_disk(
        folder, plan.run_folder_bytes(shape, recipe.method, settled.optimizer, recipe.lora_r), f"the run {recipe.name}"
    )

    mixed = recipe.method == "full" and settled.optimizer != "bf16-stochastic"
    full = torch.float32 if mixed else torch.bfloat16
    network = models.load_base(recipe, device, dtype=full if recipe.method == "full" else None)
    if recipe.method != "full":
        network = models.add_adapter(network, recipe)
    trainable, total = models.count_parameters(network)
    before = sample_weights(network) if recipe.method == "full" else {}
    print(
        f"training {trainable:,} of {total:,} parameters, {recipe.method}"
        f"{' with ' + settled.optimizer if recipe.method == 'full' else ''}, {device}, "
        f"gradient checkpointing {'on' if settled.checkpointing else 'off'}"
    )

    arguments = TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=recipe.epoch,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        learning_rate=recipe.lr,
        lr_scheduler_type=recipe.lr_scheduler,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim=OPTIMIZERS[settled.optimizer if recipe.method == "full" else "fp32"][0],
        optim_args=OPTIMIZERS[settled.optimizer if recipe.method == "full" else "fp32"][1],
        bf16=device.type == "cuda" and (recipe.method != "full" or mixed),
        use_cpu=device.type == "cpu",
        activation_checkpointing=settled.checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="steps" if recipe.eval_steps else "epoch",
        save_strategy="steps" if recipe.eval_steps else "epoch",
        eval_steps=recipe.eval_steps,
        save_steps=recipe.eval_steps or 500,
        save_total_limit=1,
        logging_strategy="steps",
        logging_steps=10,
        logging_nan_inf_filter=False,
        seed=recipe.seed,
        data_seed=recipe.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,
        report_to="none",
    )
    # One process drives one GPU; several visible ones would make Trainer split each batch over them (DataParallel).
    arguments._n_gpu = min(1, arguments.n_gpu)
    trainer = LetterTrainer(
        network, arguments, recipe=recipe, encoder=encoder, train=examples, dev=dev, dev_examples=dev_examples
    )
    best = KeepBest(folder, trainer, recipe)
    started = time.monotonic()
    with progress.stage("train", 1) as bar:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(best)
        trainer.add_callback(_Report(bar))
        checkpoint = last_checkpoint(folder / CHECKPOINTS)
        if checkpoint:
            print(f"going on from {checkpoint}")
            trainer.state = TrainerState.load_from_json(f"{checkpoint}/{TRAINER_STATE_NAME}")
        if checkpoint and best.patience_is_over(trainer.state):
            trainer._load_from_checkpoint(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=checkpoint)
    history = evaluations(trainer.state)
    assert history, "Trainer evaluates after its last step"
    kept = history[best_of(history)]
    training: dict[str, Any] = {
        "optimizer": settled.optimizer if recipe.method == "full" else "fp32",
        "gradient_checkpointing": settled.checkpointing,
        "effective_batch": recipe.batch_size * recipe.gradient_accumulation_steps * trainer.args.world_size,
        "steps": trainer.state.global_step,
        "seconds": time.monotonic() - started,
        "resumed_from": checkpoint,
        "best_step": kept["step"],
        "evaluations": history,
        "loss": [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry],
    }
    if before:
        training["weights_moved"] = share_moved(before, sample_weights(trainer.model))
        print(f"{training['weights_moved']:.1%} of a sample of the weights moved")
    return Outcome(trainable, total, training)


def objective_of(recipe: Recipe, examples: Sequence[Example]) -> list[Example]:
    """Cuts the supervised part down to the letter when the objective is the letter alone."""
    if recipe.objective == "answer":
        return list(examples)
    return [dataclasses.replace(one, ids=one.ids[: one.answer_start + 1]) for one in examples]


def collate(examples: Sequence[Example], pad_id: int, loss_per: str) -> dict[str, torch.Tensor]:
    """A batch: input_ids, attention_mask, labels (int64) and weights (float32), all (items, longest).

    `labels` and `weights` belong to the token that is predicted: position p is predicted from p - 1. Weights are 1
    for each supervised token, or one item's sum to 1.
    """
    ids, attention = pad([one.ids for one in examples], pad_id)
    labels = torch.full_like(ids, IGNORED)
    weights = torch.zeros(ids.shape)
    for row, one in enumerate(examples):
        answer = slice(one.answer_start, len(one.ids))
        labels[row, answer] = ids[row, answer]
        weights[row, answer] = 1 / (len(one.ids) - one.answer_start) if loss_per == "item" else 1
    return {"input_ids": ids, "attention_mask": attention, "labels": labels, "weights": weights}


class LetterTrainer(Trainer):
    """`Trainer` with our loss and with item accuracy as its evaluation."""

    def __init__(
        self,
        network: Any,
        arguments: TrainingArguments,
        *,
        recipe: Recipe,
        encoder: Encoder,
        train: Sequence[Example],
        dev: Sequence[Item],
        dev_examples: Sequence[Example],
    ) -> None:
        self.recipe, self.encoder, self.dev, self.dev_examples = recipe, encoder, dev, dev_examples
        super().__init__(
            network,
            arguments,
            train_dataset=list(train),
            eval_dataset=list(dev_examples),
            data_collator=lambda batch: collate(batch, encoder.pad_id, recipe.loss_per),
        )
        self.loss_is_scaled_for_ga = True

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device
    ) -> torch.Tensor:
        """Sum of the loss weights of the whole optimizer step, over all devices."""
        total = torch.stack([batch["weights"].sum() for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(total).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        labels, weights = inputs["labels"][:, 1:], inputs["weights"][:, 1:]
        supervised = labels != IGNORED
        keep = torch.nn.functional.pad(supervised, (0, 1))
        logits = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], logits_to_keep=keep, use_cache=False
        ).logits
        logits = logits.reshape(-1, logits.shape[-1]).float()
        targets = labels[supervised]
        if self.recipe.objective == "letters":
            letters = torch.tensor(self.encoder.letter_ids, device=targets.device)
            logits, targets = logits[:, letters], (targets[:, None] == letters).int().argmax(1)
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        # Gradients of several devices are averaged, while our denominator counts all of them.
        loss = (losses * weights[supervised]).sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, logits) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        rows = score(
            self.accelerator.unwrap_model(self.model),
            self.dev_examples,
            self.encoder.letter_ids or (),
            self.encoder.pad_id,
        )
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in dev_metrics(self.dev, rows).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def dev_metrics(items: Sequence[Item], rows: Sequence[ItemScores]) -> dict[str, float]:
    """Item accuracy, also per category, and the log-loss of the right option in nats."""
    result = evaluate(items, [row.prediction for row in rows])
    labels = [item.label for item in items if item.label is not None]
    log_loss = -math.fsum(row.logprobs[label] for row, label in zip(rows, labels, strict=True)) / len(rows)
    metrics = {f"accuracy_{name}": part.accuracy for name, part in result.per_category.items()}
    return {"accuracy": result.accuracy, "correct": result.correct, "log_loss": log_loss, **metrics}


def evaluations(state: TrainerState) -> list[dict[str, Any]]:
    """What the evaluations so far logged, `dev_metrics` under names that begin with `eval_`."""
    return [entry for entry in state.log_history if "eval_accuracy" in entry]


def best_of(history: Sequence[dict[str, Any]]) -> int:
    """Index of the evaluation with most right items; of equals the one with the lowest log-loss, then the first."""
    ranks = [(entry["eval_correct"], -entry["eval_log_loss"]) for entry in history]
    return ranks.index(max(ranks))


class KeepBest(TrainerCallback):
    """Saves the weights of the best evaluation, and stops when none was better for a while. Its state is the
    trainer's log.
    """

    def __init__(self, folder: Path, trainer: LetterTrainer, recipe: Recipe) -> None:
        self.trainer, self.recipe = trainer, recipe
        self.target = folder / (models.MODEL if recipe.method == "full" else models.ADAPTER)
        self.fresh, self.old = (self.target.with_name(f"{self.target.name}.{end}") for end in ("part", "old"))
        if self.old.is_dir() and not self.target.exists():  # stopped between the two renames of `_save`
            self.old.rename(self.target)

    def patience_is_over(self, state: TrainerState) -> bool:
        """Whether so many evaluations followed the best one that training is to stop."""
        history = evaluations(state)
        patience = self.recipe.early_stopping_patience
        return bool(history and patience) and len(history) - 1 - best_of(history) >= (patience or 0)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):  # type: ignore[no-untyped-def]
        history = evaluations(state)
        last = history[-1]
        is_best = best_of(history) == len(history) - 1
        print(
            f"epoch {last['epoch']:.2f}, step {last['step']}: dev accuracy {last['eval_accuracy']:.4f} "
            f"({last['eval_correct']}/{len(self.trainer.dev)}), log-loss "
            f"{last['eval_log_loss']:.4f}{', best so far' if is_best else ''}",
            flush=True,
        )
        if is_best and state.is_world_process_zero:
            self._save()
        if self.patience_is_over(state):
            print(f"no better evaluation for {self.recipe.early_stopping_patience}; stopping early")
            control.should_training_stop = True

    def _save(self) -> None:
        for path in (self.fresh, self.old):
            shutil.rmtree(path, ignore_errors=True)
        network = self.trainer.accelerator.unwrap_model(self.trainer.model)
        if self.recipe.method == "full":
            # Scoring loads the compute dtype anyway; fp32 masters would only double the size. The copy is made in
            # main memory, the GPU's is full.
            dtype = models.compute_dtype(network.device)
            state = {
                key: value.to("cpu", dtype if value.is_floating_point() else None)
                for key, value in network.state_dict().items()
            }
            network.save_pretrained(self.fresh, state_dict=state)
        else:
            # Left to itself, peft asks the hub whether the vocabulary has grown.
            network.save_pretrained(self.fresh, save_embedding_layers=False)
        self.trainer.encoder.tokenizer.save_pretrained(self.fresh)
        if self.target.exists():
            self.target.rename(self.old)
        self.fresh.rename(self.target)
        shutil.rmtree(self.old, ignore_errors=True)


class _Report(TrainerCallback):
    def __init__(self, bar: progress.Progress) -> None:
        self.bar = bar

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.bar.total = state.max_steps

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.bar.update(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        wrong = {key: logs[key] for key in ("loss", "grad_norm") if key in logs and not math.isfinite(logs[key])}
        if wrong:
            raise UserError(
                f"training diverged before step {state.global_step}: {wrong}. A lower lr or a warm-up may help."
            )


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint: `trainer_state.json` is what `Trainer` writes last, so one without it was cut
    off.
    """
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            whole.append(
                (json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"], str(path))
            )
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path)
    return max(whole)[1] if whole else None


def sample_weights(network: Any, per_tensor: int = 65536) -> dict[str, torch.Tensor]:
    """Up to `per_tensor` evenly spaced values of every trainable tensor, on the CPU."""
    sample = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            flat = parameter.detach().reshape(-1)
            sample[name] = flat[:: max(1, flat.numel() // per_tensor)].clone().cpu()
    return sample


def share_moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """Share of the sampled weights whose value differs."""
    moved = sum(int((before[name] != after[name]).sum()) for name in before)
    return moved / sum(values.numel() for values in before.values())


def _show(recipe: Recipe, encoder: Encoder, train: Sequence[Example], dev: Sequence[Example]) -> None:
    """What will be learned, before hours are spent on it."""
    lengths = sorted(len(one.ids) for one in train)
    labels = Counter(one.letter for one in train)
    print(f"one item as {recipe.backbone} sees it, the supervised part between ⟦ and ⟧:\n{encoder.show(train[0])}\n")
    print(
        f"{len(train)} train items of {lengths[0]} to {lengths[-1]} tokens (median {lengths[len(lengths) // 2]}), "
        f"letters {dict(sorted(labels.items()))}, {len(dev)} dev items; letters A, B, C are tokens "
        f"{encoder.letter_ids}; "
        f"chat template from the {encoder.template_source}, system turn {encoder.system_turn}"
    )
    steps = math.ceil(len(train) / (recipe.batch_size * recipe.gradient_accumulation_steps))
    print(
        f"{steps} optimizer steps an epoch, {recipe.epoch} epochs, lr {recipe.lr}, loss over the "
        f"{recipe.objective}, per {recipe.loss_per}"
    )
