"""One page to look at: what runs and votes are worth on a split, and every item with every run's answer.

    python -m run.report                                # all runs and votes in resource/results, on the dev split
    python -m run.report qwen2 bllossom vote-8          # these
    python -m run.report --split test                   # answers and probabilities; there are no labels outside NIKL
    python -m run.report --no_text                      # without a word of the corpus

Writes one HTML file, Korean with a switch to English, which needs no network and asks for nothing from anywhere. It
holds licensed corpus text and must not be published; with --no_text it holds numbers and ids alone.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src import task
from src.console.cli import Parser, announced, check_place, new_file, run_main
from src.console.words import counted, size_text
from src.data import DATA, SPLITS
from src.files.paths import RESULTS
from src.files.writing import write_text
from src.vote.voters import Request


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.report")
    parser.add_argument(
        "runs", nargs="*", metavar="RUN_OR_FILE", help="a run's or vote's name or folder, or a file of its answers"
    )
    parser.add_argument("--split", choices=SPLITS, default="dev", help="default: %(default)s")
    own = f"folder or file; default: what the runs' records name, else {DATA}"
    parser.add_argument("--data", type=Path, help=own)
    parser.add_argument("--orders", type=int, metavar="N", help="orders of the options; as run.vote has it")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the runs' folder; default: %(default)s")
    parser.add_argument("--no_text", action="store_true", help="leave out utterances, options and reasoning")
    parser.add_argument(
        "--out", type=new_file, metavar="FILE.html", help="default: report_SPLIT.html in the folder of --results"
    )
    task.add_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    out = args.out or args.results / f"report_{args.split}.html"
    if out.suffix != ".html":
        parser.error(f"--out {out}: allowed: a name that ends in .html")
    if args.out is None:
        check_place(parser, "--results", out)
    if args.orders:
        task.current().orders(args.orders)
    from src.report.findings import find
    from src.report.page import page

    found = find(Request(args.runs, [], args.split, args.results, args.data, args.orders))
    with announced("writing the page"):
        text = page(found, text=not args.no_text)
    write_text(out, text)
    told = (
        f"{counted(len(found.items), 'item')}, {counted(len(found.runs), 'run')}, {counted(len(found.votes), 'vote')}"
    )
    print(f"{told}, {size_text(len(text.encode()))}; left out: {', '.join(found.left_out) or 'none'}")
    for why in found.damaged.values():
        print(f"left out: {why}")
    if not args.no_text:
        print("It contains licensed corpus text: do not publish it. --no_text leaves the text out.")
    print(f"written: {out}; open it in a browser")


if __name__ == "__main__":
    sys.exit(run_main(main))
