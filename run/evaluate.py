"""Evaluate answers to a labelled split: accuracy with its interval, the errors, and floors to compare with.

    python -m run.evaluate qwen2                                   # a run in resource/results, on the dev split
    python -m run.evaluate predictions_dev.json --data resource/data/data_dev.json --missed 50
    python -m run.evaluate qwen2 bllossom vote --json compared.json
    python -m run.evaluate qwen2 bllossom polar --against qwen2    # is one of the others better than qwen2, or worse?
    python -m run.evaluate qwen2 vote-soft --calibration           # do probabilities say how often they are right?
    python -m run.evaluate --seeds polar-s1 polar-s2 eeve-s1 eeve-s2   # recipe against recipe, each by several seeds

Intervals are 95 % Wilson intervals, each of one accuracy. Whether one of several is better than another is tested on
the items that only one of the two gets right (McNemar's exact test, corrected after Holm for the number of pairs), and
by dialogue, since items of one dialogue are no independent draws. Intervals that overlap say nothing about it. A recipe
is better than another only if that holds for other seeds, too: that takes two runs of each at least (--seeds). The test
split has no labels outside NIKL, so it cannot be evaluated here.

Floors stand below the line: what is reached without understanding the dialogue. One is a classifier that is trained on
the options alone. After python -m run.test --model_id qwen2 --split dev --dialogue blanked shuffled swapped the run's
own accuracy without its dialogues stands there, too.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src import task
from src.console.cli import Parser, check_place, new_file, run_main
from src.console.words import counted
from src.data import DATA, SPLITS, refuse_unlabelled
from src.files.paths import RESULTS, run_folder
from src.files.writing import write_json
from src.runs.inputs import load_own
from src.runs.recipe_groups import group_by_recipe, seed_notes
from src.vote.ballots import read_sources, run_folders
from src.vote.changed import show_changed
from src.vote.comparison import Comparison, compare
from src.vote.pair_table import MOST_FOR_ALL_PAIRS, show_pairs
from src.vote.pair_table import notes as pair_notes
from src.vote.seed_table import show_recipe_pairs, show_seeds
from src.vote.seeds import compare_seeds
from src.vote.voters import Request
from src.worth.metrics import Evaluation, Share, chance_range

if TYPE_CHECKING:
    from rich.console import Console

    from src.vote.calibration import Calibration  # loads numpy


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.evaluate")
    parser.add_argument(
        "inputs", nargs="+", metavar="RUN_OR_FILE", help="a predictions file, or a run's name or folder"
    )
    parser.add_argument("--split", choices=SPLITS, default="dev", help="default: %(default)s")
    own = f"folder or file; default: what the runs' records name, else {DATA}"
    parser.add_argument("--data", type=Path, help=own)
    parser.add_argument("--orders", type=int, metavar="N", help="orders of the options; as run.vote has it")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the runs' folder; default: %(default)s")
    parser.add_argument(
        "--missed", type=int, default=10, metavar="N", help="missed items to print; default: %(default)s"
    )
    parser.add_argument("--against", metavar="RUN_OR_FILE", help="one of the inputs: test the others against this one")
    parser.add_argument(
        "--pairs",
        choices=("all", "best"),
        help=f"which pairs to print: all, or those with the best; default: all of up to {MOST_FOR_ALL_PAIRS} inputs",
    )
    sure = "how far probabilities are what they say, as they are and after a temperature; draws a picture"
    parser.add_argument("--calibration", action="store_true", help=sure)
    where = "the picture of --calibration; default: reliability_SPLIT.png in the run's folder, for several in --results"
    parser.add_argument("--figure", type=new_file, metavar="FILE.png", help=where)
    fitted = (
        "fit temperatures on this split; default: on the same items, each by those of other dialogues; for test: dev"
    )
    parser.add_argument("--fitted_on", choices=[split for split in SPLITS if split != "test"], help=fitted)
    parser.add_argument(
        "--seeds", action="store_true", help="runs of one recipe that differ in their seed are one row: mean and spread"
    )
    parser.add_argument("--json", type=new_file, metavar="OUT", help="write everything here, all missed items included")
    task.add_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    from src.console.tables import make_console

    parser = make_parser()
    args = parser.parse_args(argv)
    check(parser, args)
    console = make_console()
    folders = run_folders(args.inputs, args.results)
    items, data, notes = load_own(args.data, args.split, folders)
    refuse_unlabelled(items, data)
    sources = read_sources(args.inputs, items, data, args.split, args.results, args.orders)
    against = sources[args.inputs.index(args.against)].ballot.run if args.against else None
    named = {source.ballot.run: folder for source, folder in zip(sources, folders, strict=True)}
    groups = group_by_recipe(named) if args.seeds else []
    found = compare(items, data, sources, against, pairs=not groups, split=args.split)
    recipes = compare_seeds(found, groups) if groups else None
    calibration = None
    if args.calibration:
        from src.vote.calibration import calibrate

        request = Request(args.inputs, [], args.split, args.results, args.data, args.orders)
        # Nothing is fitted on test, even where its labels are there.
        fitted_on = args.fitted_on or ("dev" if args.split == "test" else None)
        calibration = calibrate(request, items, data, sources, fitted_on)

    notes += [source.note for source in sources if source.note]
    notes += [] if groups else seed_notes(named)
    console.print(f"{counted(len(items), 'item')} of {data}")
    if recipes:
        show_seeds(console, recipes)
    show_accuracy(console, replace(found, results={}) if recipes else found)
    for note in notes:
        console.print(f"note: {note}")
    if recipes and recipes.pairs:
        show_recipe_pairs(console, recipes, found.dialogues)
    elif found.pairs:
        show_pairs(console, found, args.pairs, against)
    if len(found.results) == 1 and not recipes:
        (name,) = found.results
        show_parts(console, found.results[name])
        show_missed(console, found.missed(name), args.missed)
    figure = args.figure or default_figure(args)
    if calibration:
        show_calibrated(console, calibration, figure)
    if args.json:
        told = {"seeds": recipes.as_json()} if recipes else {}
        told |= {"calibration": calibration.as_json() | {"figure": figure}} if calibration else {}
        write_json(args.json, found.as_json() | {"notes": [*notes, *notes_below(found)]} | told)
        console.print(f"\nwritten: {args.json}")


def check(parser: Parser, args: argparse.Namespace) -> None:
    if args.missed < 0:
        parser.error(f"--missed {args.missed}: allowed: 0 or more")
    if args.against and args.against not in args.inputs:
        parser.error(f"--against {args.against}: allowed: one of the inputs, {', '.join(args.inputs)}")
    if args.against and args.pairs:
        parser.error("--against and --pairs: give one of them")
    if args.seeds and (args.against or args.pairs):
        parser.error("--seeds compares every two recipes: leave out --against and --pairs")
    if args.orders:
        task.current().orders(args.orders)
    if (args.figure or args.fitted_on) and not args.calibration:
        parser.error(f"{'--figure' if args.figure else '--fitted_on'}: allowed with --calibration")
    if args.calibration and not args.figure:
        check_place(parser, "--calibration", default_figure(args))
    if args.figure and args.figure.suffix != ".png":
        parser.error(f"--figure {args.figure}: allowed: a name that ends in .png")
    if args.fitted_on == args.split:
        parser.error(
            f"--fitted_on {args.split}: these are the items that are evaluated. Leave it out: then each "
            "item is scaled by a temperature that was fitted on other dialogues"
        )


def show_accuracy(console: "Console", found: Comparison) -> None:
    """One row per input, then the floors, runs on changed dialogues among them."""
    from rich.table import Table

    from src.console.tables import Fitted

    table = Table("answers", "correct", "accuracy", "95 % interval", "mean of categories")
    for name, result in found.results.items():
        table.add_row(*accuracy_cells(name, result))
    table.add_section()
    low, high = chance_range(len(found.items))
    table.add_row("chance", "–", f"{1 / len(task.current().options):.2%}", f"{low:.1%} to {high:.1%}", "–")
    for name, result in [*found.floors.items(), *((one.name, one.result) for one in found.changed[0])]:
        table.add_row(*accuracy_cells(name, result))
    console.print(Fitted(table))
    console.print(found.how_read, soft_wrap=True)
    show_changed(console, *found.changed)
    if len(found.results) > 1:
        table = Table("answers", *next(iter(found.results.values())).per_category)
        for name, result in found.results.items():
            table.add_row(name, *(share_text(share, "\n") for share in result.per_category.values()))
        console.print(Fitted(table))


def notes_below(found: Comparison) -> list[str]:
    """What is said of the runs on changed dialogues, and of all pairs."""
    return [*found.changed[1], *(pair_notes(found.pairs, found.dialogues) if found.pairs else [])]


def default_figure(args: argparse.Namespace) -> Path:
    """Beside the scores of a single run or vote, else beside the folders of all."""
    folder: Path = run_folder(args.inputs[0], args.results) if len(args.inputs) == 1 else args.results
    return folder / f"reliability_{args.split}.png"


def show_calibrated(console: "Console", found: "Calibration", figure: Path) -> None:
    """Prints the table and writes the picture."""
    from src.figures.plots import save_png
    from src.figures.reliability import reliability
    from src.vote.calibration_table import heading, panels, show_calibration

    show_calibration(console, found)
    save_png(reliability(panels(found), heading(found)), figure)
    console.print(f"\nwritten: {figure}", soft_wrap=True)


def accuracy_cells(name: str, result: Evaluation) -> list[str]:
    low, high = result.interval
    correct = f"{result.correct}/{result.items}"
    return [name, correct, f"{result.accuracy:.2%}", f"{low:.1%} to {high:.1%}", f"{result.category_balanced:.2%}"]


def share_text(share: Share, separator: str = ", ") -> str:
    low, high = share.interval
    return separator.join([f"{share.correct}/{share.total}", f"{share.accuracy:.1%}", f"{low:.0%} to {high:.0%}"])


def show_parts(console: "Console", result: Evaluation) -> None:
    """Per category, and label against answer."""
    from rich.table import Table

    from src.console.tables import Fitted

    table = Table("category", "correct, accuracy, interval")
    for category, share in result.per_category.items():
        table.add_row(category, share_text(share))
    console.print(Fitted(table))

    options = task.current().options
    numbers = [f"answer {number}" for number, _ in enumerate(options, start=1)]
    table = Table("label", *numbers, "correct, accuracy, interval")
    for label, counts in enumerate(result.confusion):
        right = share_text(result.per_label[label]) if label in result.per_label else "–"
        table.add_row(options[label], *map(str, counts), right)
    table.add_section()
    answered = [sum(column) / result.items for column in zip(*result.confusion, strict=True)]
    table.add_row("share of answers", *(f"{share:.1%}" for share in answered), "")
    console.print(Fitted(table))


def show_missed(console: "Console", missed: Sequence[Mapping[str, str]], shown: int) -> None:
    from rich.table import Table

    from src.console.tables import Fitted

    console.print(
        f"missed: {counted(len(missed), 'item')}" + (f", the first {shown}" if 0 < shown < len(missed) else "")
    )
    if missed and shown:
        table = Table("item", "category", "label", "answer")
        for item in missed[:shown]:
            table.add_row(*item.values())
        console.print(Fitted(table))


if __name__ == "__main__":
    sys.exit(run_main(main))
