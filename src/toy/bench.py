"""Measures one case of `run.bench` with the case's own function.

The corpus and the backbones of the true sizes are made by src/toy/bench_inputs.py. Only src/toy/bench_ours.py knows how
we train and score; src/toy/bench_baselines.py holds the baselines.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from src.model import ranks
from src.toy.bench_baselines import entry_scoring, entry_training, trl_orpo, trl_training
from src.toy.bench_cases import Case
from src.toy.bench_clock import Clock, matmul_rates
from src.toy.bench_ours import our_growth, our_scoring, our_training
from src.toy.bench_setting import Setting

WARM_AND_LEAST = {"training": (2, 2), "scoring": (1, 1)}
"""Steps of warm-up, and the least timed steps. A CPU has nothing to compile: it warms up with one step."""
FUNCTIONS: dict[str, Callable[[Case, Setting, Clock], str]] = {
    "entry": entry_training,
    "entry-full": entry_training,
    "trl": trl_training,
    "entry-score": entry_scoring,
    "trl-orpo": trl_orpo,
    "trl-orpo-full": trl_orpo,
    "growth": our_growth,
}
"""The cases with a function of their own."""


def measure(case: Case, setting: Setting, seconds: float) -> dict[str, Any]:
    """Runs one case in this process and returns its counts, seconds, peaks and a note on what ran."""
    peak, sustained = matmul_rates(setting.device)
    warm, least = WARM_AND_LEAST[case.kind]
    clock = Clock(setting.device, seconds, warm if setting.device.type == "cuda" else 1, least)
    function = FUNCTIONS.get(case.name) or (our_training if case.kind == "training" else our_scoring)
    note = function(case, setting, clock)
    return {
        **asdict(case),
        **clock.result(),
        "ranks": ranks.world(),
        "matmul_flops": peak * ranks.world(),
        "sustained_matmul_flops": sustained * ranks.world(),
        "linear_parameters": setting.shape.linear_parameters,
        "note": note,
    }
