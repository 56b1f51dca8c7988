"""Which runs help a vote, as tables and lines to print."""

from typing import TYPE_CHECKING

from src.console.words import counted, p_text, points_range
from src.vote.contributions import Contributions
from src.worth.metrics import SIGNIFICANT
from src.worth.paired import Difference

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def show_contributions(console: "Console", found: Contributions) -> None:
    from src.console.tables import Fitted

    console.print(
        f"vote of all ({found.rule}): {found.accuracy:.2%}; at least one run right: {found.oracle:.2%} (the most that "
        f"any choice among the answers can reach); all right: {found.all_right:.2%}",
        soft_wrap=True,
    )
    console.print("\nEach run left out of the vote")
    console.print(Fitted(_left_out(found)))
    console.print(
        "points: what the vote gains by the run, with a 95 % interval (bootstrap by dialogue, of this run alone); "
        "items: right only with the run, right only without it; p: the larger of McNemar's exact test and of the test "
        f"by dialogue, each corrected after Holm for {counted(len(found.voters), 'run')}. Helps or hurts: p up to "
        f"{SIGNIFICANT}. Not told apart does not mean that the run is of no use."
    )
    console.print("\nThe best few, chosen greedily: the best run, then always the one with which the vote is best")
    _show_selection(console, found)
    console.print("\nTwo runs each, % of items: above the diagonal the same answer, below it both wrong (double fault)")
    console.print(Fitted(_matrix(found)))
    console.print(f"\n{conclusion(found)}")


def conclusion(found: Contributions) -> str:
    """Which runs help, which to drop, and whether that can be told."""
    by_verdict: dict[str, list[str]] = {}
    for one in found.voters:
        by_verdict.setdefault(one.verdict, []).append(one.run)
    told = [f"{', '.join(by_verdict[verdict])} {word}" for verdict, word in WORDS.items() if verdict in by_verdict]
    if "not told apart" in by_verdict and len(by_verdict) == 1:
        told = ["No single run can be told to help or to hurt on these items"]
    gain = found.selection.gain
    better = max(gain.p, gain.p_by_dialogue) <= SIGNIFICANT
    chosen = "a choice of runs is " + (
        f"{'better' if gain.difference > 0 else 'worse'} than the vote of all"
        if better
        else "not told apart from the vote of all, so there is no reason to drop any for it"
    )
    return f"{'; '.join(told)}; {chosen}."


WORDS = {
    "helps": "help: keep them",
    "hurts": "hurt: drop them",
    "not told apart": "cannot be told apart from the vote without them",
}
"""Verdict → what the conclusion says of the runs."""


def _left_out(found: Contributions) -> "Table":
    from rich.table import Table

    table = Table("run", "accuracy", "vote\nwithout", "points", "95 %\ninterval", "items", "p", "verdict")
    for one in sorted(found.voters, key=lambda voter: -voter.gain.difference):
        points, interval, items = _cells(one.gain)
        shares = (f"{one.accuracy:.1%}", f"{one.without:.1%}")
        table.add_row(one.run, *shares, points, interval, items, p_text(one.larger_p), one.verdict)
    return table


def _show_selection(console: "Console", found: Contributions) -> None:
    selection = found.selection
    steps = [f"{'+ ' if place else ''}{step.run} {step.accuracy:.1%}" for place, step in enumerate(selection.path)]
    console.print(f"  path: {', '.join(steps)}")
    console.print(f"  chosen: {', '.join(selection.chosen)} (these accuracies are of the items chosen on: flattered)")
    times = sorted(found.voters, key=lambda voter: -voter.chosen)
    told = ", ".join(f"{one.run} {one.chosen}" for one in times)
    console.print(f"  chosen again without the dialogues of one of {selection.folds} folds, times: {told}")
    points, interval, items = _cells(selection.gain)
    console.print(
        f"  tried on the folds left out: {selection.accuracy:.2%}, against the vote of all {points} points "
        f"({interval}), items {items}, p {p_text(max(selection.gain.p, selection.gain.p_by_dialogue))}"
    )


def _matrix(found: Contributions) -> "Table":
    from rich.table import Table

    names = [one.run for one in found.voters]
    shares = {pair.runs: pair for pair in found.pairs}
    table = Table("", "run")
    for number, _ in enumerate(names, start=1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for row, name in enumerate(names):
        cells = []
        for column, other in enumerate(names):
            if row == column:
                cells.append("·")
            elif row < column:
                cells.append(f"{100 * shares[name, other].agreement:.0f}")
            else:
                cells.append(f"{100 * shares[other, name].double_fault:.0f}")
        table.add_row(str(row + 1), name, *cells)
    return table


def _cells(gain: Difference) -> tuple[str, str, str]:
    """Points, their interval, and the items that only one of the two gets right."""
    return (
        f"{100 * gain.difference:+.1f}",
        points_range(gain.interval),
        f"{gain.only_one}, {gain.only_other}",
    )
