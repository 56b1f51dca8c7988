"""Estimated times of training and scoring."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from src.model.backbones import backbones
from src.model.memory import Memory, MemoryPlan
from src.model.recipe_files import load_recipe
from src.model.shapes import Shape
from src.plan import speeds, times

PUBLISHED = Path("resource/recipes/published")
SHAPES = {short: Shape.of_backbone(facts) for short, facts in backbones().items()}
BLLOSSOM = SHAPES["bllossom"]
H100, H200 = "NVIDIA H100 80GB HBM3", "NVIDIA H200"
LORA = speeds.Step(
    row="lora-1",
    backbone="bllossom",
    cap_gib=None,
    card=H100,
    versions={"torch": "2.11.0"},
    method="lora",
    objective="answer",
    dropout=0.0,
    unpacks=False,
    recomputed=0.0,
    optimizer="fp32",
    captured=True,
    tokens=700.0,
    seconds=0.1,
    fixed_seconds=0.04,
)


def plan(checkpointing: bool = False, optimizer: str = "fp32", dequantised: bool = True) -> MemoryPlan:
    return MemoryPlan(optimizer, checkpointing, Memory(0, 0, 0, 0, 0), True, dequantised)


def put(monkeypatch: pytest.MonkeyPatch, *steps: speeds.Step) -> None:
    monkeypatch.setattr(times, "measured", lambda: steps)


def seconds_of(
    memory: MemoryPlan, shape: Shape = BLLOSSOM, card: str = H100, tokens: float = 700, **values: Any
) -> float:
    """Of one item of one epoch."""
    values = {"method": "lora", "epoch": 1, "batch_size": 1, "lora_dropout": 0.0, "model_id": "x/y"} | values
    recipe = load_recipe(PUBLISHED / "bllossom.yaml", values)
    found = times.training_seconds(shape, recipe, memory, 1, tokens, card)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "step", [one for one in speeds.measured() if one.method != speeds.SCORING], ids=lambda one: one.row
)
def test_time_gives_back_every_measured_step(step: speeds.Step, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, step)
    memory = plan(step.recomputed > 0, step.optimizer, not step.unpacks)
    values = {"method": step.method, "objective": step.objective, "lora_dropout": step.dropout}
    assert seconds_of(memory, SHAPES[step.backbone], step.card, step.tokens, **values) == pytest.approx(step.seconds)


def test_only_a_part_of_a_step_grows_with_its_tokens_and_all_of_it_with_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(monkeypatch, LORA)
    assert seconds_of(plan(), tokens=1400) == pytest.approx(0.04 + 2 * 0.06)
    assert seconds_of(plan(checkpointing=True)) == pytest.approx(0.04 + 1.5 * 0.06), "6 FLOPs instead of 4"
    spare = dataclasses.replace(plan(checkpointing=True), spare=700 * BLLOSSOM.layers // 2)
    assert seconds_of(spare) == pytest.approx(0.04 + 1.25 * 0.06), "half of the layers keep what they computed"
    assert seconds_of(dataclasses.replace(spare, spare=10**6)) == pytest.approx(0.1), "and here all of them"
    twice = SHAPES["polar"]
    assert twice.linear_parameters == 2 * BLLOSSOM.linear_parameters
    assert seconds_of(plan(), twice) == pytest.approx(2 * 0.1)
    put(monkeypatch, dataclasses.replace(LORA, fixed_seconds=None))
    assert seconds_of(plan(), tokens=1400) == pytest.approx(2 * 0.1)


def test_items_of_a_step_share_its_fixed_part(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, LORA)
    recipe = load_recipe(PUBLISHED / "bllossom.yaml", {"method": "lora", "epoch": 3, "batch_size": 2})
    found = times.training_seconds(BLLOSSOM, recipe, plan(), 5, 700, H100)
    assert found == pytest.approx(3 * 3 * (0.04 + 2 * 0.06)), "three epochs of three steps"


def test_the_step_that_is_most_alike_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(seconds: float, **changes: Any) -> speeds.Step:
        return dataclasses.replace(LORA, seconds=seconds, fixed_seconds=seconds, **changes)

    dropout, packed = other(1.0, dropout=0.05), other(2.0, method="qlora", unpacks=True)
    full, pairs = other(3.0, method="full"), other(4.0, method="full", objective="orpo")
    eager, scoring = other(5.0, dropout=0.05, captured=False), other(6.0, method=speeds.SCORING)
    put(monkeypatch, scoring, eager, LORA, dropout, packed, full, pairs)
    assert seconds_of(plan()) == pytest.approx(0.1)
    assert seconds_of(plan(), lora_dropout=0.05) == 1.0
    assert seconds_of(plan(dequantised=False), method="qlora") == 2.0
    assert seconds_of(plan(dequantised=True), method="qlora", lora_dropout=0.05) == 1.0
    assert seconds_of(plan(), method="full") == 3.0 and seconds_of(plan(), method="orpo") == 4.0
    masters, again = other(7.0, method="full", optimizer="fp32"), other(8.0, method="full", recomputed=1.0)
    rounding = other(9.0, method="full", optimizer="bf16-stochastic")
    put(monkeypatch, rounding, masters, again)
    assert seconds_of(plan(), method="full") == 7.0 and seconds_of(plan(checkpointing=True), method="full") == 8.0
    assert seconds_of(plan(optimizer="bf16-stochastic"), method="full") == 9.0
    put(monkeypatch, eager, full)
    assert seconds_of(plan(dequantised=False), method="qlora") == 5.0, "adapters from adapters, captured or not"
    put(monkeypatch, dataclasses.replace(LORA, card=H200, seconds=0.07), LORA)
    assert seconds_of(plan()) == pytest.approx(0.1) and seconds_of(plan(), card=H200) == pytest.approx(0.07)


def test_time_of_scoring_goes_by_the_tokens_that_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    pass_ = dataclasses.replace(LORA, method=speeds.SCORING, tokens=1e5, seconds=3.0, fixed_seconds=None)
    put(monkeypatch, LORA, pass_)
    assert times.scoring_seconds(BLLOSSOM, 605, 240, H100) == pytest.approx(605 * 240 / 1e5 * 3)
    assert times.scoring_seconds(SHAPES["polar"], 605, 240, H100) == pytest.approx(2 * 605 * 240 / 1e5 * 3)


@pytest.mark.parametrize(("card", "peak"), [("RTX 4090", 165), ("L40S", 362), ("A100", 312), (H200, 989)])
def test_another_gpu_goes_by_its_peak(card: str, peak: int, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, LORA, dataclasses.replace(LORA, method=speeds.SCORING))
    assert seconds_of(plan(), card=card) == pytest.approx(0.1 * 989 / peak)
    assert times.scoring_seconds(BLLOSSOM, 1, 700, card) == pytest.approx(
        times.scoring_seconds(BLLOSSOM, 1, 700, H100) * 989 / peak
    )


def test_a_gpu_of_unknown_speed_has_no_time() -> None:
    recipe = load_recipe(PUBLISHED / "polar.yaml")
    assert times.training_seconds(BLLOSSOM, recipe, plan(), 758, 1134, "GTX 1080") is None
    assert times.scoring_seconds(BLLOSSOM, 605, 400, "GTX 1080") is None
