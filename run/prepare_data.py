"""Check the official download, and write it where every other command looks for it: data_{train,dev,test}.json.

    python -m run.prepare_data 대화맥락추론_데이터.zip
    python -m run.prepare_data downloads/ --out resource/data
    python -m run.prepare_data 대화맥락추론_train.json 대화맥락추론_dev.json

A file belongs to the split whose word (train, dev, test) is in its name, at any depth of a zip or folder, or in a zip
within the zip. All files are checked before anything is written, and all problems are shown at once. What is odd but
harmless is accepted and reported: resource/data/README.md lists both kinds. Text is kept as it stands.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src import task
from src.console.cli import Parser, new_folder, run_main
from src.data import DATA, SPLITS, dump_items, split_path
from src.files.locks import lock_folder
from src.files.writing import write_texts
from src.items.oddities import oddity_lines
from src.prepare.splits import check, choose, search


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.prepare_data")
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="the official zip, a folder, or the JSON files"
    )
    parser.add_argument("--out", type=new_folder, default=DATA, help="folder to write (default: %(default)s)")
    task.add_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> int | None:
    args = make_parser().parse_args(argv)
    found = search(args.paths)
    chosen, oddities = choose(found, args.paths, args.out)
    splits, of_items = check(chosen)
    texts = {split_path(args.out, split): dump_items([item.source for item in splits[split]]) for split in splits}
    with lock_folder(args.out):
        write_texts(texts, all_or_none=True)

    from src.console.tables import Fitted, make_console
    from src.prepare.summary import summary

    make_console().print(Fitted(summary(splits)))
    for split, candidate in chosen.items():
        print(f"{split_path(args.out, split)}  from {candidate.place}")
    for candidate in found.candidates:
        if candidate.split is None:
            print(f"not used (no one split word in its name): {candidate.place}")
    for reason in found.unread:
        print(f"not used: {reason}")
    if oddities := [*oddities, *of_items]:
        print("odd, and carried on (resource/data/README.md has all kinds):")
        print("".join(f"  {line}\n" for line in oddity_lines(oddities)), end="")
    for split in SPLITS:
        path = split_path(args.out, split)
        if split not in chosen:
            print(
                f"missing: {split}. {f'{path} stays as it was' if path.exists() else 'Give its file to have it too'}."
            )
    if len(chosen) == len(SPLITS):
        print("next: python -m run.train --help (one backbone) or python -m run.reproduce --help (all, then the vote)")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
