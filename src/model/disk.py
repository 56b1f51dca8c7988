"""Checks, before a run starts, that the disk has room for its downloads and files."""

import shutil
from pathlib import Path

from src.console.cli import UserError
from src.console.start import find
from src.console.words import size_text
from src.model.backbones import backbones
from src.model.hub import is_cached
from src.model.recipes import Recipe

GB = 10**9


def check_disk(path: str | Path, needed_bytes: float, what: str) -> None:
    """UserError when the disk of `path` (which need not exist yet) has less than `needed_bytes` free for `what`."""
    free = shutil.disk_usage(existing_parent(path)).free
    if free < needed_bytes:
        raise UserError(
            f"{what} needs {size_text(needed_bytes)}, but the disk of {path} has {size_text(free)} free. "
            "Free some space, or choose another disk: --save_dir for runs, the variable HF_HOME for downloads."
        )


def bytes_kept(folder: Path) -> int:
    """Bytes that the files in `folder` take already."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def existing_parent(path: str | Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return place


def download_bytes(recipe: Recipe) -> int | None:
    """Size of the download of the base model: 0 if it is a folder or whole in the hub's cache, None if unknown."""
    if Path(find(recipe.model_id)).is_dir() or is_cached(recipe.model_id, recipe.revision):
        return 0
    facts = backbones().get(recipe.backbone)
    return int(facts.download_bytes) if facts is not None and facts.model_id == recipe.model_id else None


def check_download(recipe: Recipe) -> None:
    """UserError when the base model is yet to be downloaded and the disk of the hub's cache has no room for it."""
    from huggingface_hub import constants

    size = download_bytes(recipe)
    if size and not constants.HF_HUB_OFFLINE:
        check_disk(constants.HF_HUB_CACHE, size, f"the download of {recipe.model_id}")
