"""Check a file before it is handed in: the items, their order and text are those of the test split, and all answered.

    python -m run.check_submission resource/results/vote-8/predictions_test.json
    python -m run.check_submission predictions.json --data resource/data

Exit code 0 when the file is ready; otherwise 2, with a list of all problems.
"""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src import task
from src.console.cli import Parser, UserError, run_main
from src.data import DATA, load_items, problem_lines, sha256
from src.files.paths import record_path
from src.runs.inputs import load_own
from src.vote.submission import submission_problems


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.check_submission")
    parser.add_argument("file", type=Path, metavar="FILE", help="the file to hand in")
    parser.add_argument(
        "--data",
        type=Path,
        help=f"folder or file of the test split; default: that of the run in whose folder FILE lies, or {DATA}",
    )
    task.add_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if not args.file.is_file():
        raise UserError(f"{args.file}: no such file. Allowed: a predictions file, as run.test and run.vote write them.")
    place = args.file.parent
    items, data, notes = load_own(args.data, "test", [place] if record_path(place).is_file() else [])
    if problems := submission_problems(args.file.read_bytes(), items):
        raise UserError(problem_lines(f"{args.file} is not ready to be handed in, held against {data}", problems))
    counts = Counter(item.label for item in load_items(args.file, labelled=True))
    shares = ", ".join(f"{output} {counts[place]}" for place, output in enumerate(task.current().options))
    print(f"{args.file}: {len(items)} items, order and text as in {data}; {shares}")
    for note in notes:
        print(f"note: {note}")
    official = task.current().official.items.get("test", len(items))
    if len(items) != official:
        print(f"note: the official test split has {official} items; {data} is another one")
    print(f"sha256 {sha256(args.file)}\nready to hand in")


if __name__ == "__main__":
    sys.exit(run_main(main))
