"""Recipe files: each is one YAML file with a backbone and every setting that is not the default."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.console.cli import UserError, nearest
from src.console.start import find, ours
from src.files.paths import is_file, is_folder
from src.files.yaml_files import read_yaml
from src.model.backbones import backbones
from src.model.recipes import Recipe, make_recipe, spelled_out

RECIPES = ours("resource/recipes")


def load_recipe(path: str | Path, flags: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in the YAML file at `path`, with `flags` on top."""
    path = _recipe_file(Path(find(str(path))))
    raw = read_yaml(path)
    if raw is None:
        raise UserError(
            f"{path} is empty. A recipe has one line at least: "
            f"`model_id: ID`, or `backbone: NAME` with one of {', '.join(backbones())}."
        )
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a recipe is a mapping of settings; found {type(raw).__name__}.")
    of_file = {"name": path.stem, **spelled_out(raw)}
    try:
        return make_recipe({**of_file, **spelled_out(flags or {})}, str(path))
    except UserError:
        if not flags or not _is_sound(of_file):
            raise
        return make_recipe({**of_file, **spelled_out(flags)}, "command line")


def _recipe_file(path: Path) -> Path:
    """The file at `path`; for a bare name, the one recipe in the repository of that name, the published one first."""
    if is_file(path):
        return path
    everywhere = sorted(RECIPES.rglob("*.yaml"))
    if path.name == str(path) and not is_folder(path):
        named = [file for file in everywhere if file.stem == path.name.removesuffix(".yaml")]
        published = [file for file in named if file.parent == RECIPES / "published"]
        if len(published or named) == 1:
            return (published or named)[0]
        if named:
            raise UserError(f"--recipe {path}: several have this name: {', '.join(map(str, named))}. Give one whole.")
    folder = path if is_folder(path) else path.parent
    known = [str(file) for file in (sorted(folder.glob("*.yaml")) if folder != Path() else []) or everywhere]
    by_name = {Path(file).stem: file for file in known}
    close = difflib.get_close_matches(path.stem, by_name, n=1, cutoff=0.6)
    what = f"there is no recipe {path}.{f' Did you mean {by_name[close[0]]!r}?' if close else ''}"
    if is_folder(path):
        what = f"{path} is a folder, not a recipe."
    raise UserError(f"{what} Known: {', '.join(known) or 'none'}.")


def _is_sound(values: Mapping[str, Any]) -> bool:
    try:
        make_recipe(values, "")
    except UserError:
        return False
    return True


def load_recipes(
    folders: str | Path | Sequence[Path], only: Sequence[str] = (), objective: str | None = None
) -> dict[Path, Recipe]:
    """The recipes of one or several folders, by file; recipes of the same base model follow each other.

    only: file names without their ending, all by default. objective: only recipes with this one.
    """
    folders = [Path(folders)] if isinstance(folders, str | Path) else list(folders)
    where = " and ".join(map(str, folders))
    files = [path for folder in folders for path in sorted(folder.glob("*.yaml"))]
    for folder in folders:
        if not any(path.parent == folder for path in files):
            raise UserError(f"there is no recipe (*.yaml) in {folder}.")
    recipes = {path: load_recipe(path) for path in files if objective or not only or path.stem in only}
    if objective:
        recipes = {path: recipe for path, recipe in recipes.items() if recipe.objective == objective}
    known = [path.stem for path in (recipes if objective else files)]
    kind = f"recipe with objective {objective}" if objective else "recipe"
    if not known:
        raise UserError(f"there is no {kind} in {where}.")
    for name in only:
        if name not in known:
            raise UserError(f"there is no {kind} {name!r} in {where}. Known: {', '.join(known)}.{nearest(name, known)}")
    recipes = {path: recipe for path, recipe in recipes.items() if not only or path.stem in only}
    names = [recipe.name for recipe in recipes.values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: two recipes make the same run: {', '.join(twice)}. Give each its own `name`.")
    weights = [recipe.model_id for recipe in recipes.values()]
    return dict(sorted(recipes.items(), key=lambda pair: weights.index(pair[1].model_id)))
