"""Recipes under several seeds, as tables and lines to print."""

from typing import TYPE_CHECKING

from src.console.words import counted, p_text, points_range
from src.runs.recipe_groups import differing_facts
from src.vote.seeds import SeedComparison
from src.worth.metrics import SIGNIFICANT

if TYPE_CHECKING:
    from rich.console import Console

    from src.worth.seeds import RecipePair


def show_seeds(console: "Console", found: SeedComparison) -> None:
    """A row for each recipe."""
    from rich.table import Table

    from src.console.tables import Fitted

    table = Table("recipe", "seeds", "mean", "sd", "least", "most", "mean of\ncategories")
    for name, own in found.spreads.items():
        sd = "–" if own.sd is None else f"{100 * own.sd:.2f}"
        shares = (f"{own.mean:.2%}", sd, f"{own.least:.2%}", f"{own.most:.2%}", f"{found.category_balanced[name]:.2%}")
        table.add_row(name, str(own.seeds), *shares)
    console.print(Fitted(table))
    console.print("sd: standard deviation of the seeds' accuracies (n - 1), in points.")
    differing = differing_facts(found.groups)
    for group in found.groups:
        runs = ", ".join(f"{run} (seed {seed})" for run, seed in group.seeds.items())
        facts = ", ".join(f"{key} {value}" for key, value in differing[group.name].items())
        console.print(f"{group.name}: {runs}{f'; {facts}' if facts else ''}")


def show_recipe_pairs(console: "Console", found: SeedComparison, dialogues: int) -> None:
    from rich.table import Table

    from src.console.tables import Fitted

    tested = sum(pair.p is not None for pair in found.pairs)
    console.print(f"\nWhich recipe is better? {counted(len(found.pairs), 'pair')} of recipes")
    table = Table("recipes", "points,\n95 % interval", "seeds'\nshare", "p,\ncorrected", "verdict", show_lines=True)
    for pair in found.pairs:
        points, share, ps = f"{100 * pair.difference:+.1f}", "–", "–"
        if pair.interval and pair.seeds_share is not None and pair.p is not None and pair.corrected_p is not None:
            points += f"\n{points_range(pair.interval)}"
            share, ps = f"{pair.seeds_share:.0%}", f"{p_text(pair.p)}\n{p_text(pair.corrected_p)}"
        table.add_row(f"{pair.one}\n{pair.other}", points, share, ps, verdict(pair))
    console.print(Fitted(table))
    if not tested:
        console.print("To tell more than the difference of the means, each recipe needs a run of a second seed.")
        return
    console.print(
        "points: the difference of the means, and its 95 % interval for other seeds and other dialogues than these. "
        "Seeds' share: of its variance; more seeds make that part smaller, more dialogues the rest. "
        f"p: t test (Welch), and corrected after Holm for {counted(tested, 'pair')}. Better: corrected p up "
        f"to {SIGNIFICANT}. Not told apart does not mean equally good."
    )
    if dialogues == 1:
        console.print("note: all items are of one dialogue, which says nothing about others, so none is called better")


def verdict(pair: "RecipePair") -> str:
    if pair.p is None:
        return "cannot be told:\na single seed, whose luck is not known"
    return f"{pair.better}\nis better" if pair.better is not None else "not told apart"
