"""All runs in resource/results: finished or not, the settings that differ, accuracies, orders, items, and data.

    python -m run.runs
    python -m run.runs --csv > runs.csv
    python -m run.runs --markdown > runs.md

Accuracies have their 95 % Wilson interval. Settings are shown only where runs differ. Data files are shown by the first
digits of their SHA-256, so that runs on other files can be told apart.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src import task
from src.console.cli import Parser, UserError, run_main
from src.files.paths import RESULTS
from src.files.tables import as_csv, as_markdown
from src.runs.run_list import list_runs, table_rows


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the runs' folder; default: %(default)s")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--csv", action="store_true", help="print comma-separated values")
    forms.add_argument("--markdown", action="store_true", help="print a Markdown table")
    task.add_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    entries = list_runs(args.results)
    if not entries:
        raise UserError(f"{args.results}: there are no runs there. Train one: python -m run.train --help")
    rows = table_rows(entries)
    if args.csv or args.markdown:
        print((as_csv if args.csv else as_markdown)(rows), end="")
        return
    show(rows)
    unfinished = [entry.name for entry in entries if entry.state.startswith("unfinished")]
    if unfinished:
        print(f"Unfinished: the command that started {', '.join(unfinished)} goes on where it stopped.")


def show(rows: list[dict[str, str]]) -> None:
    from rich.table import Table

    from src.console.tables import Fitted, make_console

    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    make_console().print(Fitted(table))


if __name__ == "__main__":
    sys.exit(run_main(main))
