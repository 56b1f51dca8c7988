"""Which of several answers are better than others, as a table and lines to print."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from src.console.words import counted, p_text, points_range
from src.vote.comparison import Comparison
from src.worth.metrics import SIGNIFICANT

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from src.worth.paired import Pair

MOST_FOR_ALL_PAIRS = 4
"""With more answers than this, only pairs with the best one are printed unless all are asked for."""


def show_pairs(console: "Console", found: Comparison, asked: str | None, against: str | None) -> None:
    """A row for each pair. p is corrected for all pairs even where only some are printed, since the best one is picked
    on the same items. asked: `all`, `best` or None.
    """
    from src.console.tables import Fitted
    from src.worth.paired import POWER

    pairs, answers = found.pairs, len(found.results)
    few = asked == "best" or (asked is None and answers > MOST_FOR_ALL_PAIRS)
    shown = [pair for pair in pairs if pair.one == pairs[0].one] if few and against is None else pairs
    which = f"those with {against}" if against else f"all of {answers} answers"
    rest = f"; shown: those with the best, {pairs[0].one} (--pairs all shows the rest)"
    console.print(
        f"\nWho is better? Tested on the same {counted(len(found.items), 'item')} of "
        f"{counted(found.dialogues, 'dialogue')}, {counted(len(pairs), 'pair')} "
        f"({which}){rest if len(shown) < len(pairs) else ''}"
    )
    console.print(Fitted(pair_table(shown)))
    console.print(
        "alone: items that only this one gets right. points: the difference of their accuracies, and its 95 % interval "
        "(bootstrap by dialogue, of this pair alone). p: McNemar's exact test, and corrected after Holm for "
        f"{counted(len(pairs), 'pair')}. Better: corrected p up to {SIGNIFICANT}, by dialogue as well. More items: for "
        f"a power of {100 * POWER:.0f} % if the two differ as they do here. Not told apart does not mean equally good."
    )
    for note in notes(shown, found.dialogues):
        console.print(f"note: {note}")


def pair_table(pairs: "Sequence[Pair]") -> "Table":
    """Two lines a pair, one for each of the two answers where a column is of one."""
    from rich.table import Table

    table = Table("answers", "alone", "points,\n95 % interval", "p,\ncorrected", "verdict", show_lines=True)
    for pair in pairs:
        table.add_row(
            f"{pair.one}\n{pair.other}",
            f"{pair.only_one}\n{pair.only_other}",
            f"{100 * pair.difference:+.1f}\n{points_range(pair.interval)}",
            f"{p_text(pair.p)}\n{p_text(pair.corrected_p)}",
            verdict(pair),
        )
    return table


def verdict(pair: "Pair") -> str:
    if pair.better is not None:
        return f"{pair.better}\nis better"
    if pair.more_items is None:
        if pair.difference:
            return "not told apart"
        return "not told apart;\nno difference here, so no number of items can be given"
    more = "1 more item" if pair.more_items == 1 else f"{about(pair.more_items)} more items"
    return f"not told apart;\nabout {more} would be needed"


def about(number: int) -> str:
    """With two digits that count: `1,200`."""
    digits = 1 - math.floor(math.log10(number))
    return f"{round(number, min(0, digits)):,}"


def notes(pairs: "Sequence[Pair]", dialogues: int) -> list[str]:
    """What the tests make of dialogues with several items, where it changes a verdict."""
    if dialogues == 1:
        return ["all items are of one dialogue, which says nothing about others, so none is called better"]
    told = [
        f"{pair.one} and {pair.other} (corrected p by dialogue {p_text(pair.corrected_by_dialogue)})"
        for pair in pairs
        if pair.only_by_items
    ]
    if not told:
        return []
    return [
        "McNemar's test takes items for independent draws, and items of one dialogue go together here. "
        f"By dialogue these are not told apart: {'; '.join(told)}"
    ]
