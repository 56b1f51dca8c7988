"""What this machine cannot do, told before anything is downloaded."""

from pathlib import Path

import pytest

from src.console.cli import UserError
from src.model.devices import Gpu
from src.model.recipe_files import load_recipe
from src.model.shapes import GIB
from src.plan import ready
from src.plan.estimates import estimate_runs

PUBLISHED = Path("resource/recipes/published")
pytestmark = pytest.mark.usefixtures("empty_hub_cache")


def test_obstacles(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [load_recipe(PUBLISHED / f"{name}.yaml") for name in ("polar", "qwen2")]
    estimates = estimate_runs(recipes, {})
    found = ready.obstacles(recipes, estimates, [])
    assert set(found) == {"polar", "qwen2"} and len(set(found.values())) == 1 and "no GPU" in found["polar"]
    small = Gpu("NVIDIA RTX 2060", 6 * GIB, 6 * GIB)
    assert "GiB of GPU memory, and the largest GPU here has 6" in ready.obstacles(recipes, estimates, [small])["qwen2"]
    large = Gpu("NVIDIA H200", 141 * GIB, 141 * GIB)
    monkeypatch.setattr(ready.hub, "unreachable", lambda: "")
    assert ready.obstacles(recipes, estimates, [small, large]) == {}
    monkeypatch.setattr(ready.hub, "unreachable", lambda: "the hub is asleep")
    reason = "its base model is not on this machine and the hub is asleep"
    assert ready.obstacles(recipes, estimates, [large]) == {"polar": reason, "qwen2": reason}


def test_runs_with_the_same_reason_are_one_sentence() -> None:
    assert ready.refusal({"a": "too large", "b": "not here", "c": "too large"}) == "a, c: too large. b: not here."


def test_room_is_asked_for_all_runs_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(PUBLISHED / "polar.yaml")
    estimates = estimate_runs([recipe, recipe.replace(name="again")], {})
    asked = []
    monkeypatch.setattr(ready, "check_disk", lambda path, needed, what: asked.append((path, needed, what)))
    ready.check_room(estimates, tmp_path / "results", tmp_path / "hub")
    download, disk = estimates[0].download or 0, estimates[0].disk or 0
    assert asked == [(tmp_path / "results", download + 2 * disk, "keeping 2 run(s) and 28.5 GB of downloads")]
    # What a run has written already is not asked for again.
    (tmp_path / "results" / "polar").mkdir(parents=True)
    (tmp_path / "results" / "polar" / "weights").write_bytes(b"12345")
    ready.check_room(estimates, tmp_path / "results", tmp_path / "hub")
    assert asked[1][1] == asked[0][1] - 5


def test_a_full_disk_is_told_with_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, needed: float, what: str) -> None:
        raise UserError("no room.")

    monkeypatch.setattr(ready, "check_disk", full)
    recipe = load_recipe(PUBLISHED / "polar.yaml")
    with pytest.raises(UserError, match=r"no room\. Or do some of them: --only NAME …"):
        ready.check_room(estimate_runs([recipe, recipe.replace(name="again")], {}), tmp_path, tmp_path)
    with pytest.raises(UserError, match=r"no room\.$"):
        ready.check_room(estimate_runs([recipe], {}), tmp_path, tmp_path)
