"""Cross-validation: train and dev together divided into folds, the files of each, and the runs to train.

Fold run k is an ordinary run. Its train split are all other folds, its dev split is fold k, and it keeps its last
weights (`keep: last`): nothing about it is chosen by fold k, nor by test. So its dev accuracy is of items that neither
trained nor chose it.
"""

import importlib.metadata
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from src import task
from src.console.cli import UserError
from src.console.words import counted, some
from src.data import Item, dump_items, load_split, split_path
from src.files.digests import Digest, digests
from src.files.locks import lock_folder
from src.files.paths import CHECKPOINTS, FOLDS, is_file, predictions_path
from src.files.reading import parse_json, read_text
from src.files.writing import as_json, write_texts
from src.items.json_files import same
from src.model.recipe_files import load_recipe
from src.model.recipes import Recipe
from src.plan.estimates import Estimate
from src.plan.work import Place, Wanted
from src.runs.facts import DataFile
from src.runs.joined import join
from src.worth.folds import divide

LABELLED, ANSWERED = ("train", "dev"), ("dev", "test")


@dataclass(frozen=True)
class Folds:
    """The labelled items in folds.

    count    number of folds
    items    all labelled items, each once, dialogue by dialogue; their order does not come from the files
    places   the fold of each, 1 to `count`
    shared   dialogues that train and dev share → their items in each
    dropped  whether the items of these are left out
    sources  the files that the items are from
    test     the items that the runs answer, too; None without a test split
    """

    count: int
    items: Sequence[Item]
    places: Sequence[int]
    shared: Mapping[str, Mapping[str, int]]
    dropped: bool
    sources: Mapping[str, DataFile]
    test: Sequence[Item] | None = None

    def fold(self, number: int) -> list[Item]:
        return [item for item, place in zip(self.items, self.places, strict=True) if place == number]

    def others(self, number: int) -> list[Item]:
        return [item for item, place in zip(self.items, self.places, strict=True) if place != number]

    def texts(self, folder: Path) -> dict[Path, str]:
        """Path → text of all data files: those of each fold run, and all labelled items as one dev split."""
        splits: dict[Path, Mapping[str, Sequence[Item]]] = {folder: {"dev": self.items}}
        for number in range(1, self.count + 1):
            splits[fold_folder(folder, number)] = {"train": self.others(number), "dev": self.fold(number)}
        found: dict[Path, str] = {}
        for place, parts in splits.items():
            every = {**parts, "test": self.test} if self.test is not None else parts
            found |= {split_path(place, split): _text(items) for split, items in every.items() if items is not None}
        return found

    def note(self) -> dict[str, Any]:
        """What `FOLDS` holds."""
        return {
            "folds": self.count,
            "drop_shared": self.dropped,
            "data": {split: file.as_json() for split, file in self.sources.items()},
            "items": len(self.items),
            "dialogues": len({item.dialogue_key for item in self.items}),
            "shared_dialogues": self.shared,
            "scikit-learn": importlib.metadata.version("scikit-learn"),
            "of_each": [
                {
                    "fold": number,
                    "items": len(found := self.fold(number)),
                    "dialogues": len({item.dialogue_key for item in found}),
                    "categories": dict(sorted(Counter(item.category for item in found).items())),
                    "ids": [item.id for item in found],
                }
                for number in range(1, self.count + 1)
            ],
        }

    def lines(self) -> list[str]:
        """What was divided and how, for people."""
        sizes = sorted(Counter(self.places).values())
        dialogues = len({item.dialogue_key for item in self.items})
        lines = [
            f"{counted(len(self.items), 'labelled item')} of train and dev, {counted(dialogues, 'dialogue')}, in "
            f"{self.count} folds of {sizes[0]} to {sizes[-1]} items; a dialogue is in one fold"
        ]
        if self.shared:
            numbers = {split: sum(found[split] for found in self.shared.values()) for split in LABELLED}
            told = f"{counted(numbers['train'], 'item')} of train, {numbers['dev']} of dev"
            kept = "left out" if self.dropped else "in one fold each, so no run is scored on what it was trained on"
            lines.append(f"train and dev share {counted(len(self.shared), 'dialogue')} ({told}): {kept}")
        seen = {item.dialogue_key for item in self.items}
        if known := [item.id for item in self.test or () if item.dialogue_key in seen]:
            told = f"{counted(len(known), 'item')} of test are of labelled dialogues"
            lines.append(f"{told}, which the runs are trained on: {some(known)}")
        return lines


@dataclass(frozen=True)
class Joint:
    """The fold runs of one recipe and seed, whose scores are joined under a name of their own.

    recipe  the recipe's name
    parts   names of the fold runs, in the order of the folds
    """

    name: str
    recipe: str
    parts: Sequence[str]


def gather_folds(splits: Mapping[str, Sequence[Item]], data: Path, count: int, drop_shared: bool) -> Folds:
    """Train and dev of `splits`, read from `data`, in folds. An item that both have counts once.

    UserError when another item has the same id, and as `divide` says.
    """
    keys = {split: Counter(item.dialogue_key for item in splits[split]) for split in LABELLED}
    in_both = sorted(set(keys["train"]) & set(keys["dev"]))
    shared = {key: {split: keys[split][key] for split in LABELLED} for key in in_both}
    items: dict[str, Item] = {}
    for item in (one for split in LABELLED for one in splits[split]):
        there = items.setdefault(item.id, item)
        if not same(there.source, item.source):
            raise UserError(
                f"--folds: two items have the id {item.id}, one of {split_path(data, 'train')} and one of "
                f"{split_path(data, 'dev')}, and scores go by id. Allowed: one item, or twice the same. Rename one."
            )
    kept = [item for item in items.values() if not (drop_shared and item.dialogue_key in shared)]
    if not kept:
        raise UserError("--drop_shared: every dialogue is in train and dev, so no item is left. Leave it out.")
    kept.sort(key=lambda item: (item.dialogue_key, item.id))
    sources = {split: DataFile.of(split_path(data, split), splits[split]) for split in LABELLED}
    return Folds(count, kept, divide(kept, count), shared, drop_shared, sources, splits.get("test"))


def fold_sizes(items: Mapping[str, int], count: int) -> dict[str, int]:
    """Items of each split of one fold run, about; items: of each split before the division."""
    labelled = sum(items[split] for split in LABELLED)
    dev = round(labelled / count)
    return {**items, "train": labelled - dev, "dev": dev}


def fold_folder(folder: Path, number: int) -> Path:
    return folder / f"f{number}"


def refuse_other_folds(folder: Path, folds: Folds) -> None:
    """UserError when `folder` was made with another division: its runs would be mixed with runs of this one."""
    path = folder / FOLDS
    if not is_file(path):
        return
    try:
        before, now = parse_json(read_text(path)), folds.note()
        flags = [key for key in ("folds", "drop_shared") if before[key] != now[key]]
        files = [split for split in LABELLED if before["data"][split]["sha256"] != now["data"][split]["sha256"]]
        changes = [f"{key} was {before[key]}, now {now[key]}" for key in flags]
        changes += [f"{split} is another file" for split in files]
        if not changes and before["of_each"] != now["of_each"]:
            changes = [f"scikit-learn {before['scikit-learn']} divided them otherwise than {now['scikit-learn']}"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and start the same command again.") from error
    if changes:
        raise UserError(
            f"{folder} holds other folds: {'; '.join(changes)}. Runs of one division are not mixed with those of "
            f"another. Start with the same --data, --folds and --drop_shared as before, or give another --name, or "
            f"delete {folder} and its runs to begin anew."
        )


def write_folds(folder: Path, folds: Folds) -> None:
    """Writes the files that are not there as they should be; those of another division are refused before."""
    with lock_folder(folder):
        texts = {**folds.texts(folder), folder / FOLDS: as_json(folds.note())}
        there = {path: digests(path.parent, [path.name])[path.name] for path in texts if is_file(path)}
        write_texts({path: text for path, text in texts.items() if there.get(path) != Digest.of_text(text)})


def refuse_recipes(recipes: Sequence[Recipe]) -> None:
    """UserError for recipes whose fold runs would be chosen by the fold, or would not answer all of it."""
    for recipe in recipes:
        if recipe.early_stopping_patience is not None:
            raise UserError(
                f"--folds: the recipe {recipe.name} stops early by its accuracy on dev (early_stopping_patience), "
                "which is the fold that it is scored on. Take that setting out, or leave the recipe out: --only NAME …"
            )
        if recipe.only_category:
            raise UserError(
                f"--folds: the recipe {recipe.name} is for one category alone (only_category), and the scores out of "
                "fold are of all items. Leave it out: --only NAME …"
            )


def fold_runs(
    recipes: Mapping[Path, Recipe], folds: int, seeds: int, place: Place, folder: Path, label: str = ""
) -> tuple[list[Wanted], list[Joint]]:
    """(all fold runs, recipe after recipe, what they are joined to). The seeds of a recipe are its own and those after.
    folder: of the folds. label: stands in the names of their runs, so that other folds have other runs.
    """
    wanted, joints = [], []
    for file, recipe in recipes.items():
        for more in range(seeds):
            own = "-".join([recipe.name, *([label] if label else []), *([f"s{more + 1}"] if more else [])])
            parts = [f"{own}-f{number}of{folds}" for number in range(1, folds + 1)]
            joints.append(Joint(f"{own}-oof{folds}", recipe.name, parts))
            for number, name in enumerate(parts, start=1):
                flags = {"name": name, "seed": recipe.seed + more, "keep": "last"}
                words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
                there = replace(place, data=fold_folder(folder, number))
                wanted.append(Wanted(file, load_recipe(file, flags), there, words, lean=True))
    names = [one.name for one in wanted]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--folds: two recipes make the same runs: {some(twice)}. Give each its own `name`.")
    return wanted, joints


def join_finished(
    wanted: Sequence[Wanted], joints: Sequence[Joint], finished: Sequence[str], folder: Path
) -> list[Joint]:
    """Joins the scores where all fold runs are finished, and returns what was joined. folder: of the folds."""
    items = {split: load_split(folder, split) for split in ANSWERED if is_file(split_path(folder, split))}
    runs = {one.name: one for one in wanted}
    joined = [joint for joint in joints if set(joint.parts) <= set(finished)]
    for name in finished:  # a command that was killed may have left them
        shutil.rmtree(runs[name].folder / CHECKPOINTS, ignore_errors=True)
    for joint in joined:
        parts = [runs[name] for name in joint.parts]
        own = parts[0].folder.with_name(joint.name)
        with lock_folder(own):
            join(own, folder, {part.folder: part.place.data for part in parts}, items)
    return joined


def next_steps(answers: Sequence[str], folder: Path, out: Path, tested: bool) -> list[str]:
    """Where everything lies, and what to type next. answers: names of what is joined. tested: whether there is test."""
    names, flag = " ".join(answers), task.flag()
    lines = [
        f"Fold runs lie in {out.parent}, their data in {folder}",
        f"Joined (dev: all labelled items, out of fold; test: the mean of the fold runs): {', '.join(answers)}",
        f"Compare: python -m run.evaluate {names}{flag}",
    ]
    if tested:
        lines.append(f"The vote of all fold runs on test, to hand in: {predictions_path(out, 'test')}")
    if tested and len(answers) > 1:
        lines.append(f"Or weigh them by their out-of-fold answers: python -m run.vote {names} --rule weighted{flag}")
    return lines


def of_many(estimate: Estimate, runs: int, at_once: int = 1) -> Estimate:
    """The estimate of so many lean runs like one, `at_once` at a time; the seconds are those of all, one after the
    other.
    """
    disk, kept = estimate.disk, estimate.kept
    largest = min(runs, at_once)
    return replace(
        estimate,
        run=f"{estimate.run} x {runs}",
        disk=None if disk is None or kept is None else disk * largest + kept * (runs - largest),
        seconds=None if estimate.seconds is None else estimate.seconds * runs,
        elsewhere={card: seconds * runs for card, seconds in estimate.elsewhere.items()},
    )


def _text(items: Sequence[Item]) -> str:
    return dump_items([item.source for item in items])
