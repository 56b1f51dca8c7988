"""Captures optimizer steps of the published size as CUDA graphs: one launch instead of thousands.

With one item a step the GPU is faster than Python can launch its kernels. Here a step's forward and backward passes and
the clipping of its gradient are captured in one graph, and the optimizer's step in a second one, for each `signature`
of rows. A step then copies its rows into the tensors that the graphs read, and replays both. The first time, the
replayed loss and gradient norm are compared with those of the same step computed without a graph.

Graphs share one pool of memory, since only one of them runs at a time. All that a step needs has to lie at fixed
addresses, and nothing may wait for the GPU. Random numbers come from the generator's state in GPU memory, which each
replay advances as the step itself would.

Look here after an upgrade of torch, torchao or bitsandbytes: `_reading` gives an optimizer a learning rate and
counts of steps that lie in GPU memory; and at src/train/captured_optimizers.py.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from src.model.causal import is_sharded
from src.model.dropout import other_dropout
from src.train.adamw8bit import clip_gradient
from src.train.captured_optimizers import FRESH, parts_of
from src.train.fixed_rows import Signature, signature
from src.tree import compiler
from src.tree.compare import SHARE
from src.tree.layouts import CAPTURED_ROW
from src.tree.rows import Layout, Row

MOST = 32
"""Kinds of steps at most: with more, steps are not captured. Later ones are; at twice as many, all begin anew."""
RARE = 0.02
"""Share of the steps that may be of further kinds; each is captured when it comes."""


class CapturedTrainer(Protocol):
    """The part of a trainer that is used here."""

    network: Any
    layout: Layout
    optimizer: Any
    """A `SteppedInGraph`."""
    summed: Any
    """A `GradientSum` where several ranks train together, else None."""
    args: Any

    @property
    def device(self) -> torch.device: ...

    def row_loss(self, model: Any, row: Row, totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...


def obstacle(trainer: CapturedTrainer, signatures: Sequence[Signature]) -> str:
    """Why the steps of a training are not captured; "" when they are. signatures: those of some of its steps."""
    if trainer.device.type != "cuda" or not trainer.layout.lengths:
        return "layers are not compiled for fixed lengths"
    if is_sharded(trainer.network):
        return "parameters are sharded over several GPUs, and what gathers them runs in streams of its own"
    if trainer.layout.lengths[-1] > CAPTURED_ROW:
        return f"rows of {trainer.layout.lengths[-1]:,} tokens keep the GPU busy without it"
    if other_dropout(trainer.network.modules()):
        return "the model has dropout of its own"
    kinds = Counter(signatures).most_common()
    if sum(count for _, count in kinds[MOST:]) > RARE * len(signatures):
        return f"there are {len(kinds)} kinds of steps"
    return ""


@dataclasses.dataclass
class _Graph:
    """A captured step. rows, totals: what it reads. update: the optimizer's step; None where it is not captured."""

    rows: list[Row]
    totals: torch.Tensor
    passes: torch.cuda.CUDAGraph
    update: torch.cuda.CUDAGraph | None


class StepGraphs:
    """The captured steps of a training.

    failed   why capturing failed, or gave other numbers; "" while it has not
    full     whether it failed for lack of memory
    checked  (loss, gradient norm) of the first captured step, replayed and computed without a graph
    """

    def __init__(self, trainer: CapturedTrainer, model: Any) -> None:
        self.trainer, self.model = trainer, model
        self.failed, self.full = "", False
        self.checked: dict[str, list[float]] = {}
        device = trainer.device
        self.loss, self.norm = torch.zeros((), device=device), torch.zeros((), device=device)
        self.optimizer = trainer.optimizer
        inner = self.optimizer.optimizer
        self.trained = [one for group in inner.param_groups for one in group["params"]]
        self.rates = [torch.zeros((), device=device) for _ in inner.param_groups]
        package = next((name for name in FRESH if type(inner).__module__.startswith(name)), None)
        self.summed = trainer.summed
        self.gradients = [] if package else [torch.zeros_like(one) for one in self.trained]
        """Gradients at fixed addresses, which an optimizer outside of the graphs reads, or other ranks."""
        if self.summed is not None:
            self.gradients = self.summed.of(self.trained)
        self.tail: torch.cuda.CUDAGraph | None = None
        """With several ranks: what follows the sum of their gradients."""
        self.updates = package is not None
        """Whether the optimizer's step is captured, too."""
        if package:
            self._begin(FRESH[package])
        self.graphs: dict[Signature, _Graph] = {}
        self.known: set[Signature] = set()
        """Steps that were captured once and found to be right."""
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)

    def step(self, rows: Sequence[Row], totals: torch.Tensor) -> torch.Tensor | None:
        """Computes a step and updates the weights; returns its loss. None when it cannot be captured (`failed`):
        nothing has changed then.
        """
        key = signature(rows)
        if key not in self.graphs and not self._add(key, rows, totals):
            return None
        graph = self.graphs[key]
        _fill(graph, rows, totals)
        self._set_rates()
        graph.passes.replay()
        if graph.update:
            graph.update.replay()
            self.optimizer.done = True
        else:
            for parameter, gradient in zip(self.trained, self.gradients, strict=True):
                parameter.grad = gradient
        return self.loss

    def update(self) -> torch.Tensor | None:
        """With several ranks, once gradients are summed: clips them and updates the weights; returns their norm. None
        where that is not captured, and nothing has changed.
        """
        if not self.updates:
            return None
        self.summed.attach()
        if self.tail is None and not self._add_tail():
            return None
        assert self.tail is not None
        self._set_rates()
        self.tail.replay()
        self.optimizer.done = True
        return self.norm

    def _add_tail(self) -> bool:
        """Captures clipping and the optimizer's step, which all kinds of steps share; returns whether that worked."""
        state = torch.cuda.get_rng_state(self.trainer.device)
        tail = torch.cuda.CUDAGraph()
        try:
            with self._reading(), self._capturing(tail):
                self._clip(self.trainer.args.max_grad_norm)
                self.optimizer.optimizer.step()
        except RuntimeError:
            self._clear(state)
            self.summed.attach()
            self.updates = False
            return False
        torch.cuda.set_rng_state(state, self.trainer.device)
        self.tail = tail
        return True

    def _clip(self, limit: float) -> None:
        self.norm.copy_(clip_gradient(self.optimizer, self.trained, limit))

    def release(self) -> None:
        """Frees the memory of all graphs; steps are captured anew."""
        self._forget_gradients()
        self.graphs.clear()
        self.tail = None
        torch.cuda.synchronize(self.trainer.device)
        torch.cuda.empty_cache()
        self.pool = torch.cuda.graph_pool_handle()

    def _add(self, key: Signature, rows: Sequence[Row], totals: torch.Tensor) -> bool:
        """Captures a step; returns whether that worked. Where memory is short, the other graphs have to go."""
        device = self.trainer.device
        if len(self.graphs) >= 2 * MOST:
            self.release()
        state = torch.cuda.get_rng_state(device)
        while True:
            again = False
            try:
                self.graphs[key] = self._captured(key, rows, totals, state)
                torch.cuda.set_rng_state(state, device)
                return True
            except RuntimeError as error:  # torch's own kinds of errors, CUDA's too, are of this class
                if compiler.failure(error):
                    self._clear(state)  # the standard layers draw from the generator
                    raise
                self.failed = " ".join(str(error).split())[:200]
                if _short_of_memory(error):
                    again = bool(self.graphs)
                    self.full = not again
                    self.failed = "the GPU's memory does not hold them"
            self._clear(state)
            if not again:
                self.gradients = []
                return False
            self.failed = ""

    def _clear(self, state: torch.Tensor) -> None:
        """Frees all graphs after a failed capture, and puts the generator back to `state`."""
        self.release()
        _mend_generator(self.trainer.device)
        torch.cuda.set_rng_state(state, self.trainer.device)

    def _captured(self, key: Signature, rows: Sequence[Row], totals: torch.Tensor, state: torch.Tensor) -> _Graph:
        """The step, captured; the first time also compared with the one that is not. Neither updates the weights."""
        device = self.trainer.device
        graph = _Graph([_copy(row, device) for row in rows], totals.clone(), torch.cuda.CUDAGraph(), None)
        usual = None
        if key not in self.known:
            self.stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(self.stream):
                usual = self._usual(graph, state)
                self._forget_gradients()
            torch.cuda.current_stream(device).wait_stream(self.stream)
            torch.cuda.set_rng_state(state, device)
        with self._capturing(graph.passes):
            self._passes(graph)
        if not self.gradients:
            graph.update = torch.cuda.CUDAGraph()
            with self._reading(), self._capturing(graph.update):
                self.optimizer.optimizer.step()
        self._forget_gradients()
        if usual:
            graph.passes.replay()
            self._compare(usual)
            self.known.add(key)
        return graph

    def _usual(self, graph: _Graph, state: torch.Tensor) -> tuple[float, float]:
        """(loss, gradient norm) without a graph. Beforehand everything is compiled that has not been."""
        device = self.trainer.device
        for _ in range(1 if self.known else 2):  # the first pass of all also prepares libraries
            torch.cuda.set_rng_state(state, device)
            self._passes(graph)
        found = self.loss.item(), self.norm.item()
        if not self.known and self.updates:
            self._compile_update()
        return found

    def _passes(self, graph: _Graph) -> None:
        """Forward and backward passes of all rows, and clipping. Leaves gradients, `loss` and `norm`."""
        self._forget_gradients()
        if self.gradients:
            torch._foreach_zero_(self.gradients)
            for parameter, gradient in zip(self.trained, self.gradients, strict=True):
                parameter.grad = gradient
        losses = []
        for row in graph.rows:
            loss, _ = self.trainer.row_loss(self.model, row, graph.totals)
            loss.backward()
            losses.append(loss.detach())
        self.loss.copy_(torch.stack(losses).sum())
        # What one of several ranks has is no gradient yet: it is only measured here.
        self._clip(0.0 if self.summed is not None else self.trainer.args.max_grad_norm)

    def _compare(self, usual: tuple[float, float]) -> None:
        replayed = self.loss.item(), self.norm.item()
        names = "loss", "gradient_norm"
        found = {name: [one, other] for name, one, other in zip(names, replayed, usual, strict=True)}
        self.checked = self.checked or found
        share = SHARE["cuda"]
        if not all(abs(one - other) <= share * abs(other) for one, other in found.values()):
            raise RuntimeError(f"a captured step computes something else: {found}")

    @contextlib.contextmanager
    def _capturing(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        # Only this thread's calls could disturb the capture.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            yield

    def _forget_gradients(self) -> None:
        for parameter in self.trained:
            parameter.grad = None

    def _begin(self, fresh: Callable[[Any, torch.nn.Parameter], dict[str, torch.Tensor]]) -> None:
        """Gives each parameter its state, as the first step would, and lets counts of steps lie in GPU memory."""
        inner = self.optimizer.optimizer
        for group in inner.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"] = group["lr"].cpu()  # read at each step; a resumed one lies on the GPU
        for parameter in self.trained:
            if not inner.state[parameter]:
                inner.state[parameter].update(fresh(inner, parameter))
            state = inner.state[parameter]
            state["step"] = state["step"].to(parameter.device, torch.float32)

    def _set_rates(self) -> None:
        for rate, group in zip(self.rates, self.optimizer.optimizer.param_groups, strict=True):
            rate.fill_(float(group["lr"]))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Within, the optimizer reads its learning rates from `rates`."""
        groups = self.optimizer.optimizer.param_groups
        before = [{name: group[name] for name in ("lr", "capturable") if name in group} for group in groups]
        for rate, group in zip(self.rates, groups, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, values in zip(groups, before, strict=True):
                group.update(values)

    def _compile_update(self) -> None:
        """Lets an optimizer that compiles its steps do so, for one parameter of each shape: a step with the learning
        rate 0, after which its state is put back.
        """
        inner = self.optimizer.optimizer
        if type(inner).__module__.startswith("torch.optim"):
            return
        self._forget_gradients()
        for rate in self.rates:
            rate.zero_()
        one_of_each = {(one.shape, one.dtype): one for group in inner.param_groups for one in group["params"]}
        for parameter in one_of_each.values():
            states = [part for value in inner.state[parameter].values() for part in parts_of(value)]
            kept = [part.clone() for part in states]
            parameter.grad = torch.zeros_like(parameter)
            try:
                with self._reading():
                    inner.step()
            finally:
                parameter.grad = None
                for part, value in zip(states, kept, strict=True):
                    part.copy_(value)


def _short_of_memory(error: BaseException | None) -> bool:
    """Whether memory was short, also where the end of the capture then failed in another way."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__context__
    return False


def _mend_generator(device: torch.device) -> None:
    """Gives the generator a new state of the same numbers: after a failed capture the old one takes itself to be
    captured still, and refuses to draw.
    """
    generator = torch.cuda.default_generators[device.index]
    generator.graphsafe_set_state(generator.clone_state())


def _copy(row: Row, device: torch.device) -> Row:
    return {
        name: value.to(device, copy=True) if isinstance(value, torch.Tensor) else value for name, value in row.items()
    }


def _fill(graph: _Graph, rows: Sequence[Row], totals: torch.Tensor) -> None:
    for kept, row in zip(graph.rows, rows, strict=True):
        for name, value in row.items():
            if isinstance(value, torch.Tensor):
                kept[name].copy_(value, non_blocking=True)
    graph.totals.copy_(totals, non_blocking=True)
