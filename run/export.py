"""One self-contained line per item and run, to read, to sort, and to count with other tools.

    python -m run.export polar --out exported                      # every split that the run was scored on
    python -m run.export polar eeve vote-8 --split dev test --out exported

Writes items.jsonl and items.csv (for Excel, too): run, id, split, category, dialogue, target utterances, options,
label, prediction, right or wrong, margin, the options' log-probabilities, the letters' probabilities in each order, and
the prompt's digest. A vote has predictions alone. The text of the official corpus is licensed: what is exported from it
must not be passed on.
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src.console.cli import Parser, UserError, new_folder, run_main
from src.console.words import counted
from src.data import SPLITS, Item, load_items, sha256
from src.files import writing
from src.files.paths import RESULTS, predictions_path, run_folder
from src.runs import record as records
from src.runs.inputs import load_own
from src.runs.samples import as_csv, as_jsonl, sample_row
from src.score import item_scores
from src.vote.ballots import read_sources, scored_orders


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.export")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's name or folder")
    parser.add_argument("--split", nargs="+", choices=SPLITS, help="default: all that a run was scored on")
    parser.add_argument("--data", type=Path, help="folder, or with one --split a file; default: each run's own data")
    parser.add_argument("--orders", type=int, choices=(1, 6), help="of the options; default: 1 where it is there")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the runs' folder; default: %(default)s")
    parser.add_argument(
        "--out", type=new_folder, default=RESULTS / "export", metavar="DIR", help="default: %(default)s"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.data and args.data.suffix == ".json" and len(args.split or ()) != 1:
        raise UserError(f"--data {args.data}: a file goes with one --split; a folder with several.")
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    for name in dict.fromkeys(args.runs):
        folder = run_folder(name, args.results)
        record = records.read_record(folder)
        splits = args.split or [split for split in SPLITS if predictions_path(folder, split).is_file()]
        if not splits:
            raise UserError(f"{folder} was scored on no split. Score it: python -m run.test --model_id {folder}")
        for split in dict.fromkeys(splits):
            items, data, notes = load_own(args.data, split, [folder])
            lines += notes
            found = rows_of(folder, record, split, items, data, args)
            rows += found
            lines.append(line_of(found, data, record, split))
    print("\n".join(lines))
    files = {args.out / "items.jsonl": as_jsonl(rows), args.out / "items.csv": as_csv(rows)}
    writing.write_texts(files)
    print(f"written: {', '.join(map(str, files))}: {len(rows)} lines")


def rows_of(
    folder: Path, record: dict[str, Any], split: str, items: list[Item], data: Path, args: Namespace
) -> list[dict[str, Any]]:
    """The lines of a run's split, in the order of the data. UserError when the run was scored on other items."""
    run, prompt = record.get("run", folder.name), record.get("prompt", {}).get("sha256")
    scored = scored_orders(folder, split, record)
    if args.orders and not scored:
        raise UserError(f"{folder} has answers alone and no scores, so leave out --orders.")
    if args.orders and args.orders not in scored:
        raise UserError(
            f"{folder} has no scores of {counted(args.orders, 'order')} on {split}. Score it: python -m run.test "
            f"--model_id {folder} --split {split} --orders {args.orders}"
        )
    if not scored:
        (source,) = read_sources([str(folder)], items, data, split, args.results)
        answers = source.ballot.answers
        return [sample_row(run, split, item, None, answers[item.id], prompt) for item in items]
    orders = args.orders or min(scored)
    file = scored[orders]
    scores = {row.id: row for row in item_scores.read_scores(file)}
    kept = [item for item in items if item.id in scores]  # a run with --limit was scored on some of them
    if len(kept) < len(scores):
        unknown = next(iter(scores.keys() - {item.id for item in items}))
        raise UserError(
            f"{file}: {len(scores) - len(kept)} of {len(scores)} items are not in {data}, {unknown} for one. Give the "
            "data that the run was scored on with --data."
        )
    predicted = file.with_name(file.name.replace("scores_", "predictions_").replace(".jsonl", ".json"))
    if predicted.is_file():  # it has the options that the run saw
        seen = {item.id: item.options for item in load_items(predicted)}
        if other := [item.id for item in kept if seen.get(item.id, item.options) != item.options]:
            raise UserError(
                f"{folder}: {len(other)} items of {split} have other options, or in another order, than {data}: "
                f"{other[0]} is the first. Give the data that the run was scored on with --data."
            )
    return [sample_row(run, split, item, scores[item.id], scores[item.id].prediction, prompt) for item in kept]


def line_of(rows: list[dict[str, Any]], data: Path, record: dict[str, Any], split: str) -> str:
    judged = [row["right"] for row in rows if row["right"] is not None]
    worth = f"{sum(judged)} of {len(judged)} right" if judged else "no labels"
    digest = record.get("splits", {}).get(split, {}).get("data_sha256")
    changed = "" if digest in (None, sha256(data)) else "; note: the file has changed since the run was scored"
    return f"{rows[0]['run']}, {split}: {len(rows)} items of {data}, {worth}{changed}"


if __name__ == "__main__":
    sys.exit(run_main(main))
