"""What a run is trained and scored on: found, and checked while nothing dear has been imported."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src import data
from src.console.cli import UserError, nearest
from src.console.start import find
from src.data import Item
from src.files import paths
from src.files.paths import ADAPTER, CHECKPOINTS, MODEL, RECIPE, find_run, record_path, run_names
from src.model.hub import is_cached
from src.model.recipes import Recipe, backbones, differing_settings, load_recipe, make_recipe
from src.prompt.prompts import Prompt, load_prompt
from src.runs import record as records

HASH_SHOWN = 12


# Of a training


@dataclasses.dataclass(frozen=True)
class Inputs:
    """`splits`: split → (items, what the record says of their file). `hashes`: what inputs.json holds."""

    train: list[Item]
    dev: list[Item]
    splits: dict[str, tuple[list[Item], dict[str, Any]]]
    prompt: Prompt
    hashes: dict[str, Any]


def gather(recipe: Recipe, folder: Path, data_folder: Path, also_score: Sequence[str], limit: int | None) -> Inputs:
    """All that a training in `folder` starts from. UserError where it could not: data, prompt, or a folder that holds
    anything but the same run, unfinished.
    """
    _refuse_finished(folder)
    splits = {split: _load(data_folder, split, limit, recipe.seed) for split in ("train", "dev", *also_score)}
    prompt = load_prompt(recipe.prompt)
    files = {split: splits[split][1] for split in ("train", "dev")}
    hashes: dict[str, Any] = {split: [file["sha256"], file["items"]] for split, file in files.items()}
    hashes["prompt"] = prompt.sha256
    _check_folder(folder, recipe, hashes)
    train, dev = splits["train"][0], splits["dev"][0]
    if recipe.only_category:
        train, dev = (_of_category(items, recipe.only_category, data_folder) for items in (train, dev))
    return Inputs(train, dev, splits, prompt, hashes)


def sample_items(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """`limit` items, the same ones for the same seed, in the file's order."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit: found {limit}, allowed: 1 or more.")
    if limit is None or limit >= len(items):
        return list(items)
    return [items[index] for index in sorted(random.Random(seed).sample(range(len(items)), limit))]


def data_record(path: Path, items: Sequence[Item]) -> dict[str, Any]:
    """What a run's record says of a data file."""
    return {"path": str(path), "sha256": data.sha256(path), "items": len(items)}


def _load(folder: Path, split: str, limit: int | None, seed: int) -> tuple[list[Item], dict[str, Any]]:
    items = sample_items(data.load_split(folder, split, labelled=split != "test"), limit, seed)
    return items, data_record(data.split_path(folder, split), items)


def _of_category(items: Sequence[Item], category: str, folder: Path) -> list[Item]:
    found = [item for item in items if item.category == category]
    if not found:
        raise UserError(f"only_category {category}: a split in {folder} has no item of it.")
    return found


def _refuse_finished(folder: Path) -> None:
    if record_path(folder).is_file():
        raise UserError(
            f"{folder} is a finished run. Give another --name or --save_dir, delete the folder to train again, "
            f"or score it: python -m run.test --model_id {folder}"
        )


def _check_folder(folder: Path, recipe: Recipe, hashes: Mapping[str, Any]) -> None:
    """Refuses a folder that holds anything but the same run, unfinished."""
    if (folder / CHECKPOINTS).is_dir() and (folder / RECIPE).is_file():
        there = dataclasses.asdict(load_recipe(folder / RECIPE))
        differing = differing_settings(there, recipe)
        if differing:
            raise UserError(
                f"{folder} holds an unfinished run with other settings: "
                + ", ".join(f"{key} was {there.get(key)!r}, now {getattr(recipe, key)!r}" for key in differing)
                + ". Delete the folder, or give another --name."
            )
        before = records.began_with(folder)
        changed = [key for key in hashes if before.get(key) != hashes[key]]
        if changed:
            words = {
                "prompt": "the prompt's text is another",
                **{
                    split: f"{split} had {before[split][1]} items, now {hashes[split][1]}"
                    if before[split][1] != hashes[split][1]
                    else f"{split} is another file"
                    for split in ("train", "dev")
                },
            }
            raise UserError(
                f"{folder} holds an unfinished run on other inputs: {'; '.join(words[key] for key in changed)}. "
                "Start it with the same --data and --limit as before, delete it, or give another --name."
            )
    taken = [name for name in (MODEL, ADAPTER, CHECKPOINTS) if (folder / name).exists()]
    if taken and not (folder / RECIPE).is_file():
        raise UserError(
            f"{folder} is no run and holds {', '.join(taken)}, which training would overwrite. Give another --save_dir."
        )


# Of what is there already


def read_run(folder: Path) -> dict[str, Any]:
    """The record of a finished run that can be scored. UserError for a vote, which has no model, and for a record that
    lacks what scoring asks for or holds a recipe that is none.
    """
    record = records.read_record(folder)
    if "recipe" not in record:
        raise UserError(f"{folder} is a vote, or another folder of answers alone: there is no model to use in it.")
    path = record_path(folder)
    needed = [("prompt", "name"), ("prompt", "text"), ("prompt", "sha256"), ("template", "sha256")]
    missing = [f"{part}.{key}" for part, key in needed if key not in record.get(part, {})]
    missing += [key for key in ("training", "splits") if key not in record]
    if missing:
        raise UserError(f"{path} is damaged: it lacks {', '.join(missing)}. Train the run again.")
    make_recipe(record["recipe"], f"{path}: recipe")
    return record


def check_models(names: Sequence[str]) -> None:
    """UserError for the first that is neither a finished run, nor a recipe's file, nor a model that there can be."""
    for name in names:
        run = find_run(name)
        if run:
            read_run(run)
        elif name.endswith((".yaml", ".yml")):
            load_recipe(name)
        elif name not in backbones():
            refuse_bare_name(name)


def refuse_bare_name(name: str) -> None:
    """UserError for a model that is called as a run would be, and is neither a run, nor a folder, nor on this machine:
    a model of the hub has an owner. Asking the hub for it would take half a minute where there is no network.
    """
    if "/" in name or Path(name).is_dir():
        return
    if is_cached(name):
        return
    runs = run_names(paths.RESULTS)
    there = f"runs here: {', '.join(runs)}" if runs else f"there are no runs in {paths.RESULTS}"
    raise UserError(
        f"{name} is neither a folder nor a model of the hub, which is called OWNER/NAME. "
        f"There is no run {name} either; {there}.{nearest(name, runs)}"
    )


def load_own(given: Path | None, split: str, runs: Sequence[Path]) -> tuple[list[Item], Path, list[str]]:
    """(items, their file, what the user should know): `given` by the user, else what the records of `runs` name, else
    `data.DATA`.

    UserError when the records name files that differ, or when there is none at all.
    """
    if given is not None:
        return (*data.load_data(given, split), [])
    named = {run: found[0] for run in runs if (found := named_data(run, split))}
    there = {run: path for run, path in named.items() if path.is_file()}
    if not there:
        place = data.split_path(data.DATA, split)
        gone = [f"{path}, which the record of {run.name} names" for run, path in named.items()]
        if gone and not place.is_file():
            raise UserError(
                f"there is neither {gone[0]}, nor {place}. Name the folder of the {split} items: --data DIR"
            )
        notes = [f"{one}, is gone; the items are those of {place}" for one in gone]
        return data.load_split(data.DATA, split), place, notes
    files: dict[str, list[Path]] = {}
    for run, path in there.items():
        files.setdefault(data.sha256(path), []).append(run)
    if len(files) > 1:
        told = "; ".join(f"{there[some[0]]} by {', '.join(run.name for run in some)}" for some in files.values())
        raise UserError(
            f"the runs answered different {split} files: {told}. Name the runs of one, or say which with --data."
        )
    path = next(iter(there.values()))
    return data.load_items(path), path, []


def named_data(run: Path, split: str) -> tuple[Path, str | None] | None:
    """(file, digest) of the items of `split` that the record of a run or vote names; None without either."""
    try:
        record = records.parse_record(record_path(run))
        result = record.get("splits", {}).get(split) or {}
        trained = record.get("data") or {}
        if result.get("data"):  # what it was last scored on
            return Path(find(result["data"])), result.get("data_sha256")
        if split in trained:
            return Path(find(trained[split]["path"])), trained[split].get("sha256")
        known = [one["path"] for one in trained.values()]
        known += [one["data"] for one in record.get("splits", {}).values() if one.get("data")]
        for path in known:  # the splits of a corpus lie side by side
            return Path(find(str(data.split_path(Path(path).parent, split)))), result.get("data_sha256")
    except (OSError, ValueError, KeyError, TypeError):  # who reads the run will say what is wrong
        pass
    return None


def changed_note(run: Path, split: str, path: Path) -> str:
    """What to say when `path` is the file that the run's record names and has changed since; else nothing."""
    named = named_data(run, split)
    if named is None or named[1] is None or named[0].resolve() != path.resolve():
        return ""
    now = data.sha256(path)
    then, now = named[1][:HASH_SHOWN], now[:HASH_SHOWN]
    return "" if then == now else f"{path} has changed since {run.name} was made: sha256 {then} then, {now} now"
