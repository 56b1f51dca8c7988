"""All floors of a labelled split, and what the trained one was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.console.cli import UserError
from src.console.words import counted
from src.data import Item, load_items, split_path
from src.vote.weights import dialogue_folds
from src.worth.floors import floor_answers, overlap_answers
from src.worth.trained_floor import cross_validated_answers, trained_answers

TRAINED = "trained on options"


@dataclass(frozen=True)
class Floors:
    """answers  name of the floor → its answers, in the order of the items
    note     how to read them, and what the trained one was trained on
    """

    answers: dict[str, list[int]]
    note: str


def all_floors(items: Sequence[Item], data: Path) -> Floors:
    """`items`, each with a label, were read from `data`. The classifier is trained on the training split beside it,
    without dialogues that are among `items`; where there is none, out of fold on `items`.
    """
    answers = floor_answers(items)
    training, told = _training(items, data)
    dialogues = [item.dialogue_key for item in items]
    if training:
        answers[TRAINED] = trained_answers(items, training)
    elif len(set(dialogues)) > 1:
        folds = dialogue_folds(dialogues).tolist()
        answers[TRAINED] = cross_validated_answers(items, folds)
        told = f"cross-validated on these items in {len(set(folds))} folds by dialogue"
    answers |= overlap_answers(items)
    about = f"; {TRAINED}: a classifier of what sets an option apart from the others of its item, {told}"
    return Floors(
        answers,
        "Below the line: what needs no understanding. Chance; rules that see the options alone"
        f"{about if TRAINED in answers else ''}; overlap: the option of whose characters the dialogue, or its target "
        "utterances, have the largest share.",
    )


def _training(items: Sequence[Item], data: Path) -> tuple[list[Item], str]:
    """Labelled items of data_train.json beside `data` whose dialogues are not among `items`, and how to call them; none
    where that is `data` itself, or where it cannot be read.
    """
    path = split_path(data.parent, "train")
    if not path.is_file() or path.resolve() == data.resolve():
        return [], ""
    try:
        found = load_items(path)
    except UserError:  # commands that train name what is wrong with it
        return [], ""
    asked = {item.dialogue_key for item in items}
    kept = [item for item in found if item.label is not None and item.dialogue_key not in asked]
    shared = len({item.dialogue_key for item in found} & asked)
    without = f", those of {counted(shared, 'dialogue')} of both files left out" if shared else ""
    return kept, f"trained on {counted(len(kept), 'item')} of {path}{without}"
