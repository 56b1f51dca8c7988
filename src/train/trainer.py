"""Fine-tuning: Hugging Face's `Trainer` runs the loop; the loss, the evaluation and the files kept on disk are ours.

A step minimises the recipe's objective (src/train/objectives.py). Its loss is a sum over the step's rows, divided by
totals of the whole step over all accumulated batches: 1×8, 8×1 and 2×4 items a step give the same gradient.

Every evaluation measures item accuracy on dev, computed as in scoring. The weights with the best accuracy (ties: lower
log-loss) are kept in `adapter/` or `model/`, and one checkpoint to resume from in `checkpoints/`. Nothing else is kept.

`LetterTrainer` overrides methods of transformers' Trainer that are not documented. Look here after an upgrade:
create_optimizer, get_optimizer_cls_and_kwargs, _get_train_sampler, _get_num_items_in_batch, training_step,
_clip_grad_norm, _get_grad_norm, floating_point_ops, evaluate; and at src/train/saving.py. It also uses the arguments'
_n_gpu.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from transformers import Trainer, TrainingArguments

from src.data import Item
from src.model import ranks
from src.model.causal import causal_of, is_sharded
from src.model.dropout import redraw, seeds_of
from src.model.memory import MemoryPlan
from src.model.recipes import BF16_STOCHASTIC, Recipe
from src.prompt.encode import Encoder, Example
from src.score.letters import LetterScorer, Scored
from src.score.shared import score_shared
from src.train.adamw8bit import AdamW8bit, clip_gradient
from src.train.arguments import CHECKPOINTING, OPTIMIZERS, optimizer_name, training_arguments
from src.train.captured_optimizers import SteppedInGraph
from src.train.checkpoints import (
    Place,
)
from src.train.fixed_rows import signature
from src.train.guard import go_on_one_by_one
from src.train.keep import (
    KeepBest,
    dev_metrics,
)
from src.train.objectives import Objective, make_objective
from src.train.order import ByDialogue, epoch_steps
from src.train.ranks import GradientSum, own_share, refuse_other_weights, seed_step
from src.train.saving import SavingTrainer
from src.train.sharded import ShardedSteps, in_step
from src.train.step_graphs import StepGraphs, obstacle
from src.tree import compiler, layouts
from src.tree.compiled import make_ready, restore_standard_layers
from src.tree.layouts import TrainingLayout
from src.tree.rows import Kind, Layout, Row

T = TypeVar("T")
SEEN = 512
"""Steps of the first epoch that show how many kinds of steps there are."""


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


def make_trainer(
    network: Any, recipe: Recipe, encoded: Encoded, place: Place, chosen: TrainingLayout
) -> "LetterTrainer":
    """The trainer of `network`, ready to begin; checkpoints and the best weights go to `place`."""
    arguments = training_arguments(recipe, chosen.memory, network.device, place.checkpoints)
    checkpointing = chosen.memory.checkpointing
    if chosen.layout.lengths:
        make_ready(network, checkpointing, chosen.memory.spare, chosen.memory.selective)
    elif checkpointing:
        network.gradient_checkpointing_enable(CHECKPOINTING)
    network.train()  # peft's wrapper says that it is in training mode when the model within is not
    trainer = LetterTrainer(
        network, arguments, recipe=recipe, encoded=encoded, layout=chosen.layout, memory=chosen.memory
    )
    trainer.best = KeepBest(place, recipe, network, encoded.encoder.tokenizer, len(encoded.dev))
    trainer.optimizer_name = optimizer_name(recipe, chosen.memory)
    trainer.sharded = ShardedSteps(trainer, chosen.memory) if is_sharded(network) else None
    return trainer


class LetterTrainer(SavingTrainer):
    """`Trainer` with our loss and with item accuracy as its evaluation."""

    def __init__(
        self,
        network: Any,
        arguments: TrainingArguments,
        *,
        recipe: Recipe,
        encoded: Encoded,
        layout: Layout,
        memory: MemoryPlan | None = None,
    ) -> None:
        self.recipe, self.encoder, self.dev = recipe, encoded.encoder, encoded.dev
        self.dev_examples, self.dev_answers = encoded.dev_prompts, list(encoded.dev_answers)
        self.objective: Objective = make_objective(recipe)
        self.network, self.layout, self.examples = network, layout, list(encoded.train)
        self._chosen = layout.kind
        self.memory = memory
        encoder = encoded.encoder
        self.scorer = LetterScorer(network, encoder.letter_ids or (), encoder.pad_id, recipe.share_prefixes)
        self.obstacle = ""
        """Why compiling failed; "" if it did not."""
        self.last_loss: torch.Tensor
        """Loss of the last step."""
        self.last_items = 0
        """Items in it."""
        self.graphs: StepGraphs | None = None
        self.uncaptured: str | None = None
        """Why steps are not captured as CUDA graphs; "" when they are, None before the first step."""
        self._may_capture = True
        """With several ranks: whether none of them has found that steps cannot be captured."""
        self._norm: torch.Tensor | None = None
        """Gradient norm of the step, where its graph has clipped the gradient."""
        self.summed: GradientSum | None = None
        """With several ranks: their gradients' sum."""
        self.sharded: ShardedSteps | None = None
        """With sharded parameters: their steps."""
        self.seeds = seeds_of(network)
        self._trained: list[torch.nn.Parameter] | None = None
        self.last_evaluation: Scored | None = None
        """Scores of the last evaluation; None before the first in this process."""
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

    @property
    def trained_parameters(self) -> list[torch.nn.Parameter]:
        if self._trained is None:  # they do not change, and collecting them doubles the time of clipping
            self._trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        return self._trained

    @property
    def checkpointing(self) -> bool:
        """Whether memory asks for gradient checkpointing."""
        return self.memory is not None and self.memory.checkpointing

    @property
    def fell_back(self) -> bool:
        """Whether rows were chosen that then could not be compiled, or gave other numbers."""
        return self.layout.kind == "padded" != self._chosen

    def less_memory(self) -> bool:
        """Keeps fewer activations of compiled layers from here on, and says so; returns whether there was a choice."""
        memory = self.memory
        if memory is None or not self.layout.lengths or self.recipe.gradient_checkpointing == "off":
            return False
        if memory.checkpointing and not memory.spare:
            return False
        layers = len(causal_of(self.network).get_decoder().layers)
        spare = 0 if memory.checkpointing else layers * self.layout.lengths[-1] // 2
        self.memory = dataclasses.replace(memory, checkpointing=True, spare=spare)
        restore_standard_layers(self.network)
        make_ready(self.network, True, spare, memory.selective)
        print(f"memory is short: gradient checkpointing of {'half of the' if spare else 'all'} layers", flush=True)
        return True

    def _collate(self, step: list[Example]) -> dict[str, Any]:
        """A batch is a whole optimizer step; with several ranks, this one's share of it. Steps are laid out ahead of
        time, and again if compiling fails in the meantime. So a batch keeps its examples and layout beside its rows.
        """
        share = own_share(step)
        rows = self.objective.collate(share, self.layout) if share else []
        batch = {"rows": rows, "examples": share, "layout": self.layout, "items": len(step)}
        if ranks.several():
            batch["totals"] = self.objective.totals(self.objective.collate(step, self.layout.one_by_one))
        return batch

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.recipe.order == "dialogue":
            return ByDialogue(self.examples, self.recipe.seed)
        return super()._get_train_sampler(train_dataset)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        """The objective's totals of the whole optimizer step, over all ranks."""
        if ranks.several():
            return sum(batch["totals"].to(device) for batch in batch_samples)
        total = self.objective.totals([row for batch in batch_samples for row in batch["rows"]])
        return total.to(device)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        made, keys = Trainer.get_optimizer_cls_and_kwargs(args, model)
        return (AdamW8bit if args.optim == OPTIMIZERS[BF16_STOCHASTIC][0] else made), keys

    def create_optimizer(self, model: Any = None) -> Any:
        optimizer = super().create_optimizer(model)
        self.optimizer = optimizer if isinstance(optimizer, SteppedInGraph) else SteppedInGraph(optimizer)
        return self.optimizer

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # Trainer's estimate counts no shared tokens

    def training_step(self, model, inputs, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        """Forward and backward, row by row; the gradients of a step's rows add up.

        Trainer's own step also goes through all modules in Python, which takes as long as a small step on the GPU.
        """
        if not model.training:
            model.train()
        self.last_items = inputs["items"]
        if ranks.several():
            self.last_loss = self._shared_step(model, inputs, num_items_in_batch)
        else:
            self.last_loss = self._or_standard(lambda: self._step(model, inputs, num_items_in_batch))
        return self.last_loss

    def _shared_step(self, model: Any, inputs: dict[str, Any], totals: torch.Tensor) -> torch.Tensor:
        """This rank's share of a step, and the sum over all ranks. Returns the loss of the whole step."""
        if self.sharded is not None:
            same = inputs["layout"] == self.layout or not inputs["examples"]
            rows = inputs["rows"] if same else self.objective.collate(inputs["examples"], self.layout)
            return self.sharded.step(model, rows, totals)
        if self.summed is None:
            self.summed = GradientSum(self.trained_parameters)
        summed, self._norm = self.summed, None
        seed_step(self.recipe.seed, self.state.global_step, ranks.rank())

        def share() -> torch.Tensor | None:
            summed.begin()
            return self._step(model, inputs, totals) if inputs["rows"] else None

        loss = self._or_standard(share)
        if self._may_capture and (why := ranks.any_text(self.uncaptured or "")):
            # Otherwise some ranks would round an update in another way than the rest.
            self._may_capture = False
            self._stop_capturing(why)
        whole = summed.add_up(loss)
        seed_step(self.recipe.seed, self.state.global_step, ranks.ALL)
        if self.graphs is not None:
            self._norm = self.graphs.update()
        return whole.clone()

    def _step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> torch.Tensor:
        rows, self._norm = inputs["rows"], None
        if inputs["layout"] != self.layout:
            rows = self.objective.collate(inputs["examples"], self.layout)
        if self.uncaptured is None:
            self._begin_capturing(model)
        if self.graphs is not None:
            while (loss := self.graphs.step(rows, num_items_in_batch)) is None and self.graphs.full:
                if not self.less_memory():
                    break
                self.graphs = StepGraphs(self, model)
            if loss is not None:
                self._norm = self.graphs.norm if self.summed is None else None
                return loss
            self._stop_capturing(self.graphs.failed)
            print(f"steps are not captured as CUDA graphs, which is slower: {self.uncaptured}", flush=True)
        if self.summed is not None:
            self.summed.begin()  # capturing may have left something there
        return self._accumulate(model, rows, num_items_in_batch)

    def _why_uncaptured(self) -> str:
        some = epoch_steps(self.examples, self.recipe)[:SEEN]
        steps = (own_share([self.examples[number] for number in step]) for step in some)
        fixed = bool(self.layout.lengths)
        signatures = [signature(self.objective.collate(step, self.layout)) for step in steps if step] if fixed else []
        return obstacle(self, signatures)

    def _begin_capturing(self, model: Any) -> None:
        self.uncaptured = self._why_uncaptured()
        if not self.uncaptured:
            self.graphs = StepGraphs(self, model)

    def _stop_capturing(self, why: str) -> None:
        self.graphs, self.uncaptured = None, why

    @property
    def captured(self) -> str:
        """ "captured", or why steps are not."""
        return "captured" if self.graphs else f"not captured: {self.capture_record()['obstacle']}"

    def capture_record(self) -> dict[str, Any]:
        """The record's entry on captured steps: how many kinds there are, and the first one's check; or why none are
        captured.
        """
        if self.graphs is None:
            return {"obstacle": self.uncaptured or self._why_uncaptured() or "no step was trained"}
        return {"kinds": len(self.graphs.known), **self.graphs.checked}

    def _accumulate(self, model: Any, rows: Sequence[Row], num_items_in_batch: Any) -> torch.Tensor:
        losses = []
        for number, row in enumerate(rows, 1):
            last = number == len(rows)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                loss = self.compute_loss(model, self._prepare_inputs(row), num_items_in_batch=num_items_in_batch)
                self.accelerator.backward(loss)
                losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _or_standard(self, work: Callable[[], T]) -> T:
        """Returns `work()`; if compiling fails in it, on any rank, calls it again in the standard layers."""
        why = ""
        try:
            found = work()
        except Exception as error:
            if not (why := compiler.failure(error)):
                raise
        if not (why := ranks.any_text(why)):
            return found
        self.fall_back(why)
        return work()

    def _with_room(self, work: Callable[[], T]) -> T:
        """Returns `work()`; if memory is short, once more without the captured steps."""
        try:
            return work()
        except torch.OutOfMemoryError:
            if self.graphs is None:
                raise
        self.graphs.release()
        return work()

    def fall_back(self, why: str) -> None:
        """Continues without compiled layers, one item at a time, repeating the current step from its start."""
        steps = epoch_steps(self.examples, self.recipe)
        compiler.give_up(why, layouts.slowdown(self.recipe, self.examples, steps, self.layout.pad_id))
        self.obstacle = why
        self._stop_capturing(why)
        self.network.zero_grad(set_to_none=True)
        self.network.train()
        go_on_one_by_one(self)
        torch.cuda.empty_cache()

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        if self._norm is not None:
            return self._norm
        return clip_gradient(self.optimizer, self.trained_parameters, self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # Without clipping, Trainer would measure gradients that a captured step has used up.
        return super()._get_grad_norm(model, self._norm if grad_norm is None else grad_norm)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        loss, outputs = self.row_loss(model, inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def row_loss(self, model: Any, row: Row, totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(the row's part of the step's loss, the objective's outputs that it is computed from)."""
        # Accelerate's own autocast ends with the model's forward; the head of `logprobs_at` comes after it.
        if self.seeds is not None:
            redraw(self.seeds)
        with torch.autocast(row["input_ids"].device.type, torch.bfloat16, enabled=self.args.bf16):
            outputs = self.objective.outputs(model, row)
            return self.objective.loss(outputs, row, totals, self.encoder.letter_ids or ()), outputs

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        kind: Kind | None = "padded" if self.fell_back else None
        refuse_other_weights(self.trained_parameters, f"after step {self.state.global_step}")
        read = in_step if self.sharded else lambda network, work: work()
        scored = score_shared(
            self.dev_examples,
            lambda share: read(self.network, lambda: self._with_room(lambda: self.scorer.score(share, kind=kind))),
            all_score=self.sharded is not None,
        )
        if self.layout.kind != "padded" and (why := ranks.any_text(compiler.gave_up())):
            self.fall_back(why)
        self.last_evaluation = scored
        found = dev_metrics(self.dev, scored.items)
        if self.dev_answers:
            network, share = self.accelerator.unwrap_model(self.model), own_share(self.dev_answers)
            sums = functools.partial(self.objective.sums, network, share, self.layout, self.args.bf16)
            summed = read(network, sums) if self.sharded else self._or_standard(lambda: self._with_room(sums))
            found |= self.objective.measured(ranks.gathered(summed))
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
