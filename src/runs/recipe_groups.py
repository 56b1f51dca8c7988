"""Runs that are of one recipe and differ in their seed alone."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from src.console.cli import UserError
from src.files.paths import is_file, record_path
from src.runs.facts import JOINED, VoteResult
from src.runs.record import Record
from src.runs.run_list import DERIVED, HASH_DIGITS, setting_text


@dataclass(frozen=True)
class RecipeGroup:
    """Runs of one recipe.

    name   what the runs' names begin with
    seeds  run → its seed
    facts  what is the same in all of them: settings, data, prompt
    """

    name: str
    seeds: Mapping[str, int]
    facts: Mapping[str, Any]


def group_by_recipe(folders: Mapping[str, Path]) -> list[RecipeGroup]:
    """Groups of the runs (name → folder), in the order of their first runs.

    UserError for what has no recipe (a vote, a file outside of a run's folder), and for a seed that a recipe has twice:
    it would count twice.
    """
    without = {name: what for name, folder in folders.items() if (what := _without_recipe(folder))}
    if without:
        told = ", ".join(f"{name} ({what})" for name, what in without.items())
        raise UserError(
            f"--seeds takes runs, which have a recipe and a seed. Found beside them: {told}. "
            "Leave these out, or leave out --seeds."
        )
    groups = _grouped(folders)
    for group in groups:
        seeds = list(group.seeds.values())
        if twice := {run: seed for run, seed in group.seeds.items() if seeds.count(seed) > 1}:
            told = ", ".join(f"{run} (seed {seed})" for run, seed in twice.items())
            raise UserError(
                f"--seeds: runs of one recipe with the same seed would count twice: {told}. "
                "Allowed: one run of each seed. Leave the others out."
            )
    return groups


def seed_notes(folders: Mapping[str, Path]) -> list[str]:
    """A note where several of the runs are of one recipe under several seeds. Files of answers are left out: the record
    beside one need not be sound.
    """
    runs = {name: folder for name, folder in folders.items() if not (is_file(name) or _without_recipe(folder))}
    several = [", ".join(group.seeds) for group in _grouped(runs) if len(set(group.seeds.values())) > 1]
    told = "of one recipe under several seeds; --seeds shows them as one row"
    return [f"{runs} are {told}" for runs in several]


def differing_facts(groups: Sequence[RecipeGroup]) -> dict[str, dict[str, str]]:
    """Group → fact → value as text, of the facts that are not the same in all groups."""
    keys = dict.fromkeys(key for group in groups for key in group.facts)
    differ = [key for key in keys if len({repr(group.facts.get(key)) for group in groups}) > 1]
    shown = [key for key in differ if key not in DERIVED] or differ
    return {group.name: {key: setting_text(group.facts.get(key)) for key in shown} for group in groups}


def _without_recipe(folder: Path) -> str:
    """Why there is no recipe, in a few words; empty where there is one."""
    if not record_path(folder).is_file():
        return "a file outside of a run's folder"
    if not Record.load(folder).is_vote or _parts(folder):
        return ""
    return "a vote"


def _parts(folder: Path) -> list[Path]:
    """The fold runs whose joined scores lie in `folder`; none where it is of another kind, or where one is gone."""
    joined = [
        result
        for result in Record.load(folder).splits.values()
        if isinstance(result, VoteResult) and result.rule in JOINED.values()
    ]
    parts = [folder.with_name(Path(str(voter["run"])).name) for voter in joined[0].voters] if joined else []
    return parts if all(record_path(part).is_file() for part in parts) else []


def _with_recipe(folder: Path) -> tuple[Record, int]:
    """(the record with the recipe of what lies in `folder`, number of runs that it is of)."""
    parts = _parts(folder)
    return (Record.load(parts[0]), len(parts)) if parts else (Record.load(folder), 1)


def _grouped(folders: Mapping[str, Path]) -> list[RecipeGroup]:
    found: list[tuple[dict[str, Any], dict[str, int]]] = []
    for name, folder in folders.items():
        facts, seed = _facts(folder)
        group = next((seeds for other, seeds in found if other == facts), None)
        if group is None:
            group = {}
            found.append((facts, group))
        group[name] = seed
    names = [_common_name(list(seeds)) for _, seeds in found]
    return [
        RecipeGroup(name if names.count(name) == 1 else ", ".join(seeds), seeds, facts)
        for name, (facts, seeds) in zip(names, found, strict=True)
    ]


def _facts(folder: Path) -> tuple[dict[str, Any], int]:
    """(what a run has in common with the others of its recipe, its seed)."""
    record, parts = _with_recipe(folder)
    facts = {**dataclasses.asdict(record.pinned_recipe), **record.unknown_settings}
    seed = facts.pop("seed")
    del facts["name"]
    facts["trained"] = "no" if record.training is None else "yes"
    facts["dialogues"] = record.dialogue or "true"
    for split, file in (record.data if parts == 1 else {}).items():  # of fold runs, only the first one's data
        facts[f"{split} data"] = f"{(file.sha256 or '–')[:HASH_DIGITS]}, {file.items} items"
    facts["fold runs"] = parts if parts > 1 else "none"
    facts["text of the prompt"] = record.prompt.sha256[:HASH_DIGITS]
    facts["prompt's examples"] = (record.prompt.examples_sha256 or "–")[:HASH_DIGITS]
    return facts, seed


def _common_name(runs: Sequence[str]) -> str:
    """`polar` for polar-s1 and polar-s2, polar-seed10 and polar-seed11, or polar and polar-2; the name of a single run.
    The first run's name where they have nothing in common.
    """
    if len(runs) == 1:
        return runs[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*runs, strict=False))
    common = "".join(letters[0] for letters in alike)
    if any(run[len(common) :][:1].isdigit() for run in runs):
        common = common.rstrip("0123456789")  # of 10 and 11 the 1 is in common
    return re.sub(r"[-_.]*((?<![^-_.])(s|seed))?[-_.]*$", "", common) or runs[0]
