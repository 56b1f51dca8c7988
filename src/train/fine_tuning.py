"""Fine-tuning a recipe: how it is computed on the machine at hand, the training, and what came out of it."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from src.console import progress
from src.console.cli import UserError
from src.data import Item
from src.files.sealed import Broken
from src.model import load, ranks
from src.model.devices import free_bytes
from src.model.disk import bytes_kept, check_disk
from src.model.load_sharded import load_sharded
from src.model.memory import MemoryPlan, run_folder_bytes
from src.model.recipes import BF16_STOCHASTIC, Recipe
from src.model.shapes import Shape
from src.prompt.encode import Encoder, Example
from src.train import log
from src.train.arguments import has_fp32_masters, optimizer_name
from src.train.checkpoints import (
    Checkpoint,
    Found,
    Place,
    find_checkpoint,
    refuse_unreadable,
)
from src.train.curves import Curve
from src.train.guard import check_rows_against_single
from src.train.keep import (
    Evaluated,
    best_of,
    evaluations,
    sample_weights,
    share_moved,
    weights_digest,
)
from src.train.objectives import Objective, make_objective
from src.train.order import epoch_steps
from src.train.ranks import ranks_record, refuse_other_weights, step_shares
from src.train.reports import report_to
from src.train.sharded import choose_layout
from src.train.trainer import Encoded, LetterTrainer, make_trainer
from src.tree import compiler, layouts
from src.tree.compiled import obstacle, rows_on_gpu
from src.tree.layouts import TrainingLayout, TrainingSteps


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Results of a training for the record. evaluated: of the kept weights, on a CPU; None where they are of another
    process or of several.
    """

    trainable_parameters: int
    parameters: int
    training: dict[str, Any]
    evaluated: Evaluated | None = None


def fine_tune(
    recipe: Recipe, encoder: Encoder, train: Sequence[Item], dev: Sequence[Item], place: Place, device: torch.device
) -> Outcome:
    """Trains `recipe` on `train`, evaluates on `dev`, and leaves the best weights and the last checkpoint in `place`.

    Resumes from the last whole checkpoint when there is one, which is of the same recipe, data and prompt. What is
    broken there is named.
    """
    set_seed(recipe.seed)
    objective = make_objective(recipe)
    encoded = _encode(objective, encoder, train, dev)
    log.show_examples(objective, encoder, encoded.train, encoded.dev_prompts)
    checkpoint = ranks.decided(lambda: readable_checkpoint(place.folder))
    setup = _set_up(objective, encoded, checkpoint, device)
    chosen = setup.chosen
    steps = len(setup.steps) * recipe.epoch
    log.warn_of_memory(chosen.memory)
    if checkpoint is None or checkpoint.step < steps:
        needed = run_folder_bytes(setup.shape, recipe.method, chosen.memory.optimizer, recipe.lora_r)
        check_disk(place.folder, needed - bytes_kept(place.folder), f"the run {recipe.name}")
    network = load_for_training(recipe, chosen.memory, device)
    before = sample_weights(network) if recipe.method == "full" else {}
    trainer = make_trainer(network, recipe, encoded, place, chosen)
    refuse_other_weights(trainer.trained_parameters, "after loading")
    parameters = load.count_parameters(network)
    log.show_computation(recipe, chosen, parameters, device)
    log.warn_of_warm_up(recipe, trainer.args.get_warmup_steps(steps), steps)
    guard = check_rows_against_single(trainer)
    started = time.monotonic()
    _run(trainer, steps, checkpoint)
    history = evaluations(trainer.state)
    assert history, "Trainer evaluates after its last step"
    training: dict[str, Any] = {
        "optimizer": optimizer_name(recipe, chosen.memory),
        "gradient_checkpointing": trainer.checkpointing or network.is_gradient_checkpointing,
        "selective_recomputation": chosen.memory.selective,
        "dequantised": chosen.memory.dequantised,
        "effective_batch": recipe.batch_size * recipe.gradient_accumulation_steps,
        "rows": _rows_record(trainer, setup, guard),
        "captured": trainer.capture_record(),
        "steps": trainer.state.global_step,
        "seconds": time.monotonic() - started,
        "resumed_from": str(checkpoint.folder) if checkpoint else None,
        "best_step": history[best_of(history, recipe.keep)]["step"],
        "evaluations": history,
        "loss": [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry],
    }
    if trainer.sharded is not None:
        training["ranks"] = trainer.sharded.record(device)
    elif trainer.summed is not None:
        training["ranks"] = ranks_record(trainer.summed, device)
    if before:
        training["weights_moved"] = share_moved(before, sample_weights(trainer.model))
        print(f"{training['weights_moved']:.1%} of a sample of the weights moved")
    return Outcome(*parameters, training, _evaluated(trainer, training["best_step"]))


def _evaluated(trainer: LetterTrainer, best_step: int) -> Evaluated | None:
    """The last evaluation, if its weights are kept and it read dev as scoring does. A GPU computes the weights as saved
    in other rows or precision.
    """
    last, found = trainer.state.global_step, trainer.last_evaluation
    if found is None or last != best_step or trainer.device.type != "cpu" or trainer.fell_back or ranks.several():
        return None
    return Evaluated(found, trainer.dev_examples, weights_digest(trainer.network))


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


def _set_up(objective: Objective, encoded: Encoded, checkpoint: Checkpoint | None, device: torch.device) -> _Setup:
    recipe, examples, pad_id = objective.recipe, encoded.train, encoded.encoder.pad_id
    config = load.load_config(recipe)
    shape = Shape.of_config(config)
    steps = epoch_steps(examples, recipe)
    planned = recipe
    if checkpoint and recipe.method == "full":  # its moments are of one kind
        planned = recipe.replace(optimizer=checkpoint.optimizer)
    why = _obstacle(recipe, config, examples, pad_id, device)
    if why:
        planned = planned.replace(share_prefixes="off")
    compiled = rows_on_gpu(device) and not why
    positions = functools.partial(objective.logit_positions, examples)
    shared = step_shares(examples, steps)
    chosen = choose_layout(TrainingSteps(planned, shape, examples, shared, pad_id, positions), device, compiled)
    # Ranks choose alike but for the memory that is free.
    chosen = ranks.least(free_bytes(device) if device.type == "cuda" else 0, chosen)
    if compiled and chosen.layout.kind != "tree" and recipe.share_prefixes == "auto":
        log.hint_at_larger_steps(recipe, examples, chosen.layout)
    return _Setup(shape, steps, chosen, why)


def _obstacle(recipe: Recipe, config: Any, examples: Sequence[Example], pad_id: int, device: torch.device) -> str:
    """Why no prefixes can be shared; "" when they can. It is printed, or refused where sharing was asked for."""
    machine = compiler.obstacle(device)
    if (
        not machine
        and device.type != "cpu"
        and recipe.method == "full"
        and recipe.optimizer in (BF16_STOCHASTIC, "auto")
    ):
        # This optimizer compiles its steps, and a step that failed half-way could not be repeated.
        machine = compiler.try_out(device)
    machine = ranks.any_text(machine)
    why = ranks.any_text(obstacle(load.class_of(config), config, device))
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
        if memory.cards > 1:
            return load_sharded(recipe, device, dtype)
        return load.load_base(recipe, device, dtype=dtype)
    return load.add_adapter(load.load_base(recipe, device, dequantised=memory.dequantised), recipe)


def readable_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint that the run in `folder` goes on from; what is broken is printed."""
    found = find_checkpoint(folder)
    if found.checkpoint:
        try:
            refuse_unreadable(found.checkpoint.folder)
        except Broken as error:
            found = Found(None, [*found.broken, f"{found.checkpoint.folder} cannot be used: {error}"])
    for line in found.lines():
        print(line)
    return found.checkpoint


def _run(trainer: LetterTrainer, steps: int, checkpoint: Checkpoint | None) -> None:
    """Trains to the end, from `checkpoint` if there is one. steps: all optimizer steps of the run."""
    best = trainer.best
    best.prepare(checkpoint)
    curve = Curve(best.place.folder, lambda: (trainer.last_loss, trainer.last_items))
    with progress.stage("train", steps) as bar:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(best)
        trainer.add_callback(curve)
        trainer.add_callback(log.Bar(bar, lambda: trainer.last_loss, curve))
        report_to(trainer, best.place)
        if checkpoint is None:
            trainer.train()
            return
        print(f"going on from {checkpoint.folder}")
        trainer.checkpoint = checkpoint
        trainer.state = TrainerState.load_from_json(f"{checkpoint.folder}/{TRAINER_STATE_NAME}")
        curve.go_on(trainer.state)
        if best.patience_is_over(trainer.state):
            trainer._load_from_checkpoint(str(checkpoint.folder))
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint.folder))


def _rows_record(trainer: LetterTrainer, setup: _Setup, guard: dict[str, Any] | None) -> dict[str, Any]:
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
        "lengths": None if isinstance(layout.lengths, range) else layout.lengths or None,
        "tokens": layout.tokens,
        "sharing": factor if shares else 1.0,
        "dropout": "one mask for each shared token" if shares and drops else "usual",
        "guard": guard,
        **({"obstacle": obstacle} if obstacle else {}),
    }
