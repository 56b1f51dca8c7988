"""One self-contained line per item and run, to read, to sort, and to count with other tools.

    python -m run.export polar --out exported                      # every split that the run was scored on
    python -m run.export polar eeve vote-8 --split dev test --out exported

Writes items.jsonl and items.csv (for Excel, too): run, id, split, category, dialogue, target utterances, options,
label, prediction, right or wrong, margin, the options' log-probabilities, the letters' probabilities in each order, and
the prompt's digest. A vote has predictions alone. The text of the official corpus is licensed: what is exported from it
must not be passed on.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src import task
from src.console.cli import Parser, UserError, new_folder, run_main
from src.data import SPLITS, sha256
from src.files.paths import RESULTS, predictions_path, run_folder
from src.files.writing import write_texts
from src.runs.inputs import load_own
from src.runs.record import Record
from src.runs.samples import as_csv, as_jsonl
from src.vote.exported import samples_of


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.export")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's name or folder")
    parser.add_argument("--split", nargs="+", choices=SPLITS, help="default: all that a run was scored on")
    parser.add_argument("--data", type=Path, help="folder, or with one --split a file; default: each run's own data")
    parser.add_argument("--orders", type=int, metavar="N", help="orders of the options; default: the fewest")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the runs' folder; default: %(default)s")
    parser.add_argument(
        "--out", type=new_folder, default=RESULTS / "export", metavar="DIR", help="default: %(default)s"
    )
    task.add_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.data and args.data.suffix == ".json" and len(args.split or ()) != 1:
        raise UserError(f"--data {args.data}: a file goes with one --split; a folder with several.")
    if args.orders:
        task.current().orders(args.orders)
    samples: list[dict[str, Any]] = []
    lines: list[str] = []
    for name in dict.fromkeys(args.runs):
        folder = run_folder(name, args.results)
        record = Record.load(folder)
        scored = {split for results in record.by_orders.values() for split in results}
        splits = args.split or [one for one in SPLITS if one in scored or predictions_path(folder, one).is_file()]
        if not splits:
            raise UserError(
                f"{folder} was scored on no split. "
                f"Score it: python -m run.test --model_id {shlex.quote(str(folder))}{task.flag()}"
            )
        for split in dict.fromkeys(splits):
            items, data, notes = load_own(args.data, split, [folder])
            found = samples_of(folder, record, split, items, data, args.orders)
            samples += found
            lines += [*notes, summary(found, data, record, split)]
    print("\n".join(lines))
    files = {args.out / "items.jsonl": as_jsonl(samples), args.out / "items.csv": as_csv(samples)}
    write_texts(files)
    print(f"written: {', '.join(map(str, files))}: {len(samples)} lines")


def summary(samples: Sequence[Mapping[str, Any]], data: Path, record: Record, split: str) -> str:
    judged = [one["right"] for one in samples if one["right"] is not None]
    worth = f"{sum(judged)} of {len(judged)} right" if judged else "no labels"
    result = record.splits.get(split)
    same = result is None or result.data_sha256 in (None, sha256(data))
    changed = "" if same else "; note: the file has changed since the run was scored"
    return f"{record.run}, {split}: {len(samples)} items of {data}, {worth}{changed}"


if __name__ == "__main__":
    sys.exit(run_main(main))
