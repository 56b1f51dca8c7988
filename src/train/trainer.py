"""Fine-tuning: Hugging Face's `Trainer` runs the loop; the loss, the evaluation and the files kept on disk are ours.

A step minimises the recipe's objective (src/train/objectives.py). Its loss is a sum over the step's rows, divided by
totals of the whole step over all accumulated batches: 1×8, 8×1 and 2×4 items a step give the same gradient.

Every evaluation measures item accuracy on dev, computed as in scoring. The weights with the best accuracy (ties: lower
log-loss) are kept in `adapter/` or `model/`, and one checkpoint to resume from in `checkpoints/`. Nothing else is kept.

`LetterTrainer` overrides methods of transformers' Trainer that are not documented. Look here after an upgrade:
_get_train_sampler, _get_num_items_in_batch, training_step, _clip_grad_norm, floating_point_ops, evaluate. It also uses
_load_from_checkpoint and the arguments' _n_gpu.
"""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from src.console import progress
from src.console.cli import UserError
from src.data import Item
from src.files.paths import CHECKPOINTS
from src.model import load
from src.model.disk import check_disk
from src.model.memory import MemoryPlan, run_folder_bytes
from src.model.recipes import BF16_STOCHASTIC, Recipe
from src.model.shapes import Shape
from src.prompt.encode import Encoder, Example
from src.score.letters import LetterScorer
from src.train import log
from src.train.arguments import CHECKPOINTING, has_fp32_masters, optimizer_name, training_arguments
from src.train.guard import check_rows_against_single, go_on_one_by_one
from src.train.keep import (
    KeepBest,
    best_of,
    dev_metrics,
    evaluations,
    last_checkpoint,
    optimizer_of,
    sample_weights,
    share_moved,
)
from src.train.objectives import Objective, make_objective
from src.train.order import ByDialogue, epoch_steps
from src.tree import compiler, layouts
from src.tree.compiled import make_ready, obstacle, rows_on_gpu
from src.tree.layouts import TrainingLayout, TrainingSteps, training_layout
from src.tree.rows import Layout, Row

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Results of a training for the record."""

    trainable_parameters: int
    parameters: int
    training: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The encoded items: those to learn, and those that weights are chosen by.

    train         labelled items, as the objective's training examples
    dev           items; `dev_prompts` are the prompts that scoring reads of them
    dev_answers   dev in the form of `train`, for an objective that measures it
    """

    encoder: Encoder
    train: Sequence[Example]
    dev: Sequence[Item] = ()
    dev_prompts: Sequence[Example] = ()
    dev_answers: Sequence[Example] = ()


def fine_tune(
    recipe: Recipe, encoder: Encoder, train: Sequence[Item], dev: Sequence[Item], folder: Path, device: torch.device
) -> Outcome:
    """Trains `recipe` on `train`, evaluates on `dev`, and leaves the best weights and the last checkpoint in `folder`.

    Resumes from the last whole checkpoint when `folder` holds one of the same recipe, data and prompt.
    """
    set_seed(recipe.seed)
    objective = make_objective(recipe)
    encoded = _encode(objective, encoder, train, dev)
    log.show_examples(objective, encoder, encoded.train, encoded.dev_prompts)
    checkpoint = last_checkpoint(folder / CHECKPOINTS)
    setup = _set_up(objective, encoded, checkpoint, device)
    chosen = setup.chosen
    log.warn_of_memory(chosen.memory)
    needed = run_folder_bytes(setup.shape, recipe.method, chosen.memory.optimizer, recipe.lora_r)
    check_disk(folder, needed, f"the run {recipe.name}")
    network = load_for_training(recipe, chosen.memory, device)
    before = sample_weights(network) if recipe.method == "full" else {}
    trainer = make_trainer(network, recipe, encoded, folder, chosen)
    parameters = load.count_parameters(network)
    log.show_computation(recipe, chosen, parameters, device)
    steps = len(setup.steps) * recipe.epoch
    log.warn_of_warm_up(recipe, trainer.args.get_warmup_steps(steps), steps)
    guard = check_rows_against_single(trainer)
    started = time.monotonic()
    _run(trainer, KeepBest(folder, recipe, network, encoder.tokenizer, len(dev)), steps, checkpoint)
    history = evaluations(trainer.state)
    assert history, "Trainer evaluates after its last step"
    training: dict[str, Any] = {
        "optimizer": optimizer_name(recipe, chosen.memory),
        "gradient_checkpointing": chosen.memory.checkpointing or network.is_gradient_checkpointing,
        "dequantised": chosen.memory.dequantised,
        "effective_batch": recipe.batch_size * recipe.gradient_accumulation_steps * trainer.args.world_size,
        "rows": _rows_record(trainer, setup, guard),
        "steps": trainer.state.global_step,
        "seconds": time.monotonic() - started,
        "resumed_from": checkpoint,
        "best_step": history[best_of(history)]["step"],
        "evaluations": history,
        "loss": [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry],
    }
    if before:
        training["weights_moved"] = share_moved(before, sample_weights(trainer.model))
        print(f"{training['weights_moved']:.1%} of a sample of the weights moved")
    return Outcome(*parameters, training)


def _encode(objective: Objective, encoder: Encoder, train: Sequence[Item], dev: Sequence[Item]) -> Encoded:
    examples = objective.examples(encoder, train)
    dev_answers = objective.examples(encoder, dev) if objective.measures else []
    return Encoded(encoder, examples, dev, encoder.for_scoring(dev), dev_answers)


@dataclasses.dataclass(frozen=True)
class _Setup:
    """How a training is computed on the machine at hand.

    steps      indices of the examples in each optimizer step of an epoch
    obstacle   why no prefixes can be shared; "" when they can
    """

    shape: Shape
    steps: list[list[int]]
    chosen: TrainingLayout
    obstacle: str


def _set_up(objective: Objective, encoded: Encoded, checkpoint: str | None, device: torch.device) -> _Setup:
    recipe, examples, pad_id = objective.recipe, encoded.train, encoded.encoder.pad_id
    config = load.load_config(recipe)
    shape = Shape.of_config(config)
    steps = epoch_steps(examples, recipe, int(os.environ.get("WORLD_SIZE", 1)))
    planned = recipe
    if checkpoint and recipe.method == "full":  # its moments are of one kind
        planned = recipe.replace(optimizer=optimizer_of(checkpoint))
    why = _obstacle(recipe, config, examples, pad_id, device)
    if why:
        planned = planned.replace(share_prefixes="off")
    compiled = rows_on_gpu(device) and not why
    positions = functools.partial(objective.logit_positions, examples)
    chosen = training_layout(TrainingSteps(planned, shape, examples, steps, pad_id, positions), device, compiled)
    if compiled and chosen.layout.kind != "tree" and recipe.share_prefixes == "auto":
        log.hint_at_larger_steps(recipe, examples, chosen.layout)
    return _Setup(shape, steps, chosen, why)


def _obstacle(recipe: Recipe, config: Any, examples: Sequence[Example], pad_id: int, device: torch.device) -> str:
    """Why no prefixes can be shared; "" when they can. It is printed, or refused where sharing was asked for."""
    machine = compiler.obstacle(device)
    on_gpu = device.type != "cpu"
    if not machine and recipe.method == "full" and recipe.optimizer in (BF16_STOCHASTIC, "auto" if on_gpu else ""):
        # This optimizer compiles its steps, and a step that failed half-way could not be repeated.
        failed = compiler.try_out(device)
        machine = failed if on_gpu else ""
        if failed and not on_gpu:
            print(f"the optimizer is not compiled: {failed}")
            compiler.stay_eager()
    why = obstacle(load.class_of(config), config, device)
    if (why or machine) and recipe.share_prefixes == "on":
        raise UserError(f"{recipe.name}: share_prefixes is on, but {why or machine}. Leave it at auto.")
    if why:
        print(f"no prefixes are shared: {why}")
    if machine:
        compiler.give_up(machine, layouts.slowdown(recipe, examples, epoch_steps(examples, recipe), pad_id))
    return why or machine


def load_for_training(recipe: Recipe, memory: MemoryPlan, device: torch.device) -> Any:
    """The recipe's model, with its trained weights in the dtype of `memory`."""
    if recipe.method == "full":
        dtype = torch.float32 if has_fp32_masters(recipe, memory) else torch.bfloat16
        return load.load_base(recipe, device, dtype=dtype)
    return load.add_adapter(load.load_base(recipe, device, dequantised=memory.dequantised), recipe)


def make_trainer(
    network: Any, recipe: Recipe, encoded: Encoded, folder: Path, chosen: TrainingLayout
) -> "LetterTrainer":
    """The trainer of `network`, ready to begin; checkpoints go to `folder`/checkpoints."""
    arguments = training_arguments(recipe, chosen.memory, network.device, folder / CHECKPOINTS)
    checkpointing = chosen.memory.checkpointing
    if chosen.layout.lengths:
        make_ready(network, checkpointing)
    elif checkpointing:
        network.gradient_checkpointing_enable(CHECKPOINTING)
    return LetterTrainer(
        network, arguments, recipe=recipe, encoded=encoded, layout=chosen.layout, checkpointing=checkpointing
    )


def _run(trainer: "LetterTrainer", best: KeepBest, steps: int, checkpoint: str | None) -> None:
    """Trains to the end, from `checkpoint` if there is one. steps: all optimizer steps of the run."""
    with progress.stage("train", steps) as bar:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(best)
        trainer.add_callback(log.Bar(bar, lambda: trainer.last_loss))
        if checkpoint:
            print(f"going on from {checkpoint}")
            trainer.state = TrainerState.load_from_json(f"{checkpoint}/{TRAINER_STATE_NAME}")
        if checkpoint and best.patience_is_over(trainer.state):
            trainer._load_from_checkpoint(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=checkpoint)


def _rows_record(trainer: "LetterTrainer", setup: _Setup, guard: dict[str, Any] | None) -> dict[str, Any]:
    """The record's entry on the rows that were trained."""
    recipe, layout, chosen = trainer.recipe, trainer.layout, setup.chosen
    # The answers of an item come in one row and share its prompt, if nothing else.
    shares = layout.kind == "tree" or (layout.kind == "single" and trainer.objective.compares)
    drops = recipe.method != "full" and recipe.lora_dropout > 0
    factor = chosen.sharing_factor
    if shares and layout != chosen.layout:  # shorter rows share less
        factor = layouts.sharing_factor(trainer.examples, setup.steps, layout)
    obstacle = setup.obstacle or trainer.obstacle
    return {
        "kind": layout.kind,
        "lengths": layout.lengths or None,
        "tokens": layout.tokens,
        "sharing": factor if shares else 1.0,
        "dropout": "one mask for each shared token" if shares and drops else "usual",
        "guard": guard,
        **({"obstacle": obstacle} if obstacle else {}),
    }


class LetterTrainer(Trainer):
    """`Trainer` with our loss and with item accuracy as its evaluation."""

    def __init__(
        self,
        network: Any,
        arguments: TrainingArguments,
        *,
        recipe: Recipe,
        encoded: Encoded,
        layout: Layout,
        checkpointing: bool = False,
    ) -> None:
        self.recipe, self.encoder, self.dev = recipe, encoded.encoder, encoded.dev
        self.dev_examples, self.dev_answers = encoded.dev_prompts, list(encoded.dev_answers)
        self.objective: Objective = make_objective(recipe)
        self.network, self.layout, self.examples = network, layout, list(encoded.train)
        self.checkpointing = checkpointing
        encoder = encoded.encoder
        self.scorer = LetterScorer(network, encoder.letter_ids or (), encoder.pad_id, recipe.share_prefixes)
        self.obstacle = ""
        """Why compiling failed; "" if it did not."""
        self.last_loss: torch.Tensor
        """Loss of the last step."""
        self._trained: list[torch.nn.Parameter] | None = None
        super().__init__(
            network,
            arguments,
            train_dataset=self.examples,
            eval_dataset=list(self.dev_examples),
            data_collator=self._collate,
        )
        self.loss_is_scaled_for_ga = True

    @property
    def device(self) -> torch.device:
        return self.args.device

    def _collate(self, step: list[Example]) -> dict[str, Any]:
        """A batch is a whole optimizer step. Steps are laid out ahead of time, and again if compiling fails in the
        meantime. So a batch keeps its examples and layout beside its rows.
        """
        return {"rows": self.objective.collate(step, self.layout), "examples": step, "layout": self.layout}

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
        self.last_loss = self._or_standard(lambda: self._accumulate(model, inputs, num_items_in_batch))
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

    def _or_standard(self, work: Callable[[], T]) -> T:
        """Returns `work()`; if compiling fails in it, calls it again in the standard layers."""
        try:
            return work()
        except Exception as error:
            if not (why := compiler.failure(error)):
                raise
        self.fall_back(why)
        return work()

    def fall_back(self, why: str) -> None:
        """Continues without compiled layers, one item at a time, repeating the current step from its start."""
        steps = epoch_steps(self.examples, self.recipe)
        compiler.give_up(why, layouts.slowdown(self.recipe, self.examples, steps, self.layout.pad_id))
        self.obstacle = why
        self.network.zero_grad(set_to_none=True)
        self.network.train()
        go_on_one_by_one(self)
        torch.cuda.empty_cache()

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        if self._trained is None:  # the trained parameters do not change, and collecting them doubles the time
            self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.nn.utils.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        loss, outputs = self.row_loss(model, inputs, num_items_in_batch)
        # Gradients are averaged over devices, while our denominator already counts all of them.
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
            found |= self._or_standard(
                lambda: self.objective.measure(network, self.dev_answers, self.layout, self.args.bf16)
            )
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
