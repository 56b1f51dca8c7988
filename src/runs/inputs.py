"""The inputs of a run, found and checked before torch is imported."""

import random
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from src import data, task
from src.console.cli import UserError, nearest
from src.console.start import find
from src.data import Item
from src.files import paths
from src.files.paths import ADAPTER, CHECKPOINTS, MODEL, RECIPE, find_run, record_path, run_names
from src.model import hub, trust
from src.model.backbones import backbones
from src.model.foreign import refuse_adapter
from src.model.recipe_files import load_recipe
from src.model.recipes import Recipe, differing_settings, make_recipe
from src.prompt.prompts import Prompt, load_prompt
from src.runs.facts import DataFile, TaskFacts, TemplateFacts
from src.runs.noted import refuse_other_weights
from src.runs.record import Record, refuse_other_task
from src.train.checkpoints import find_checkpoint, of_older_version

HASH_SHOWN = 12


@dataclass(frozen=True)
class Split:
    """A split's items (with --limit, a sample of them) and their file."""

    name: str
    items: Sequence[Item]
    file: DataFile


# Of a training


@dataclass(frozen=True)
class Inputs:
    """Everything that a training starts from.

    train, dev  what is trained and evaluated on: the items of only_category, where the recipe has one
    splits      the same splits whole, and those that are scored beside dev
    hashes      what inputs.json holds of them
    """

    train: Sequence[Item]
    dev: Sequence[Item]
    splits: Mapping[str, Split]
    prompt: Prompt
    hashes: Mapping[str, Any]


@dataclass(frozen=True)
class Began:
    """The inputs that an unfinished run began with.

    settings the recipe's
    hashes   split → [digest, number of items]; the prompt's digest
    commits  as `hub.pin` takes them
    task     None where an older version did not say
    """

    settings: Mapping[str, Any]
    hashes: Mapping[str, Any]
    commits: Mapping[str, str | None]
    template: TemplateFacts
    task: TaskFacts | None


def gather(recipe: Recipe, folder: Path, data_folder: Path, also_score: Sequence[str], limit: int | None) -> Inputs:
    """Everything that a training in `folder` starts from. UserError when the data or the prompt cannot be used, or when
    the folder holds anything but the same run, unfinished.
    """
    paths.refuse_links(folder)
    _refuse_finished(folder)
    splits = {split: _load(data_folder, split, limit, recipe.seed) for split in ("train", "dev", *also_score)}
    prompt = load_prompt(recipe.prompt)
    files = {split: splits[split].file for split in ("train", "dev")}
    hashes: dict[str, Any] = {split: [file.sha256, file.items] for split, file in files.items()}
    hashes |= {"prompt": prompt.sha256, "task": TaskFacts.current().as_json()}
    _check_folder(folder, recipe, hashes)
    train, dev = splits["train"].items, splits["dev"].items
    if recipe.only_category:
        train, dev = (_of_category(items, recipe.only_category, data_folder) for items in (train, dev))
    return Inputs(train, dev, splits, prompt, hashes)


def began_with(folder: Path) -> Began | None:
    """The inputs that the unfinished run in `folder` began with, as its newest whole checkpoint says; None without one:
    then training begins from the start. UserError when what it says is of no use.
    """
    found = find_checkpoint(folder).checkpoint
    if found is None:
        return None
    try:
        inputs, settings = found.begun["inputs"], found.begun["recipe"]
        for split in ("train", "dev"):
            digest, items = inputs[split]
            if not isinstance(digest, str) or not isinstance(items, int):
                raise ValueError(f"{split} is {inputs[split]!r}")
        if not isinstance(inputs["prompt"], str) or not isinstance(settings, dict):
            raise ValueError("prompt or recipe is of another kind")
        template = TemplateFacts.parse(inputs.get("template", {}), "template")
        task = TaskFacts.parse(inputs["task"], "task") if "task" in inputs else None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{found.folder} does not say what it began with ({error}). "
            f"Delete {folder} to train again, or give another --name."
        ) from error
    commits = {key: inputs.get(key) for key in ("base_revision", "tokenizer_revision")}
    return Began(settings, inputs, commits, template, task)


def check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UserError(f"--limit: found {limit}, allowed: 1 or more.")


def sample_items(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """`limit` items, the same ones for the same seed, in the file's order."""
    check_limit(limit)
    if limit is None or limit >= len(items):
        return list(items)
    return [items[index] for index in sorted(random.Random(seed).sample(range(len(items)), limit))]


def _load(folder: Path, split: str, limit: int | None, seed: int) -> Split:
    items = sample_items(data.load_split(folder, split, labelled=split != "test"), limit, seed)
    return Split(split, items, DataFile.of(data.split_path(folder, split), items))


def _of_category(items: Sequence[Item], category: str, folder: Path) -> list[Item]:
    found = [item for item in items if item.category == category]
    if not found:
        raise UserError(f"only_category {category}: a split in {folder} has no item of it.")
    return found


def _refuse_finished(folder: Path) -> None:
    if record_path(folder).is_file():
        raise UserError(
            f"{folder} is a finished run. Give another --name or --save_dir, delete the folder to train again, "
            f"or score it: python -m run.test --model_id {shlex.quote(str(folder))}{task.flag()}"
        )


def _check_folder(folder: Path, recipe: Recipe, hashes: Mapping[str, Any]) -> None:
    """UserError when `folder` holds anything but the same run, unfinished."""
    if began := began_with(folder):
        if differing := differing_settings(began.settings, recipe):
            told = [f"{key} was {began.settings.get(key)!r}, now {getattr(recipe, key)!r}" for key in differing]
            raise UserError(
                f"{folder} holds an unfinished run with other settings: {', '.join(told)}. "
                "Delete the folder, or give another --name."
            )
        refuse_other_task(began.task, folder)
        if changes := _changes(began.hashes, hashes):
            raise UserError(
                f"{folder} holds an unfinished run on other inputs: {'; '.join(changes)}. "
                "Start it with the same --data and --limit as before, delete it, or give another --name."
            )
        return
    if (older := of_older_version(folder)) and (folder / RECIPE).is_file():
        raise UserError(
            f"{folder} holds an unfinished run of an older version of this repository, whose checkpoint, {older}, "
            "cannot be checked and is not gone on from. End it with that version, "
            f"or delete {older.parent} to train from the start, or give another --name."
        )
    taken = [name for name in (MODEL, ADAPTER, CHECKPOINTS) if (folder / name).exists()]
    if taken and not (folder / RECIPE).is_file():
        raise UserError(
            f"{folder} is no run and holds {', '.join(taken)}, which training would overwrite. Give another --save_dir."
        )


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How the inputs of a training differ from what it began with, in words."""
    found = []
    for split in ("train", "dev"):
        if then[split][1] != now[split][1]:
            found.append(f"{split} had {then[split][1]} items, now {now[split][1]}")
        elif then[split] != now[split]:
            found.append(f"{split} is another file")
    return found + (["the prompt's text is another"] if then["prompt"] != now["prompt"] else [])


# Of what is there already


def read_run(folder: Path) -> Record:
    """The record of a finished run that can be scored. UserError for a vote, which has no model, and for a record that
    lacks what scoring needs, whose recipe is not valid, or asks for code that the command line does not allow.
    """
    record = Record.load(folder)
    if record.is_vote:
        raise UserError(f"{folder} is a vote, or another folder of answers alone: there is no model to use in it.")
    path = record_path(folder)
    needed = {f"prompt.{key}": getattr(record.prompt, key) for key in ("name", "text", "sha256")}
    missing = [key for key, value in {**needed, "template.sha256": record.template.sha256}.items() if not value]
    missing += [key for key in ("training", "splits") if key not in record.stored]
    if missing:
        raise UserError(f"{path} is damaged: it lacks {', '.join(missing)}. Train the run again.")
    if record.prompt.sha256 != sha256(record.prompt.text.encode()).hexdigest():
        raise UserError(f"{path} is damaged: the prompt's text does not have the sha256 beside it. Train it again.")
    trust.check(make_recipe(record.known_settings, f"{path}: recipe"))
    return record


def named_model(name: str) -> tuple[str, Recipe, Path | None]:
    """(name, recipe, folder of the weights) of a trained run, by its name or folder, or of an untrained model, by its
    recipe's file, a backbone's short name, a hub id or its own folder. An untrained model has no folder of a run.
    UserError when the run's weights are not those that its record speaks of.
    """
    folder = find_run(name)
    if folder is not None:
        record = read_run(folder)
        refuse_other_weights(folder, record)
        return folder.name, record.pinned_recipe, record.weights_in(folder) if record.has_weights else None
    if name.endswith((".yaml", ".yml")):
        recipe = load_recipe(name)
    else:
        refuse_adapter(name)
        key = "backbone" if name in backbones() else "model_id"
        recipe = make_recipe({key: name, "method": "lora", trust.NAME: trust.allowed()}, name)
    trust.check(recipe)
    return f"{recipe.name} (untrained)", hub.pin(recipe), None


def check_models(names: Sequence[str]) -> None:
    """UserError for the first that is neither a finished run, nor a recipe's file, nor the name of a model."""
    for name in names:
        run = find_run(name)
        if run:
            read_run(run)
        elif name.endswith((".yaml", ".yml")):
            trust.check(load_recipe(name))
        elif name not in backbones():
            refuse_adapter(name)
            refuse_bare_name(name)


def refuse_bare_name(name: str) -> None:
    """UserError for a model whose name is like that of a run, and which is neither a run, nor a folder, nor on this
    machine: a model of the hub has an owner. Asking the hub for it would take half a minute where there is no network.
    """
    if "/" in name or Path(name).is_dir() or hub.is_cached(name):
        return
    runs = run_names(paths.RESULTS)
    there = f"runs here: {paths.listed_runs(runs)}" if runs else f"there are no runs in {paths.RESULTS}"
    raise UserError(
        f"{name} is neither a folder nor a model of the hub, which is called OWNER/NAME. "
        f"There is no run {name} either; {there}.{nearest(name, runs)}"
    )


# Items of a run


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
        record = Record.read(record_path(run))
    except (OSError, ValueError):  # reading the run reports what is wrong
        return None
    result, trained = record.splits.get(split), record.data.get(split)
    if result and result.data:  # what it was last scored on
        return Path(find(result.data)), result.data_sha256
    if trained and trained.path:
        return Path(find(trained.path)), trained.sha256
    beside = [*(file.path for file in record.data.values()), *(one.data for one in record.splits.values())]
    for path in filter(None, beside):  # the splits of a corpus lie side by side
        return Path(find(str(data.split_path(Path(path).parent, split)))), result.data_sha256 if result else None
    return None


def changed_note(run: Path, split: str, path: Path) -> str:
    """A note when `path` is the file that the run's record names and has changed since; else nothing."""
    named = named_data(run, split)
    if named is None or named[1] is None or named[0].resolve() != path.resolve():
        return ""
    now = data.sha256(path)
    then, now = named[1][:HASH_SHOWN], now[:HASH_SHOWN]
    return "" if then == now else f"{path} has changed since {run.name} was made: sha256 {then} then, {now} now"
