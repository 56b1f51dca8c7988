"""What a run downloads and keeps, and a disk without room for it."""

import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from src.console.cli import UserError
from src.model import disk
from src.model.recipe_files import load_recipe
from tests.small_hub import put_in_cache

QWEN2 = Path("resource/recipes/published/qwen2.yaml")
Usage = namedtuple("Usage", "total used free")


def test_check_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return Usage(10**12, 0, 5 * 10**9)

    monkeypatch.setattr("shutil.disk_usage", usage)
    disk.check_disk(tmp_path / "not" / "yet", 5e9, "the run polar")
    assert asked == [tmp_path]
    with pytest.raises(UserError, match=r"the run polar needs 5\.1 GB, but .*not/yet has 5\.0 GB free.*HF_HOME"):
        disk.check_disk(tmp_path / "not" / "yet", 5.1e9, "the run polar")


def test_what_the_cache_holds_whole_is_not_downloaded(empty_hub_cache: Path) -> None:
    recipe = load_recipe(QWEN2)
    assert disk.download_bytes(recipe) == 15_200_000_000
    index = json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    put_in_cache(empty_hub_cache, "Qwen/Qwen2-7B", {"model.safetensors.index.json": index, "1.safetensors": ""})
    assert disk.download_bytes(recipe) == 15_200_000_000
    put_in_cache(empty_hub_cache, "Qwen/Qwen2-7B", {"2.safetensors": ""})
    assert disk.download_bytes(recipe) == 0
    assert disk.download_bytes(recipe.replace(revision="another")) == 15_200_000_000
    put_in_cache(empty_hub_cache, "someone/small", {"model.safetensors": ""})
    assert disk.is_cached("someone/small") and not disk.is_cached("someone/other")
    assert not disk.is_cached("no/hub/id")


def test_a_download_needs_room(empty_hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10**12, 0, 15 * 10**9))
    recipe = load_recipe(QWEN2)
    with pytest.raises(UserError, match=r"the download of Qwen/Qwen2-7B needs 15\.2 GB, but the disk of .* has 15\.0"):
        disk.check_download(recipe)
    # Nothing is downloaded of a folder, without a network, or of what is here.
    disk.check_download(recipe.replace(model_id=str(tmp_path)))
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        disk.check_download(recipe)
    put_in_cache(empty_hub_cache, "Qwen/Qwen2-7B", {"model.safetensors": ""})
    disk.check_download(recipe)
