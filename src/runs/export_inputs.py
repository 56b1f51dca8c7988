"""What is exported to other tools: labelled items under a prompt, from a run or without any."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.console.cli import UserError
from src.data import DATA, SPLITS, Item, sha256, split_path
from src.files.paths import record_path
from src.model.recipes import ORPO, make_recipe
from src.prompt.prompts import load_prompt, parse_prompt
from src.runs.inputs import load_own, named_data, read_run
from src.runs.other_tools import Exported


@dataclass(frozen=True)
class Wanted:
    """What the user asks for; None stands for the default.

    splits       those that are there, by default
    data         a folder, or one split's file; by default what the run's record names, or `data.DATA`
    system_turn  one of `SYSTEM_TURNS`; by default as the run has it, or its own
    """

    splits: Sequence[str] | None = None
    data: Path | None = None
    system_turn: str | None = None

    def place(self, split: str, run: Path | None) -> Path:
        """The file of a split, whether it is there or not."""
        if self.data is not None:
            return self.data if self.data.suffix == ".json" else split_path(self.data, split)
        named = named_data(run, split) if run else None
        return named[0] if named and named[0].is_file() else split_path(DATA, split)


def of_prompt(name: str, wanted: Wanted) -> Exported:
    prompt = load_prompt(name)
    splits, origin = labelled_splits(wanted, None)
    library = None
    if prompt.examples:
        from src.runs.encoder import find_library  # takes seconds to import

        library = find_library(prompt, wanted.place("train", None).parent)
    recipe = make_recipe({"model_id": "any", "method": "full", "objective": ORPO}, "--to")
    return Exported(prompt, recipe, splits, wanted.system_turn or "own", library, origin=origin)


def of_run(folder: Path, wanted: Wanted) -> Exported:
    """What a run was trained on and is scored on: its own prompt, data, system turn and preference pairs. UserError for
    a run whose answers need more than its prompt.
    """
    record = read_run(folder)
    prompt, recipe = parse_prompt(record.prompt.text, f"{record_path(folder)}: prompt"), record.recipe
    if recipe.reasoning or record.dialogue:
        what = "reasons before it answers" if recipe.reasoning else "was scored on changed dialogues"
        raise UserError(f"{folder} {what}, which is not exported. Give the prompt alone: --prompt {recipe.prompt}")
    splits, origin = labelled_splits(wanted, folder, recipe.only_category)
    library = None
    if prompt.examples:
        from src.runs.encoder import library_of

        library = library_of(folder, record, prompt, wanted.place("train", folder).parent)
    then = record.template
    return Exported(
        prompt,
        recipe,
        splits,
        wanted.system_turn or then.system_turn or "own",
        library,
        then.arguments,
        recipe.chat_template if then.source == "recipe" else None,
        [f"run {record.run}", *origin],
    )


def labelled_splits(
    wanted: Wanted, run: Path | None, only: str | None = None
) -> tuple[dict[str, list[Item]], list[str]]:
    """Split → its labelled items, and lines on where they are from. UserError where there is no item with a label.

    only: the category that train and dev are narrowed to, as a run's training is.
    """
    found: dict[str, list[Item]] = {}
    origin = []
    for split in dict.fromkeys(wanted.splits or SPLITS):
        if not wanted.splits and not wanted.place(split, run).is_file():
            continue
        items, path, notes = load_own(wanted.data, split, [run] if run else [])
        kept = [item for item in items if item.label is not None]
        without = len(items) - len(kept)
        origin += [f"{split}: {path}, sha256 {sha256(path)}", *notes]
        origin += [f"{split}: {without} of {len(items)} items have no label and are left out"] if without else []
        if only and split != "test":
            kept = [item for item in kept if item.category == only]
            origin.append(f"{split}: the {len(kept)} items of {only}, as the run was trained")
        if kept:
            found[split] = kept
    if not found:
        raise UserError(
            f"there is no item with a label in {', '.join(wanted.splits or SPLITS)} of "
            f"{wanted.place('train', run).parent}. Name the folder of the data: --data DIR"
        )
    return found, origin
