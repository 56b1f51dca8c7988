"""Runs on items whose dialogues are changed, each beside the run whose weights it uses."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from src.console.cli import UserError
from src.files.paths import RECIPE, record_path
from src.items.changes import change_dialogues
from src.runs.inputs import Split
from src.runs.record import Record


def changed_folder(folder: Path, how: str) -> Path:
    """Of the run in `folder` on changed dialogues. how: one of `CHANGES` of src/items/changes.py."""
    return folder.with_name(f"{folder.name}-{how}")


def changed_runs(folder: Path, record: Record, changes: Sequence[str]) -> list[tuple[Path, Record]]:
    """(folder, record) of the run in `folder`; with `changes` those of the runs beside it, one for each."""
    return [rerun_on_changed(folder, record, how) for how in dict.fromkeys(changes)] or [(folder, record)]


def changed_split(split: Split, how: str | None) -> Split:
    return replace(split, items=change_dialogues(split.items, how)) if how else split


def rerun_on_changed(folder: Path, record: Record, how: str) -> tuple[Path, Record]:
    """(folder, record) of the run in `folder`, trained or not, on changed dialogues, with what it has been scored on.

    UserError where other things lie in its folder, and for a prompt with examples: an item's examples are never of its
    own dialogue, and a changed dialogue does not tell which that was.
    """
    if record.prompt.examples_sha256:
        raise UserError(
            f"prompt {record.prompt.name} has examples, and --dialogue is for prompts without: "
            "they might show an item its own dialogue."
        )
    there = changed_folder(folder, how)
    weights = record.weights_in(folder).name if record.has_weights else record.weights
    made = replace(record.without_results(), run=there.name, weights=weights, dialogue=how)
    if (there / RECIPE).is_file():
        raise UserError(f"{there} is a run of its own, and scores with the dialogue {how} would go there. Rename it.")
    if not record_path(there).is_file():
        return there, made
    earlier = Record.load(there)
    if earlier.dialogue != how or differs(earlier, made):
        raise UserError(
            f"{there} holds scores of another model or prompt than {folder} has now. Delete it or rename it."
        )
    return there, made.with_results_of(earlier)


def differs(one: Record, other: Record) -> bool:
    """Whether two runs differ in weights, prompt or chat template, as far as their records tell."""
    pairs = ((one.noted_files, other.noted_files), (one.noted_base, other.noted_base))
    texts = (one.prompt.sha256, one.template.sha256) != (other.prompt.sha256, other.template.sha256)
    return texts or any(here and there and here != there for here, there in pairs)
