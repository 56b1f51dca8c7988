"""Estimated times of training and scoring."""

from pathlib import Path

import pytest

from src.model.backbones import backbones
from src.model.recipe_files import load_recipe
from src.model.shapes import Shape
from src.plan import times

PUBLISHED = Path("resource/recipes/published")
BLLOSSOM = Shape.of_backbone(backbones()["bllossom"])


@pytest.mark.parametrize("timed", [timed for timed in times.RATES if timed[0] != "scoring"])
def test_time_gives_back_what_was_measured(timed: tuple[str, bool]) -> None:
    method, checkpointing = timed
    recipe = load_recipe(PUBLISHED / "bllossom.yaml", {"method": method})
    seconds = times.training_seconds(BLLOSSOM, recipe, 758, 700, checkpointing, speed=1.0)
    assert seconds == pytest.approx(758 * 700 * 15 / times.RATES[timed])


def test_time_of_scoring_goes_by_the_tokens_that_are_computed() -> None:
    seconds = times.scoring_seconds(BLLOSSOM, 605, 240, speed=1.0)
    assert seconds == pytest.approx(605 * 240 / times.RATES["scoring", False])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_time_of_a_pair_that_was_not_measured(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(PUBLISHED / "bllossom.yaml", {"method": method, "epoch": 1})
    least = {"full": 6, "lora": 4}[method]
    for measured in (False, True):
        monkeypatch.setattr(times, "RATES", {(method, measured): 1000})
        with_it, without = (times.training_seconds(BLLOSSOM, recipe, 758, 700, switch, 1.0) for switch in (True, False))
        assert without == pytest.approx(with_it * least / (least + 2))
        assert (with_it if measured else without) == pytest.approx(758 * 700 / 1000)


def test_a_gpu_of_half_the_speed_takes_twice_as_long() -> None:
    recipe = load_recipe(PUBLISHED / "polar.yaml")
    whole, half = (times.training_seconds(BLLOSSOM, recipe, 758, 1134, False, speed) for speed in (1.0, 0.5))
    assert half == pytest.approx(2 * whole)
    whole, half = (times.scoring_seconds(BLLOSSOM, 605, 400, speed) for speed in (1.0, 0.5))
    assert half == pytest.approx(2 * whole)
