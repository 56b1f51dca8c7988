from pathlib import Path
from typing import Any

import pytest

from src.console.cli import UserError
from src.files.paths import record_path
from src.files.writing import write_json
from src.runs.facts import JOINED
from src.runs.recipe_groups import _common_name, differing_facts, group_by_recipe, seed_notes


def made(results: Path, name: str, seed: int, record: dict[str, Any] | None = None, **recipe: Any) -> Path:
    """The folder of a run with such a recipe."""
    whole = {"run": name, "recipe": {"name": name, "backbone": "polar", "seed": seed, **recipe}, "splits": {}}
    (results / name).mkdir(parents=True)
    write_json(record_path(results / name), whole | (record or {}))
    return results / name


def test_runs_that_differ_in_name_and_seed_alone_are_one_recipe(tmp_path: Path) -> None:
    folders = {
        name: made(tmp_path, name, seed, lr=lr)
        for name, seed, lr in (("a-s1", 1, 1e-4), ("b-s1", 1, 2e-4), ("a-s2", 2, 1e-4), ("b-s2", 2, 2e-4))
    }
    groups = group_by_recipe(folders)
    assert [(group.name, dict(group.seeds)) for group in groups] == [
        ("a", {"a-s1": 1, "a-s2": 2}),
        ("b", {"b-s1": 1, "b-s2": 2}),
    ]
    assert differing_facts(groups) == {"a": {"lr": "0.0001"}, "b": {"lr": "0.0002"}}
    assert seed_notes(folders) == [
        "a-s1, a-s2 are of one recipe under several seeds; --seeds shows them as one row",
        "b-s1, b-s2 are of one recipe under several seeds; --seeds shows them as one row",
    ]
    assert seed_notes({"a-s1": folders["a-s1"], "b-s2": folders["b-s2"]}) == []


def test_a_setting_that_a_record_does_not_name_has_its_default(tmp_path: Path) -> None:
    folders = {"old": made(tmp_path, "old", 1), "new": made(tmp_path, "new", 2, lora_r=6)}
    assert len(group_by_recipe(folders)) == 1


@pytest.mark.parametrize(
    ("other", "fact"),
    [
        ({"data": {"train": {"sha256": "b" * 64, "items": 9}}}, "train data"),
        ({"prompt": {"name": "entry", "sha256": "c" * 64, "text": "other"}}, "text of the prompt"),
        ({"training": {"steps": 3}}, "trained"),
        ({"base_revision": "d" * 40}, "revision"),
        ({"dialogue": "blanked"}, "dialogues"),
    ],
)
def test_other_data_or_prompts_are_another_recipe(tmp_path: Path, other: dict[str, Any], fact: str) -> None:
    folders = {"a": made(tmp_path, "a", 1), "b": made(tmp_path, "b", 2, other)}
    groups = group_by_recipe(folders)
    assert [list(group.seeds) for group in groups] == [["a"], ["b"]]
    assert list(differing_facts(groups)["b"]) == [fact]


def test_joined_fold_runs_have_the_recipe_of_their_parts(tmp_path: Path) -> None:
    folders = {}
    for name, seed, lr in (("a", 1, 1e-4), ("a-s2", 2, 1e-4), ("b", 1, 2e-4), ("b-s2", 2, 2e-4)):
        parts = [f"{name}-f{number}of2" for number in (1, 2)]
        for part in parts:
            made(tmp_path, part, seed, {"data": {"train": {"sha256": part[-4] * 64, "items": 9}}}, lr=lr, keep="last")
        folders[f"{name}-oof2"] = tmp_path / f"{name}-oof2"
        folders[f"{name}-oof2"].mkdir()
        result = {"items": 9, "rule": JOINED["dev"], "voters": [{"run": part} for part in parts]}
        whole = {"run": f"{name}-oof2", "splits": {"dev": result}}
        write_json(record_path(folders[f"{name}-oof2"]), whole)
    groups = group_by_recipe(folders)
    assert [(group.name, dict(group.seeds)) for group in groups] == [
        ("a", {"a-oof2": 1, "a-s2-oof2": 2}),
        ("b", {"b-oof2": 1, "b-s2-oof2": 2}),
    ]
    assert differing_facts(groups) == {"a": {"lr": "0.0001"}, "b": {"lr": "0.0002"}}
    part = made(tmp_path, "a-s3", 3, lr=1e-4, keep="last")
    assert len(group_by_recipe({"a-oof2": folders["a-oof2"], "a-s3": part})) == 2, "joined runs are no single one"
    record_path(tmp_path / "a-f2of2").unlink()
    with pytest.raises(UserError, match=r"a-oof2 \(a vote\)"):
        group_by_recipe(folders)


def test_what_has_no_recipe_or_the_same_seed_is_refused(tmp_path: Path) -> None:
    run, twin = made(tmp_path, "run", 1), made(tmp_path, "twin", 1)
    vote = tmp_path / "vote"
    vote.mkdir()
    write_json(record_path(vote), {"run": "vote", "splits": {}})
    with pytest.raises(UserError, match=r"vote \(a vote\), x.json \(a file outside of a run's folder\)"):
        group_by_recipe({"run": run, "vote": vote, "x.json": tmp_path})
    with pytest.raises(UserError, match=r"same seed would count twice: run \(seed 1\), twin \(seed 1\)"):
        group_by_recipe({"run": run, "twin": twin})
    assert seed_notes({"run": run, "twin": twin, "vote": vote, "x.json": tmp_path}) == []


@pytest.mark.parametrize(
    ("runs", "name"),
    [
        (["polar-s1", "polar-s2"], "polar"),
        (["polar-s10", "polar-s11"], "polar"),
        (["polar", "polar-2"], "polar"),
        (["polar_seed_1", "polar_seed_2"], "polar"),
        (["qwen2", "qwen2-s1"], "qwen2"),
        (["qwen2-1", "qwen2-12"], "qwen2"),
        (["bosses1", "bosses2"], "bosses"),
        (["one", "two"], "one"),
        (["s1", "s2"], "s1"),
        (["alone-s1"], "alone-s1"),
    ],
)
def test_a_group_has_the_name_that_its_runs_have_in_common(runs: list[str], name: str) -> None:
    assert _common_name(runs) == name


def test_groups_with_the_same_name_have_those_of_their_runs(tmp_path: Path) -> None:
    names = (("a-s1", 1, 1), ("a-s2", 2, 1), ("a-s3", 1, 2), ("a-s4", 2, 2))
    groups = group_by_recipe({name: made(tmp_path, name, seed, epoch=epoch) for name, seed, epoch in names})
    assert [group.name for group in groups] == ["a-s1, a-s2", "a-s3, a-s4"]
