"""The clock of `run.bench`: it counts what steps compute and times them, also those of a Hugging Face `Trainer`."""

import itertools
import resource
import statistics
import time
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback

from src.model import ranks
from src.model.load import compute_dtype
from src.toy.bench_inputs import SEED

COUNTS = ("items", "sequences", "raw_tokens", "unique_tokens")
Count = int | torch.Tensor

SUSTAINED = {"cuda": 4.0, "cpu": 1.0}
"""Seconds of products by which `matmul_rates` finds what a device sustains."""


class Clock:
    """Counts and times steps: `warm` steps are not timed, then at least `least` steps are, until `seconds` are over.

    The caller calls `begin` when the model is made, tells with `count` what a step computes (or lets `watch` see it),
    and calls `lap` when the step is done.
    """

    def __init__(self, device: torch.device, seconds: float, warm: int = 1, least: int = 2) -> None:
        self.device, self.limit, self.warm, self.least = device, seconds, warm, least
        self.laps = 0
        self.warm_seconds = self.seconds = 0.0
        self.counts: dict[str, Count] = dict.fromkeys(COUNTS, 0)
        self.points: list[tuple[int, float]] = []
        """For the case that measures how time grows: (tokens computed, seconds)."""
        self.guard: dict[str, Any] | None = None
        """The result of the check of our rows against single items."""
        self.facts: dict[str, Any] = {}
        """How the case was run, for the record."""
        self._marks: list[tuple[Any, Count]] = []
        """At the end of the warm-up and of each timed step: (time on the device, tokens computed so far)."""

    def begin(self) -> None:
        """Starts the warm-up. Peak memory counts from here, so making the weights is not included."""
        self._wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._started = time.monotonic()

    def count(self, items: Count, raw: Count, unique: Count | None = None, sequences: Count | None = None) -> None:
        """Adds to this step its items, their sequences (by default as many), the sum of the sequences' lengths, and the
        tokens computed (by default the same). Padding never counts. Tensors are read at the end, so that no step waits
        for them.
        """
        new = (items, items if sequences is None else sequences, raw, raw if unique is None else unique)
        self.counts = {name: self.counts[name] + one for name, one in zip(COUNTS, new, strict=True)}

    def watch(self, network: Any) -> None:
        """Counts the inputs of `network`: a batch with an `attention_mask`, or one whose `position_ids` separate
        sequences.
        """

        def see(module: Any, positional: Any, inputs: dict[str, Any]) -> None:
            ids, mask, positions = (inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
            assert ids is not None, list(inputs)
            items = ids.shape[0] if positions is None else (positions == 0).sum()
            self.count(items, ids.numel() if mask is None else mask.sum())

        network.register_forward_pre_hook(see, with_kwargs=True)

    def lap(self) -> bool:
        """Ends a step; True when it was the last one."""
        self.laps += 1
        if self.laps < self.warm:
            return False
        if self.laps == self.warm:
            self._wait()
            self.warm_seconds = time.monotonic() - self._started
            self._started = time.monotonic()
            self.counts = dict.fromkeys(COUNTS, 0)
            self._mark()
            return False
        self._mark()
        over = self.steps >= self.least and time.monotonic() - self._started >= self.limit
        if not ranks.any_text("over" if over else ""):
            return False
        self._wait()
        self.seconds = time.monotonic() - self._started
        return True

    @property
    def age(self) -> float:
        """Seconds since the warm-up began, or the timed steps did."""
        return time.monotonic() - self._started

    @property
    def steps(self) -> int:
        """Timed steps so far."""
        return self.laps - self.warm

    def result(self) -> dict[str, Any]:
        """Counts, seconds and the peak memory in bytes: of the GPU, or of the whole process on a CPU."""
        assert self.seconds > 0, "the last step has not ended"
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "steps": self.steps,
            **{name: int(count) for name, count in self.counts.items()},
            "unique_tokens": sum(ranks.gathered(int(self.counts["unique_tokens"]))),
            "seconds": self.seconds,
            "warm_seconds": self.warm_seconds,
            "peak_memory_bytes": peak,
            **({"points": self.points} if self.points else {}),
            **({"guard": self.guard} if self.guard else {}),
            **self.facts,
        }

    def seconds_by_tokens(self) -> dict[str, float]:
        """The time of a step as a line over the tokens it computes, drawn through the timed steps: `fixed_seconds` of
        each step, `token_seconds` of each token. The line goes through the mean step, and never falls; its slope is the
        median of those between all pairs of steps, so that a step that was held up does not count.
        """
        from scipy.stats import theilslopes

        (first, *_), tokens = self._marks[0], [int(count) for _, count in self._marks]
        cuda = self.device.type == "cuda"
        ends = [first.elapsed_time(end) / 1000 if cuda else end - first for end, _ in self._marks]
        steps = [(after - before) for before, after in itertools.pairwise(tokens)]
        times = [(after - before) for before, after in itertools.pairwise(ends)]
        mean, size = statistics.mean(times), statistics.mean(steps)
        slope = float(theilslopes(times, steps)[0]) if len(set(steps)) > 1 else 0.0
        slope = min(max(0.0, slope), mean / size)
        # The subtraction rounds, to less than nothing where the line goes through the origin.
        return {"fixed_seconds": max(0.0, mean - slope * size), "token_seconds": slope}

    def _mark(self) -> None:
        """Notes the time without waiting for the device."""
        now: Any = time.monotonic()
        if self.device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        self._marks.append((now, self.counts["unique_tokens"]))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class StopWithClock(TrainerCallback):
    """Ends a step of the clock with each step of the trainer, and the training with the clock's last step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        control.should_training_stop = self.clock.lap()


def train_by_clock(trainer: Trainer, clock: Clock, callback: TrainerCallback | None = None) -> None:
    """Trains until the clock says so. callback: in place of `StopWithClock`."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback or StopWithClock(clock))
    clock.begin()
    trainer.train()


def endless_arguments(device: torch.device) -> dict[str, Any]:
    """Arguments of a `Trainer` that steps until it is stopped and writes nothing."""
    return {
        "max_steps": 10**6,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
        "use_cpu": device.type == "cpu",
        "bf16": device.type == "cuda",
        "dataloader_pin_memory": device.type == "cuda",
    }


def matmul_rates(device: torch.device) -> tuple[float, float]:
    """(peak, sustained) FLOP/s of a square product in the compute dtype, 8192 wide on a GPU.

    peak: the median of ten products, after ten more. sustained: of products without a pause, in the second half of
    `SUSTAINED` seconds: by then a GPU has reached its limit of power, as it has in the steps of a training.
    """
    on_gpu = device.type == "cuda"
    size = 8192 if on_gpu else 1024
    one, other = (torch.randn(size, size, device=device, dtype=compute_dtype(device)) for _ in range(2))

    def products(count: int) -> float:
        """Seconds that they take."""
        started = time.perf_counter()
        for _ in range(count):
            torch.mm(one, other)
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    products(10)
    peak = statistics.median(products(1) for _ in range(10))
    seconds, at_once = SUSTAINED["cuda" if on_gpu else "cpu"], 16
    taken: list[float] = []
    while sum(taken) < seconds:
        taken.append(products(at_once))
    late = taken[len(taken) // 2 :]
    sustained = sum(late) / len(late) / at_once
    # A CPU may still be rising from its idle clock in the first ones.
    return 2 * size**3 / min(peak, sustained), 2 * size**3 / sustained
