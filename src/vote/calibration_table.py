"""How far probabilities are what they say, as a table and lines to print, and as the panels of a picture."""

from typing import TYPE_CHECKING

from src.console.words import counted
from src.figures.reliability import Dot, Panel
from src.vote.calibration import Calibration, Change, FittedOn, Judged
from src.worth.calibration import CALIBRATED, OVER, UNDER, UNEVEN, Measured

if TYPE_CHECKING:
    from rich.console import Console


def show_calibration(console: "Console", found: Calibration) -> None:
    """A row for each run and vote as it is, one for it after the temperature, and what was fitted on what."""
    from rich.table import Table

    from src.console.tables import Fitted

    console.print(f"Are the probabilities what they say? {counted(found.items, 'item')}", soft_wrap=True)
    # Short words, so that it fits into 80 columns.
    table = Table("answers", "share\nright", "mean\np", "T", "log-loss", "Brier score", "ECE", "verdict")
    for one in found.judged:
        name = f"{one.name} (shares of ballots)" if one.shares else one.name
        table.add_row(name, *_cells(one.before, "–" if one.shares else "1"))
        if after := one.after:
            table.add_row("→ scaled", *_cells(after.measured, f"{after.temperature:.2f}"))
            changes = [_interval(change) for change in (after.log_loss_change, after.brier_change)]
            table.add_row("  change, 95 %", "", "", "", *changes, "", "")
        table.add_section()
    console.print(Fitted(table))
    for line in (MEANING, how_fitted(found.fitted), *map(own_fit, found.judged), conclusion(found)):
        if line:
            console.print(line, soft_wrap=True)
    for name in found.answers_alone:
        console.print(f"note: {name} has answers and no probabilities: skipped", soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {note}", soft_wrap=True)


MEANING = (
    "Mean p: mean probability of the answers; above the share of right ones it is too high. T: temperature; above 1 it "
    "makes probabilities softer, below 1 sharper. Log-loss in nats, Brier score 0 to 2: lower is better; change: by T, "
    "bootstrap by dialogue. ECE: expected calibration error, in bins of about equally many items; in brackets 95 % of "
    "what perfectly calibrated probabilities would show on these items, by simulation."
)


def how_fitted(fitted: FittedOn | None) -> str:
    """What was fitted on what, in a sentence; empty where nothing was."""
    if fitted is None:
        return ""
    on = f"the {counted(fitted.items, 'item')} of {fitted.data}, {counted(fitted.dialogues, 'dialogue')}"
    if not fitted.folds:
        return f"Temperatures: fitted on {on}, and on nothing else."
    return (
        f"Temperatures: fitted on {on}. The one shown is fitted on all of them; what stands beside it is measured "
        f"out of fold: each item is scaled by what was fitted on the dialogues of the other {fitted.folds - 1} folds."
    )


def own_fit(one: Judged) -> str:
    """What a vote's own weights were fitted on, in a sentence; empty for runs."""
    fitted = one.fitted or {}
    if not isinstance(fitted.get("items"), int) or not isinstance(fitted.get("dialogues"), int):
        return ""  # none, or a record that somebody edited
    how = "out of fold" if fitted.get("folds") else "once"
    items, dialogues = counted(fitted["items"], "item"), counted(fitted["dialogues"], "dialogue")
    return f"{one.name}: its rule was itself fitted, {how}, on the {items} of {fitted.get('data')}, {dialogues}."


def conclusion(found: Calibration) -> str:
    """Whose probabilities can be taken at their word, and what the temperature does about the others."""
    told = []
    for verdict, words in VERDICTS.items():
        if names := [one.name for one in found.judged if one.before.verdict == verdict]:
            told.append(f"{words}: {', '.join(names)}")
    scaled = [(one.name, one.after) for one in found.judged if one.after]
    if names := [name for name, after in scaled if after.log_loss_change.gain]:
        told.append(f"A temperature lowers the log-loss: {', '.join(names)}")
    if names := [name for name, after in scaled if after.brier_change.gain]:
        told.append(f"A temperature lowers the Brier score: {', '.join(names)}")
    if names := [name for name, after in scaled if not (after.log_loss_change.gain or after.brier_change.gain)]:
        told.append(f"No gain by a temperature shown: {', '.join(names)}")
    return f"{'. '.join(told)}."


VERDICTS = {
    OVER: "Overconfident",
    UNDER: "Underconfident",
    UNEVEN: "Too sure of some items and too little of others",
    CALIBRATED: "Not told apart from perfectly calibrated",
}


def heading(found: Calibration) -> str:
    """Of the picture: what is shown, and what the temperature was fitted on."""
    told, fitted = counted(found.items, "item"), found.fitted
    if fitted is None:
        return told
    return f"{told}; temperatures (T) fitted {'out of fold' if fitted.folds else f'on {fitted.split}'}"


def panels(found: Calibration) -> list[Panel]:
    """One for each run and vote."""
    return [_panel(one) for one in found.judged]


def _panel(one: Judged) -> Panel:
    note = f"{'shares of ballots, ' if one.shares else ''}ECE {one.before.ece:.1%}"
    if one.after:
        note = f"T {one.after.temperature:.2f}, {note} → {one.after.measured.ece:.1%}"
    return Panel(one.name, note, _dots(one.before), _dots(one.after.measured) if one.after else [])


def _dots(measured: Measured) -> list[Dot]:
    return [Dot(one.confidence, one.share.accuracy, *one.share.interval, one.share.total) for one in measured.bins]


def _cells(measured: Measured, temperature: str) -> list[str]:
    low, high = measured.ece_if_calibrated
    return [
        f"{measured.accuracy:.1%}",
        f"{measured.confidence:.1%}",
        temperature,
        "–" if measured.log_loss is None else f"{measured.log_loss:.3f}",
        f"{measured.brier:.3f}",
        f"{measured.ece:.1%} ({100 * low:.1f}–{100 * high:.1f})",
        measured.verdict,
    ]


def _interval(change: Change) -> str:
    low, high = change.interval
    return f"{low:+.3f} to {high:+.3f}"
