"""What is left to do of some recipes, and what of it cannot be done here."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from src.console.cli import UserError
from src.data import sha256, split_path
from src.files.writing import write_json
from src.model.recipes import Recipe, make_recipe
from src.plan import ready
from src.plan.estimates import estimate_runs
from src.plan.work import Place, Wanted, command_left, jobs_left
from src.runs.facts import DataFile, Result
from src.runs.record import Record
from tests.made_runs import make_split

FILE = Path("recipes/polar.yaml")
RECIPE = make_recipe({"backbone": "polar", "method": "lora"}, "here")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for split, count in (("train", 6), ("dev", 6), ("test", 4)):
        make_split(tmp_path / "data", split, count, labelled=split != "test")
    return Place(tmp_path / "results", tmp_path / "data", test=True, task=("--task", "mine.yaml"))


def finished(place: Place, recipe: Recipe = RECIPE) -> Record:
    """The record of a run of `recipe` that was scored on test, which lies in its folder."""
    digests = {split: sha256(split_path(place.data, split)) for split in ("train", "dev", "test")}
    record = Record(
        run=recipe.name,
        settings=asdict(recipe),
        data={split: DataFile(sha256=digests[split]) for split in ("train", "dev")},
        by_orders={1: {"test": Result(items=4, data_sha256=digests["test"])}},
    )
    record.save(place.results / recipe.name)
    return record


def left(place: Place, recipe: Recipe = RECIPE, flags: Sequence[str] = ()) -> list[str]:
    return command_left(Wanted(FILE, recipe, place, flags))


def test_a_run_that_is_not_there_is_trained_and_scored(place: Place) -> None:
    words = left(place)
    assert words[2:] == [
        *("run.train", "--recipe", str(FILE), "--data", str(place.data), "--score", "test", "--task", "mine.yaml")
    ]
    assert "--score" not in left(replace(place, test=False))
    assert left(place, RECIPE.replace(objective="orpo"))[2] == "orpo.orpo_train"
    told = replace(place, reports=("--report_to", "tensorboard"))
    assert left(told) == [*words[:-2], "--report_to", "tensorboard", "--task", "mine.yaml"]
    assert left(place, RECIPE, ["--seed", "7"])[3:8] == ["--recipe", str(FILE), "--seed", "7", "--data"]


def test_a_finished_run_is_scored_on_another_test_split_and_else_left_alone(place: Place) -> None:
    finished(place)
    assert left(place) == []
    make_split(place.data, "test", 5)
    folder = str(place.results / "polar")
    words = left(place)
    assert left(replace(place, reports=("--report_to", "tensorboard"))) == words, "scoring reports to nobody"
    assert words[2:] == [
        "run.test",
        "--model_id",
        folder,
        "--split",
        "test",
        "--data",
        str(place.data),
        "--task",
        "mine.yaml",
    ]
    assert left(replace(place, test=False)) == []


def test_a_run_of_other_settings_or_data_is_not_this_one(place: Place) -> None:
    record = finished(place)
    with pytest.raises(UserError, match=r"is a finished run with other settings \(epoch\)"):
        left(place, RECIPE.replace(epoch=9))
    settings = {key: value for key, value in asdict(RECIPE).items() if key != "orpo_beta"}
    replace(record, settings={**settings, "of_a_later_version": 1}).save(place.results / "polar")
    assert left(place) == []
    make_split(place.data, "dev", 5)
    with pytest.raises(UserError, match=r"other settings \(dev data\)"):
        left(place)


def test_what_cannot_be_done_here_is_named_and_the_rest_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    eeve = make_recipe({"backbone": "eeve", "method": "lora"}, "here")
    wanted = [Wanted(FILE, RECIPE, place), Wanted(Path("eeve.yaml"), eeve, place)]
    estimates = estimate_runs([RECIPE, eeve], {"train": 6, "dev": 6, "test": 4})
    monkeypatch.setattr(ready, "check_room", lambda *given: None)
    monkeypatch.setattr(ready, "obstacles", lambda *given: {"eeve": "too large"})
    jobs, failures = jobs_left(wanted, estimates, [])
    assert ([job.name for job in jobs], failures) == (["polar"], {"eeve": "too large"})
    assert jobs[0].log == place.results / "polar" / "log.txt" and jobs[0].weight > 0
    monkeypatch.setattr(ready, "obstacles", lambda *given: {"eeve": "too large", "polar": "too large"})
    with pytest.raises(UserError, match=r"nothing can be run here\. eeve, polar: too large\. Nothing was fetched"):
        jobs_left(wanted, estimates, [])


def test_room_is_asked_for_as_many_checkpoints_as_lean_runs_have_at_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [make_recipe({"backbone": "qwen2", "method": "full", "name": f"{name}"}, "here") for name in "abc"]
    small = make_recipe({"backbone": "polar", "method": "lora", "name": "d"}, "here")
    wanted = [Wanted(FILE, recipe, place, lean=True) for recipe in [small, *recipes]]
    estimates = estimate_runs([one.recipe for one in wanted], {})
    asked: list[float] = []
    monkeypatch.setattr(ready, "check_room", lambda found, *place: asked.append(sum(one.disk for one in found)))
    monkeypatch.setattr(ready, "obstacles", lambda *given: {})
    disk, kept = ([getattr(one, name) or 0 for one in estimates] for name in ("disk", "kept"))
    assert all(5 * one < other for one, other in zip(kept, disk, strict=True))
    jobs, _ = jobs_left(wanted, estimates, [], at_once=2)
    assert [job.passing for job in jobs] == [(place.results / name / "checkpoints",) for name in "dabc"]
    jobs, _ = jobs_left([replace(one, lean=False) for one in wanted], estimates, [], at_once=2)
    assert [job.passing for job in jobs] == [()] * 4
    assert asked == [disk[1] + disk[2] + kept[3] + kept[0], sum(disk)]
    # A finished run takes no place of one that has checkpoints still.
    finished(place, recipes[0])
    jobs_left(wanted, estimates, [])
    assert asked[2] == disk[2] + kept[3] + kept[0]


def test_a_damaged_run_is_a_failure_of_its_own(place: Place) -> None:
    write_json(place.results / "polar" / "record.json", [])
    jobs, failures = jobs_left([Wanted(FILE, RECIPE, place)], estimate_runs([RECIPE], {}), [])
    assert jobs == [] and "is damaged: not an object" in failures["polar"]
