"""A table to print of the splits' contents."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.table import Table

from src import task
from src.data import Item


def summary(splits: Mapping[str, Sequence[Item]]) -> Table:
    """Items, dialogues, labels, categories and target utterances, in a column for each split."""
    current = task.current()
    dialogues = {split: {item.dialogue_key for item in items} for split, items in splits.items()}
    hidden = any(item.label is None for items in splits.values() for item in items)
    most_targets = max(len(item.targets) for items in splits.values() for item in items)

    table = Table(title="checked data")
    table.add_column("")
    for split in splits:
        table.add_column(split, justify="right")
    table.add_row("items", *(str(len(items)) for items in splits.values()))
    table.add_row("dialogues", *(str(len(keys)) for keys in dialogues.values()))
    for other in splits:
        shared = [len(dialogues[split] & dialogues[other]) if split != other else 0 for split in splits]
        if any(shared):
            table.add_row(f"  also in {other}", *(str(count or "") for count in shared))
    table.add_section()
    counts = [Counter(item.label for item in items) for items in splits.values()]
    for label, output in enumerate(current.options):
        table.add_row(f"label {output}", *(str(count[label]) for count in counts))
    if hidden:
        table.add_row("label hidden", *(str(count[None]) for count in counts))
    table.add_section()
    for category in current.categories:
        table.add_row(category, *(str(sum(item.category == category for item in items)) for items in splits.values()))
    table.add_section()
    for targets in range(1, most_targets + 1):
        row = (str(sum(len(item.targets) == targets for item in items)) for items in splits.values())
        table.add_row(f"{targets} target utterance{'s' if targets > 1 else ''}", *row)
    return table
