"""How many GPUs a run gets, by the plan."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src.console.cli import UserError
from src.model.devices import Gpu
from src.model.recipes import Recipe, make_recipe
from src.model.shapes import GIB
from src.plan import ready, shared
from src.plan.estimates import estimate_runs
from src.plan.work import Place, Wanted, command_left, jobs_left
from tests.made_runs import make_split

pytestmark = pytest.mark.usefixtures("empty_hub_cache")
ITEMS = {"train": 758, "dev": 76, "test": 605}
FULL = make_recipe({"backbone": "bllossom", "method": "full", "batch_size": 8}, "here")


def cards(count: int, size: int) -> list[Gpu]:
    return [Gpu(f"card of {size}", size * GIB, size * GIB) for _ in range(count)]


def count(recipe: Recipe, gpus: Sequence[Gpu] | None) -> int:
    return shared.sharing(recipe, gpus).gpus


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for split, items in (("train", 6), ("dev", 6), ("test", 4)):
        make_split(tmp_path / "data", split, items, labelled=split != "test")
    return Place(tmp_path / "results", tmp_path / "data", test=True)


def test_the_fewest_gpus_that_hold_a_run_of_all_parameters() -> None:
    """8 billion parameters: 2 + 2 bytes each and moments in 8 bits are 6.1 bytes, 45 GiB in all."""
    assert count(FULL, cards(4, 80)) == 1
    assert count(FULL, cards(4, 48)) == 2 and count(FULL, cards(1, 48)) == 1
    assert count(FULL, cards(8, 24)) == 4 and count(FULL, cards(4, 24)) == 4
    assert count(FULL, cards(8, 16)) == 8
    # Each has an even part, so the smallest counts; and the largest where one is enough.
    mixed = [*cards(2, 48), *cards(1, 24)]
    assert count(FULL, mixed) == 1 and "more than fits into 24 GiB" in shared.sharing(FULL, mixed).why
    assert count(FULL, [*cards(1, 48), *cards(1, 80)]) == 1


def test_the_plan_on_so_many_fits_and_on_fewer_does_not() -> None:
    chosen = shared.sharing(FULL, cards(8, 24))
    assert chosen.plan is not None and chosen.plan.fits and chosen.plan.cards == chosen.gpus == 4
    assert not shared._plan(FULL, 2, 24 * GIB).fits and not shared._plan(FULL, 1, 24 * GIB).fits


def test_other_methods_and_recipes_that_refuse_get_one() -> None:
    for recipe in (FULL.replace(method="lora"), FULL.replace(method="qlora"), FULL.replace(fsdp="off")):
        assert shared.sharing(recipe, cards(8, 24)) == shared.Sharing()


def test_a_recipe_that_asks_gets_two_where_there_are_two() -> None:
    asks = FULL.replace(fsdp="on")
    assert count(asks, cards(2, 80)) == 2 and count(asks, cards(8, 24)) == 4
    assert count(asks, []) == count(asks, cards(1, 80)) == 1
    # Of other machines nothing is known.
    assert (count(asks, None), count(FULL, None)) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "gpus", "why"),
    [
        ({}, cards(2, 24), r"sharded over 2 of 2 GPUs, it takes \d+ GiB on each, more than fits into 24 GiB"),
        ({}, cards(3, 24), r"sharded over 2 of 3 GPUs, it takes"),
        ({"batch_size": 3}, cards(8, 24), r"sharded over 2 of 8 GPUs, of which a step has 3 items for, it takes"),
        ({"batch_size": 1}, cards(8, 24), r"an optimizer step has 1 item \(batch_size × gradient_accumulation_steps\)"),
        (
            {"optimizer": "fp32-8bit"},
            cards(8, 48),
            r"optimizer fp32-8bit cannot be sharded; allowed there: fp32",
        ),
    ],
)
def test_what_no_number_holds_is_refused_with_the_reason(
    changes: dict[str, Any], gpus: list[Gpu], why: str, place: Place
) -> None:
    for fsdp in ("auto", "on"):
        recipe = FULL.replace(fsdp=fsdp, **changes)
        estimates = shared.shared_out(estimate_runs([recipe], ITEMS, gpu=gpus[0]), [recipe], gpus)
        with pytest.raises(UserError, match=rf"nothing can be run here\. bllossom: .*{why}.*Nothing was fetched"):
            jobs_left([Wanted(Path("bllossom.yaml"), recipe, place)], estimates, gpus)
    assert not place.results.exists()


def test_elsewhere_only_what_asks_for_it_is_refused() -> None:
    asks = FULL.replace(fsdp="on", batch_size=1)
    assert "1 item" in shared.refused([asks, FULL.replace(batch_size=1, name="other")], None)["bllossom"]
    assert len(shared.refused([asks, FULL.replace(name="other")], None)) == 1


def test_a_job_has_its_gpus_and_a_launcher_for_them(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready.hub, "unreachable", lambda: "")
    monkeypatch.setattr(ready, "check_room", lambda *given: None)
    small = make_recipe({"backbone": "polar", "method": "qlora", "name": "small"}, "here")
    recipes, gpus = [FULL, small], cards(4, 24)
    wanted = [Wanted(Path(f"{recipe.name}.yaml"), recipe, place) for recipe in recipes]
    estimates = shared.shared_out(estimate_runs(recipes, ITEMS, gpu=gpus[0]), recipes, gpus)
    jobs, failures = jobs_left(wanted, estimates, gpus, 4)
    assert failures == {} and [job.gpus for job in jobs] == [4, 1]
    there = ["--standalone", "--local-addr", "127.0.0.1", "--nproc_per_node", "4"]
    first = [sys.executable, "-m", "torch.distributed.run", *there, "-m", "run.train", "--recipe", "bllossom.yaml"]
    assert list(jobs[0].command[: len(first)]) == first
    assert list(jobs[1].command) == command_left(wanted[1]) and "torch.distributed.run" not in jobs[1].command
    assert list(jobs[0].command) == command_left(wanted[0], 4)


def test_the_estimate_is_that_of_each_of_its_gpus() -> None:
    gpus = cards(2, 48)
    before = estimate_runs([FULL], ITEMS, gpu=gpus[0])
    (one,) = shared.shared_out(before, [FULL], gpus)
    assert before[0].training is not None and not before[0].training.fits
    assert (
        one.gpus == 2 and one.training is not None and one.training.fits and one.cards == {gpus[0].name: one.training}
    )
    assert shared.shared_out(before, [FULL], gpus[:1]) == before
    assert replace(one, training=before[0].training, cards=before[0].cards, disk=before[0].disk, gpus=1) == before[0]
