"""What a process holds: memory, handles, threads, children, files that it left, and entries of what is global in it."""

import atexit
import ctypes
import functools
import gc
import logging
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 32.0
"""KiB per round that count as level. 24 are measured, and none of them ours, as far as was found: safetensors 0.8 loses
two integers with every tensor it loads, which is more than half of it.
"""
CYCLES = 4
"""As many means, at least, make a slope that can be judged."""


@dataclass(frozen=True, slots=True)
class Held:
    """After a round. `memory` is in MiB, and `anonymous` leaves out files that are mapped; `counts` may not grow, and
    `settings` may not change. Texts and numbers alone, which the garbage collector does not count.
    """

    memory: dict[str, float]
    counts: dict[str, int]
    settings: dict[str, str]


def hold(places: Mapping[str, Path]) -> Held:
    """places: name → folder whose files are counted."""
    for _ in range(3):  # finalizers leave garbage of their own
        gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return Held(_memory(), {**_counts(), **{name: _files(place) for name, place in places.items()}}, _settings())


def _memory() -> dict[str, float]:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return {"resident": kib["Rss"] / 1024, "anonymous": kib["Anonymous"] / 1024}


def _counts() -> dict[str, int]:
    tasks = list(Path("/proc/self/task").iterdir())
    objects = gc.get_objects()
    # isinstance would ask objects that only stand for others, and import what they stand for
    caches = [one.cache_info() for one in objects if type(one) is functools._lru_cache_wrapper]
    loggers = [logging.root, *(one for one in logging.root.manager.loggerDict.values() if hasattr(one, "handlers"))]
    return {
        "objects": sum(type(one) is not Held for one in objects),
        "handles": len(list(Path("/proc/self/fd").iterdir())) - 1,  # the one that lists them
        "threads": len(tasks),
        "python threads": threading.active_count(),
        "children": sum(len((task / "children").read_text(encoding="utf-8").split()) for task in tasks),
        "caches": len(caches),
        "cached": sum(one.currsize for one in caches if one.maxsize is None),
        "loggers": len(loggers),
        "log handlers": sum(len(one.handlers) + len(one.filters) for one in loggers),
        "at exit": atexit._ncallbacks(),
        "finalizers": len(weakref.finalize._registry),
        "warning filters": len(warnings.filters),
        "sys.path": len(sys.path),
        "modules": len(sys.modules),
        "hooks": _torch_hooks(),
    }


def _torch_hooks() -> int:
    module = sys.modules.get("torch.nn.modules.module")
    return sum(len(value) for name, value in vars(module).items() if name.endswith("_hooks")) if module else 0


def _files(place: Path) -> int:
    return sum(len(folders) + len(files) for _, folders, files in os.walk(place))


def _settings() -> dict[str, str]:
    found: dict[str, Any] = {
        "environment": dict(os.environ),
        "sys.path": list(sys.path),
        "folder": os.getcwd(),
        "hook for exceptions": sys.excepthook,
        "standard streams": (sys.stdin, sys.stdout, sys.stderr),
        "recursion limit": sys.getrecursionlimit(),
        "alarm": signal.getitimer(signal.ITIMER_REAL),
        **{f"handler of {one.name}": signal.getsignal(one) for one in signal.Signals},
    }
    if torch := sys.modules.get("torch"):
        found |= {
            "dtype": torch.get_default_dtype(),
            "threads of torch": torch.get_num_threads(),
            "gradients": torch.is_grad_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "precision": torch.get_float32_matmul_precision(),
        }
    return {name: repr(value) for name, value in found.items()}


@dataclass(frozen=True)
class Slope:
    """KiB per round, and its standard error."""

    kib: float
    error: float


def slope(memory: Sequence[float], cycle: int) -> Slope:
    """The straight line through the means of `cycle` rounds each, the last ones. Kinds of rounds take turns, and a mean
    has all of them.

    memory  MiB after each round
    """
    count = len(memory) // cycle
    assert count > 2, "no line has an error"
    means = np.array(memory[len(memory) - count * cycle :]).reshape(count, cycle).mean(1) * 1024
    line = stats.linregress(np.arange(count) * cycle, means)
    return Slope(float(line.slope), float(line.stderr))


def grown(rounds: Sequence[Held], cycle: int) -> list[str]:
    """What the later rounds hold and the first `cycle` of them did not, a line each. Memory is judged where there are
    `CYCLES`: a slope beyond `LEVEL` by three standard errors.
    """
    first, last = rounds[:cycle], rounds[-cycle:]
    lines = []
    for name in rounds[-1].counts:
        before, after = (max(one.counts[name] for one in some) for some in (first, last))
        if after > before:
            lines.append(f"{name}: {before} at first, {after} in the end")
    for name, before in rounds[0].settings.items():
        if (after := rounds[-1].settings[name]) != before:
            short = max(len(before), len(after)) < 100  # the environment is long, and may hold secrets
            lines.append(f"{name}: {before} at first, {after} in the end" if short else f"{name}: changed")
    if len(rounds) >= CYCLES * cycle:
        for name in rounds[-1].memory:
            found = slope([one.memory[name] for one in rounds], cycle)
            if found.kib - 3 * found.error > LEVEL:
                lines.append(f"{name} memory: {found.kib:.0f} ± {found.error:.0f} KiB more with every round")
    return lines
