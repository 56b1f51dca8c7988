"""One self-contained line per item and run, to read, to sort, and to count with other tools; or the same items under
the same prompt, for other tools to train and score on.

    python -m run.export polar --out exported                      # every split that the run was scored on
    python -m run.export polar eeve vote-8 --split dev test --out exported
    python -m run.export polar --to trl --out for_trl              # the run's prompt, its items
    python -m run.export --prompt korean --to lm-eval --split dev  # no run is needed

Without --to: items.jsonl and items.csv (for Excel, too): run, id, split, category, dialogue, target utterances,
options, label, prediction, right or wrong, margin, the options' log-probabilities, the letters' probabilities in each
order, and the prompt's digest. A vote has predictions alone. Missed items with their text, by pandas:

    pd.read_csv("items.csv").query("right == 0")

--inspect adds a log for each run and split in DIR/inspect: inspect view --log-dir DIR/inspect

With --to it writes a folder: for TRL one that `datasets` loads, for LLaMA-Factory data and dataset_info.json, for
lm-evaluation-harness a task for each split. Its README.md says how it is used. Items without a label are left out.
The text of the official corpus is licensed: what is exported from it must not be passed on.
"""

import datetime
import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src import task
from src.console.cli import Parser, UserError, new_folder, run_main
from src.data import SPLITS, sha256
from src.files.paths import RESULTS, predictions_path, run_folder
from src.files.writing import write_texts
from src.runs.export_inputs import Wanted, of_prompt, of_run
from src.runs.inputs import load_own
from src.runs.inspect_log import inspect_logs
from src.runs.other_tools import SYSTEM_TURNS, TOOLS, WARNING, files_for
from src.runs.record import Record
from src.runs.samples import as_csv, as_jsonl
from src.vote.exported import samples_of


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.export")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run's name or folder; with --to one, or --prompt")
    parser.add_argument("--inspect", action="store_true", help="write logs for Inspect's viewer, too: DIR/inspect")
    parser.add_argument("--to", choices=TOOLS, help="write the items under the run's prompt for this tool")
    parser.add_argument("--prompt", metavar="NAME", help="with --to and without RUN: the prompt, by name or file")
    parser.add_argument(
        "--system_turn",
        choices=SYSTEM_TURNS,
        help="with --to: own, or folded before the user's text for models whose chat template takes no system turn; "
        "default: as the run has it, else own",
    )
    parser.add_argument(
        "--split", nargs="+", choices=SPLITS, help="default: all that a run was scored on; with --to all that are there"
    )
    parser.add_argument("--data", type=Path, help="folder, or with one --split a file; default: each run's own data")
    parser.add_argument("--orders", type=int, metavar="N", help="orders of the options; default: the fewest")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the runs' folder; default: %(default)s")
    parser.add_argument(
        "--out",
        type=new_folder,
        metavar="DIR",
        help=f"default: {RESULTS / 'export'}, with --to TOOL-PROMPT in it. With --to it has to be new or empty",
    )
    task.add_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.data and args.data.suffix == ".json" and len(args.split or ()) != 1:
        raise UserError(f"--data {args.data}: a file goes with one --split; a folder with several.")
    if args.to:
        export_to(args)
        return
    if not args.runs or args.prompt or args.system_turn:
        raise UserError(
            "--prompt and --system_turn go with --to."
            if args.runs
            else f"name a run, or the tool to export to: --to {' | '.join(TOOLS)}."
        )
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
    out = args.out or RESULTS / "export"
    files = {out / "items.jsonl": as_jsonl(samples), out / "items.csv": as_csv(samples)}
    if args.inspect:
        logs = inspect_logs(samples, datetime.datetime.now(datetime.UTC))
        files |= {out / "inspect" / name: text for name, text in logs.items()}
    written = [str(path) for path in files if path.parent == out] + [str(out / "inspect")] * args.inspect
    write_texts(files)
    print(f"written: {', '.join(written)}: {len(samples)} lines")


def summary(samples: Sequence[Mapping[str, Any]], data: Path, record: Record, split: str) -> str:
    judged = [one["right"] for one in samples if one["right"] is not None]
    worth = f"{sum(judged)} of {len(judged)} right" if judged else "no labels"
    result = record.splits.get(split)
    same = result is None or result.data_sha256 in (None, sha256(data))
    changed = "" if same else "; note: the file has changed since the run was scored"
    return f"{record.run}, {split}: {len(samples)} items of {data}, {worth}{changed}"


# To other tools


def export_to(args: Namespace) -> None:
    if len(args.runs) + bool(args.prompt) != 1:
        raise UserError(f"--to {args.to} takes one prompt: that of one RUN, or --prompt NAME.")
    if args.inspect:
        raise UserError(f"--to {args.to} writes items, and --inspect answers: leave one of them out.")
    if args.orders:
        raise UserError(f"--to {args.to}: options stand in the file's own order, so leave out --orders.")
    wanted = Wanted(args.split, args.data, args.system_turn)
    exported = of_prompt(args.prompt, wanted) if args.prompt else of_run(run_folder(args.runs[0], args.results), wanted)
    print("\n".join(exported.origin))
    out = args.out or RESULTS / "export" / f"{args.to}-{exported.name}"
    if any(path.is_file() for path in out.rglob("*")):
        raise UserError(f"{out} is not empty. Give another --out, or delete it: an export is never mixed with another.")
    files = files_for(args.to, exported)
    write_texts({out / name: text for name, text in files.items()}, all_or_none=True)
    told = ", ".join(f"{split} {len(items)}" for split, items in exported.splits.items())
    print(f"written: {out}: {told}; how it is used: {out / 'README.md'}")
    print(WARNING.rstrip().split("\n")[-1])


if __name__ == "__main__":
    sys.exit(run_main(main))
