"""Fine-tuning: Hugging Face's `Trainer` does the loop; what is ours is the loss, the evaluation and what is kept on
disk.

The loss of an optimizer step is one weighted sum over all its supervised tokens, on all devices and in all
accumulated batches, divided by the sum of the weights: 1×8, 8×1 and 2×4 items a step give the same gradient. With
objective orpo it is that of `src/train/orpo.py`, and all else stays.

Every evaluation is item accuracy on dev, read just as scoring reads it. The best weights by it (ties: lower
log-loss) are kept in `adapter/` or `model/`, and one checkpoint to go on from in `checkpoints/`; there is nothing else.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from src.console import progress
from src.console.cli import UserError
from src.console.words import counted
from src.data import Item
from src.files.paths import ADAPTER, CHECKPOINTS, MODEL
from src.model import load as models
from src.model import shapes
from src.model.disk import check_disk
from src.model.memory import MemoryPlan, run_folder_bytes
from src.model.recipes import BF16_STOCHASTIC, FP32, FP32_8BIT, Recipe
from src.prompt.encode import Encoder, Example
from src.score.item_scores import ItemScores
from src.score.letters import LetterScorer
from src.train.guard import CHECKPOINTING, guarded, one_by_one
from src.train.objectives import Objective, make_objective
from src.tree import compiler, layouts
from src.tree.rows import WORTHWHILE, Layout, Row, make_ready, obstacle, rows_on_gpu
from src.worth.metrics import evaluate

T = TypeVar("T")
NOTED = 2.0
"""Seconds after which the loss beside the bar is a new one."""
HINTED = 16
"""Items of a step for which it is said what they would share."""

OPTIMIZERS = {
    # Fused: the default one holds a copy of all moments at its peak.
    FP32: ("adamw_torch_fused", None),
    FP32_8BIT: ("adamw_8bit", None),
    # torchao rounds each bf16 weight up or down by chance in proportion, so that updates below half a step count on
    # average.
    BF16_STOCHASTIC: ("adamw_torch_8bit", "bf16_stochastic_round=True"),
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
    shape = shapes.Shape.of_config(config)
    objective = make_objective(recipe)
    examples = objective.examples(encoder, train)
    dev_answers = objective.examples(encoder, dev) if objective.measures else []
    dev_examples = encoder.for_scoring(dev)
    _show(recipe, encoder, examples, dev_examples)
    steps = layouts.epoch_steps(examples, recipe, int(os.environ.get("WORLD_SIZE", 1)))
    checkpoint = last_checkpoint(folder / CHECKPOINTS)
    planned = recipe
    if checkpoint and recipe.method == "full":  # its moments are of one kind
        planned = recipe.replace(optimizer=optimizer_of(checkpoint))
    why = _obstacle(recipe, config, examples, encoder.pad_id, device)
    if why:
        planned = planned.replace(share_prefixes="off")
    compiled = rows_on_gpu(device) and not why
    work = layouts.TrainingSteps(
        planned, shape, examples, steps, encoder.pad_id, functools.partial(objective.logit_positions, examples)
    )
    layout, saved, settled = layouts.training_layout(work, device, compiled)
    if compiled and layout.kind != "tree" and recipe.share_prefixes == "auto":
        _hint(recipe, examples, layout)
    if not settled.fits:
        print(f"this may run out of memory: about {settled.memory.total / 2**30:.0f} GiB are needed")
    check_disk(
        folder,
        run_folder_bytes(shape, recipe.method, settled.optimizer, recipe.lora_r),
        f"the run {recipe.name}",
    )
    network = load_for_training(recipe, settled, device)
    before = sample_weights(network) if recipe.method == "full" else {}
    made_of = recipe, encoder, examples, dev, dev_examples, folder, layout, settled
    trainer = make_trainer(network, *made_of, dev_answers=dev_answers)
    trainable, total = models.count_parameters(network)
    print(
        f"training {trainable:,} of {total:,} parameters, {recipe.method}"
        f"{' with ' + settled.optimizer if recipe.method == 'full' else ''}"
        f"{' dequantised once' if settled.dequantised else ''}, {device}, "
        f"gradient checkpointing {'on' if settled.checkpointing else 'off'}; {_words(layout, saved)}"
    )
    whole = len(steps) * recipe.epoch
    if recipe.lr_scheduler != "constant" and trainer.args.get_warmup_steps(whole) >= whole:
        print(
            f"the warm-up takes all {whole} optimizer steps, and the first one's learning rate is 0: next to nothing "
            "is learned. More items or epochs, or --warmup_steps 0, end that"
        )
    guard = guarded(trainer, settled.checkpointing)
    best = KeepBest(folder, trainer, recipe)
    started = time.monotonic()
    with progress.stage("train", whole) as bar:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(best)
        trainer.add_callback(_Report(bar, trainer))
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
    # The answers of an item come in one row and share its prompt, if nothing else.
    shares = trainer.layout.kind == "tree" or (trainer.layout.kind == "single" and objective.compares)
    drops = recipe.method != "full" and recipe.lora_dropout > 0
    if shares and trainer.layout != layout:  # shorter rows share less
        saved = layouts.sharing(examples, steps, trainer.layout)
    training: dict[str, Any] = {
        "optimizer": settled.optimizer if recipe.method == "full" else "fp32",
        "gradient_checkpointing": settled.checkpointing or network.is_gradient_checkpointing,
        "dequantised": settled.dequantised,
        "effective_batch": recipe.batch_size * recipe.gradient_accumulation_steps * trainer.args.world_size,
        "rows": {
            "kind": trainer.layout.kind,
            "lengths": trainer.layout.lengths or None,
            "tokens": trainer.layout.tokens,
            "sharing": saved if shares else 1.0,
            "dropout": "one mask for each shared token" if shares and drops else "usual",
            "guard": guard,
            **({"obstacle": why or trainer.obstacle} if why or trainer.obstacle else {}),
        },
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


def load_for_training(recipe: Recipe, settled: MemoryPlan, device: torch.device) -> Any:
    """The recipe's model with what is trained in the dtype of `settled`."""
    if recipe.method == "full":
        return models.load_base(recipe, device, dtype=torch.float32 if mixed(recipe, settled) else torch.bfloat16)
    return models.add_adapter(models.load_base(recipe, device, dequantised=settled.dequantised), recipe)


def make_trainer(
    network: Any,
    recipe: Recipe,
    encoder: Encoder,
    examples: Sequence[Example],
    dev: Sequence[Item],
    dev_examples: Sequence[Example],
    folder: Path,
    layout: Layout,
    settled: MemoryPlan,
    dev_answers: Sequence[Example] = (),
) -> "LetterTrainer":
    """The trainer of `network`, ready to begin; checkpoints go to `folder`/checkpoints. dev_answers: as `examples`, of
    dev, for the evaluations of objective orpo.
    """
    device = network.device
    optimizer = OPTIMIZERS[settled.optimizer if recipe.method == "full" else "fp32"]
    arguments = TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=recipe.epoch,
        # A batch is a whole optimizer step; its rows are what is accumulated.
        per_device_train_batch_size=recipe.batch_size * recipe.gradient_accumulation_steps,
        learning_rate=recipe.lr,
        lr_scheduler_type=recipe.lr_scheduler,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim=optimizer[0],
        optim_args=optimizer[1],
        # Adapters are cast where they are used; only fp32 weights need autocast.
        bf16=device.type == "cuda" and mixed(recipe, settled),
        use_cpu=device.type == "cpu",
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
    if layout.lengths:
        make_ready(network, settled.checkpointing)
    elif settled.checkpointing:
        network.gradient_checkpointing_enable(CHECKPOINTING)
    return LetterTrainer(
        network,
        arguments,
        recipe=recipe,
        encoder=encoder,
        train=examples,
        dev=dev,
        dev_examples=dev_examples,
        dev_answers=dev_answers,
        layout=layout,
        checkpointing=settled.checkpointing,
    )


def _obstacle(recipe: Recipe, config: Any, examples: Sequence[Example], pad_id: int, device: torch.device) -> str:
    """Why no prefixes can be shared, which is said, or refused where they were asked for; "" when they can."""
    machine = compiler.obstacle(device)
    on_gpu = device.type != "cpu"
    if not machine and recipe.method == "full" and recipe.optimizer in ("bf16-stochastic", "auto" if on_gpu else ""):
        # This optimizer compiles its steps, and one that failed half-way could not be taken again.
        failed = compiler.try_out(device)
        machine = failed if on_gpu else ""
        if failed and not on_gpu:
            print(f"the optimizer is not compiled: {failed}")
            compiler.stay_eager()
    why = obstacle(models.class_of(config), config, device)
    if (why or machine) and recipe.share_prefixes == "on":
        raise UserError(f"{recipe.name}: share_prefixes is on, but {why or machine}. Leave it at auto.")
    if why:
        print(f"no prefixes are shared: {why}")
    if machine:
        compiler.give_up(machine, layouts.slower(recipe, examples, pad_id))
    return why or machine


class ByDialogue(torch.utils.data.Sampler[int]):
    """Dialogues in a random order, and their items in a random order, other ones in each epoch."""

    def __init__(self, examples: Sequence[Example], seed: int) -> None:
        self.examples, self.seed, self.epoch = examples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[int]:
        return iter(layouts.by_dialogue(self.examples, f"{self.seed}-{self.epoch}"))


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
        layout: Layout,
        dev_answers: Sequence[Example] = (),
        checkpointing: bool = False,
    ) -> None:
        self.recipe, self.encoder, self.dev, self.dev_examples = recipe, encoder, dev, dev_examples
        self.objective: Objective = make_objective(recipe)
        self.dev_answers = list(dev_answers)
        self.network, self.layout, self.examples = network, layout, list(train)
        self.checkpointing = checkpointing
        self.scorer = LetterScorer(network, encoder.letter_ids or (), encoder.pad_id, recipe.share_prefixes)
        self.obstacle = ""
        """What failed while compiling, if anything did."""
        self._trained: list[torch.nn.Parameter] | None = None
        super().__init__(
            network,
            arguments,
            train_dataset=self.examples,
            eval_dataset=list(dev_examples),
            # What was laid out ahead is laid out anew where compiling fails meanwhile.
            data_collator=lambda step: {
                "rows": self.objective.collate(step, self.layout),
                "examples": step,
                "layout": self.layout,
            },
        )
        self.loss_is_scaled_for_ga = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.recipe.order == "dialogue":
            return ByDialogue(self.examples, self.recipe.seed)
        return super()._get_train_sampler(train_dataset)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, list[Row]]], device: torch.device) -> torch.Tensor:
        """The objective's totals of the whole optimizer step, over all devices."""
        total = self.objective.totals([row for batch in batch_samples for row in batch["rows"]])
        return self.accelerator.gather(total.to(device)[None]).sum(0)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # Trainer's estimate counts no shared tokens

    def training_step(self, model, inputs, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        """Forward and backward, row by row; the gradients of a step's rows add up.

        Trainer's own step also goes through all modules in Python, which takes as long as a small step on the GPU.
        """
        if not model.training:
            model.train()
        self.last_loss = self._or_usually(lambda: self._accumulate(model, inputs, num_items_in_batch))
        return self.last_loss

    def _accumulate(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> torch.Tensor:
        rows = inputs["rows"]
        if inputs["layout"] != self.layout:
            rows = self.objective.collate(inputs["examples"], self.layout)
        losses = []
        for number, row in enumerate(rows, 1):
            last = number == len(rows)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                loss = self.compute_loss(model, self._prepare_inputs(row), num_items_in_batch=num_items_in_batch)
                self.accelerator.backward(loss)
                losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _or_usually(self, work: Callable[[], T]) -> T:
        """What `work` gives; done anew in the usual layers should compiling fail in it."""
        try:
            return work()
        except Exception as error:
            if not (why := compiler.failure(error)):
                raise
        self.fall_back(why)
        return work()

    def fall_back(self, why: str) -> None:
        """Goes on without compiled layers, one item at a time, from before the step that is under way."""
        compiler.give_up(why, layouts.slower(self.recipe, self.examples, self.layout.pad_id))
        self.obstacle = why
        self.network.zero_grad(set_to_none=True)
        self.network.train()
        one_by_one(self, self.checkpointing)
        torch.cuda.empty_cache()

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        if self._trained is None:  # what is trained does not change, and looking for it takes as long again
            self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.nn.utils.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        loss, outputs = self.row_loss(model, inputs, num_items_in_batch)
        # Gradients of several devices are averaged, while our denominator counts all of them.
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def row_loss(self, model: Any, row: Row, totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(the row's part of the step's loss, the objective's outputs that it is computed from)."""
        # Accelerate's own autocast ends with the model's forward; the head of `logprobs_at` comes after it.
        with torch.autocast(row["input_ids"].device.type, torch.bfloat16, enabled=self.args.bf16):
            outputs = self.objective.outputs(model, row)
            return self.objective.loss(outputs, row, totals, self.encoder.letter_ids or ()), outputs

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        scored = self.scorer.score(self.dev_examples, kind="padded" if self.layout.kind == "padded" else None)
        if self.layout.kind != "padded" and (why := compiler.gave_up()):
            self.fall_back(why)
        found = dev_metrics(self.dev, scored.items)
        if self.dev_answers:
            network = self.accelerator.unwrap_model(self.model)
            found |= self._or_usually(
                lambda: self.objective.measure(network, self.dev_answers, self.layout, self.args.bf16)
            )
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in found.items()}
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
        self.target = folder / (MODEL if recipe.method == "full" else ADAPTER)
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
        measured = self.trainer.objective.measured_words(last) if self.trainer.dev_answers else ""
        print(
            f"epoch {last['epoch']:.2f}, step {last['step']}: dev accuracy {last['eval_accuracy']:.4f} "
            f"({last['eval_correct']}/{len(self.trainer.dev)}), log-loss "
            f"{last['eval_log_loss']:.4f}{', best so far' if is_best else ''}",
            *([measured] if measured else []),
            sep="\n    ",
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
    """The bar's length, and beside it the loss of the last step and the next one's learning rate."""

    def __init__(self, bar: progress.Progress, trainer: LetterTrainer) -> None:
        self.bar, self.trainer = bar, trainer
        self.noted = -math.inf

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.bar.begin(state.global_step, state.max_steps)

    def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):  # type: ignore[no-untyped-def]
        # A GPU is waited for when its loss is read.
        if time.monotonic() - self.noted >= NOTED or state.global_step == state.max_steps:
            self.noted = time.monotonic()
            self.bar.note(f"loss {self.trainer.last_loss.item():.4f}, lr {lr_scheduler.get_last_lr()[0]:.2e}")
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


def optimizer_of(checkpoint: str) -> str:
    """The optimizer whose moments a checkpoint keeps, as in a recipe."""
    arguments = torch.load(f"{checkpoint}/{TRAINING_ARGS_NAME}", weights_only=False)
    return next(name for name, (optim, _) in OPTIMIZERS.items() if optim == arguments.optim)


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


def mixed(recipe: Recipe, settled: MemoryPlan) -> bool:
    """Whether the weights are fp32 and computed with in bf16 (on a GPU)."""
    return recipe.method == "full" and settled.optimizer != "bf16-stochastic"


def _hint(recipe: Recipe, examples: Sequence[Example], layout: Layout) -> None:
    """Says what larger optimizer steps would share, where it is worth it."""
    larger = recipe.replace(batch_size=HINTED, gradient_accumulation_steps=1, order="dialogue")
    steps = layouts.epoch_steps(examples, larger)
    shared = layouts.sharing(examples, steps, dataclasses.replace(layout, kind="tree", tokens=layouts.GPU_ROW))
    if shared >= WORTHWHILE:
        step = recipe.batch_size * recipe.gradient_accumulation_steps
        items = "one item" if step == 1 else f"{step} items"
        print(
            f"steps of {items} share too little. --batch_size {HINTED} --order dialogue would compute "
            f"{shared:.1f} times fewer tokens, in fewer steps of another gradient"
        )


def _words(layout: Layout, saved: float) -> str:
    if layout.kind == "padded":
        return "items side by side"
    lengths = f" of {', '.join(f'{length:,}' for length in layout.lengths)} tokens" if layout.lengths else ""
    if layout.kind == "single":
        return f"one item a row{lengths}"
    return f"rows{lengths} that hold shared prefixes once, {saved:.2f} tokens for each that is computed"


def _show(recipe: Recipe, encoder: Encoder, train: Sequence[Example], dev: Sequence[Example]) -> None:
    """What will be learned, before hours are spent on it."""
    lengths = sorted(max(map(len, one.sequences)) for one in train)
    labels = Counter(one.letter for one in train)
    print(f"one item as {recipe.backbone} sees it, the supervised part between ⟦ and ⟧:\n{encoder.show(train[0])}\n")
    print(
        f"{len(train)} train items of {lengths[0]} to {lengths[-1]} tokens (median {lengths[len(lengths) // 2]}), "
        f"right answers {', '.join(f'{letter} {labels[place]}' for place, letter in enumerate('ABC'))}; "
        f"{len(dev)} dev items; letters A, B, C are tokens "
        f"{encoder.letter_ids}; "
        f"chat template from the {encoder.template_source}, system turn {encoder.system_turn}"
    )
    steps = math.ceil(len(train) / (recipe.batch_size * recipe.gradient_accumulation_steps))
    print(
        f"{counted(steps, 'optimizer step')} an epoch, {counted(recipe.epoch, 'epoch')}, lr {recipe.lr}, loss over the "
        f"{make_objective(recipe).words()}, per {recipe.loss_per}"
    )
