"""A folder for run.reproduce to work in, and stand-ins for the commands that it starts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.made_runs import make_split

ROOT = Path(__file__).parents[1]


def make_house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in: the repository's rooms, but data, recipes and results of its own."""
    for name in ("run", "src"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "resource").mkdir()
    for name in ("backbones.yaml", "tokenizers.yaml", "speeds.yaml", "task.yaml", "prompts"):
        (folder / "resource" / name).symlink_to(ROOT / "resource" / name)
    for split, count in (("train", 6), ("dev", 6), ("test", 9)):
        make_split(folder / "data", split, count, labelled=split != "test")
    (folder / "recipes").mkdir()
    for name in ("eeve", "polar", "qwen2"):
        (folder / "recipes" / f"{name}.yaml").write_text(f"backbone: {name}\nmethod: lora\n", encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def set_run_job(monkeypatch: pytest.MonkeyPatch, stand_in: Callable[..., str]) -> None:
    """For the runs, and for the vote."""
    for module in ("src.console.jobs", "run.reproduce"):
        monkeypatch.setattr(f"{module}.run_job", stand_in)
