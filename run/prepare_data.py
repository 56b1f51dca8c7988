"""The official download, checked and put where every other command looks for it: data_{train,dev,test}.json.

    python -m run.prepare_data 대화맥락추론_데이터.zip
    python -m run.prepare_data downloads/ --out resource/data
    python -m run.prepare_data 대화맥락추론_train.json 대화맥락추론_dev.json

A file belongs to the split whose word (train, dev, test) stands in its name, at any depth of a zip or folder, or in a
zip within the zip. All files are checked before anything is written, and all problems are shown at once. What is odd
and harmless is carried on and said: resource/data/README.md lists both kinds. Text is kept as it stands.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src.console.cli import Parser, UserError, new_folder, run_main
from src.data import (
    CATEGORIES,
    DATA,
    OUTPUTS,
    SPLITS,
    Item,
    dump_items,
    missing_labels,
    problem_lines,
    read_items,
    split_path,
)
from src.files.writing import write_texts
from src.items.json_files import read_json, same
from src.items.oddities import Oddity, oddity_lines
from src.prepare.archives import Candidate, Found, find

if TYPE_CHECKING:
    from rich.table import Table


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, "run.prepare_data")
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="the official zip, a folder, or the JSON files"
    )
    parser.add_argument("--out", type=new_folder, default=DATA, help="folder to write (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int | None:
    args = make_parser().parse_args(argv)
    found = search(args.paths)
    chosen, oddities = choose(found, args.paths, args.out)
    splits, of_items = check(chosen)
    write_texts({split_path(args.out, split): dump_items([item.source for item in splits[split]]) for split in splits})

    from src.console.tables import Fitted, make_console

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


def search(paths: Sequence[Path]) -> Found:
    """What is at all these paths together, each JSON file once."""
    together = Found()
    for path in paths:
        found = find(path)
        together.unread += found.unread
        together.others += found.others
        known = {candidate.key for candidate in together.candidates}
        together.candidates += [candidate for candidate in found.candidates if candidate.key not in known]
    return together


def choose(found: Found, paths: Sequence[Path], out: Path) -> tuple[dict[str, Candidate], list[Oddity]]:
    """The file of each split that has one, in the order of `SPLITS`, and which were there more than once."""
    chosen: dict[str, Candidate] = {}
    problems: list[str] = []
    oddities: list[Oddity] = []
    for split in SPLITS:
        meant = [candidate for candidate in found.candidates if candidate.split == split]
        # What an earlier run wrote beside the official files is no second candidate.
        made_here = split_path(out, split).resolve()
        meant = [candidate for candidate in meant if candidate.path.resolve() != made_here] or meant
        # Nor is what lies in a zip within: that is looked at where the outer one has no file.
        meant = [candidate for candidate in meant if candidate.outer is None] or meant
        if len(meant) > 1 and not all_same(meant):
            problems.append(f"{split}: {', '.join(candidate.place for candidate in meant)}")
        elif meant:
            chosen[split] = meant[0]
            oddities += [Oddity("file-twice", other.place, f"as {meant[0].place}") for other in meant[1:]]
    if problems:
        raise UserError(
            problem_lines("found more than one file for a split; allowed: one. Name the files that are meant", problems)
        )
    if not chosen:
        raise UserError(nothing_found(found, paths))
    return chosen, oddities


def all_same(candidates: Sequence[Candidate]) -> bool:
    """Whether all hold the same JSON, however it is written."""
    first, *others = (read_json(candidate.read(), candidate.name, CATEGORIES) for candidate in candidates)
    return not first.problems and all(not other.problems and same(first.value, other.value) for other in others)


def nothing_found(found: Found, paths: Sequence[Path]) -> str:
    seen = ", ".join(candidate.name for candidate in found.candidates) or "none"
    others = f" (other files: {', '.join(sorted(set(found.others))[:5])})" if found.others else ""
    zips = [str(file) for path in paths if path.is_dir() for file in sorted(path.glob("*.zip"))]
    return (
        f"no split in {', '.join(map(str, paths))}. Found JSON files: {seen}{others}; "
        f"allowed: names with one of the words {', '.join(SPLITS)}, like 대화맥락추론_train.json"
        + (f". To read a zip, name it: {', '.join(zips)}" if zips else "")
        + "".join(f"\n  {reason}" for reason in found.unread)
    )


def check(chosen: Mapping[str, Candidate]) -> tuple[dict[str, list[Item]], list[Oddity]]:
    """The items of each split, and what is odd. UserError with the problems of all files, and of them together."""
    read = {split: read_items(candidate.read(), candidate.name) for split, candidate in chosen.items()}
    problems = {split: list(one.problems) for split, one in read.items()}
    splits = {split: one.items for split, one in read.items()}
    together: list[str] = []
    test = splits.get("test", [])
    test_is_labelled = bool(test) and all(item.label is not None for item in test)
    for split in ("train", "dev"):
        items = splits.get(split, [])
        if test_is_labelled and items and all(item.label is None for item in items):
            together.append(
                f"{chosen[split].name} has no label and {chosen['test'].name} has all: {split} and test look swapped. "
                "Rename the two files"
            )
        elif split in chosen:
            problems[split] += missing_labels(items, chosen[split].name)
    faults, shared = shared_ids(chosen, splits)
    together += faults
    blocks = [problem_lines(chosen[split].place, lines) for split, lines in problems.items() if lines]
    if together:
        blocks.append(problem_lines("the files together", together))
    if blocks:
        raise UserError("\n".join(["nothing was written.", *blocks]))
    return splits, [*(oddity for one in read.values() for oddity in one.oddities), *shared]


def shared_ids(chosen: Mapping[str, Candidate], splits: Mapping[str, Sequence[Item]]) -> tuple[list[str], list[Oddity]]:
    """Ids that two splits have both. A problem where all items of one are in the other: one file in the place of two.

    Else it is odd at most: items are looked up by id within their split alone.
    """
    problems: list[str] = []
    oddities: list[Oddity] = []
    for one, other in combinations(splits, 2):
        there = {item.id: item for item in splits[other]}
        shared = [item for item in splits[one] if item.id in there]
        equal = {item.id for item in shared if same(item.source["input"], there[item.id].source["input"])}
        if equal and len(equal) == min(len(splits[one]), len(splits[other])):
            examples = ", ".join(item.id for item in shared[:3]) + (", …" if len(shared) > 3 else "")
            problems.append(
                f"{chosen[one].name} and {chosen[other].name} share {len(shared)} ids ({examples}); allowed: none. "
                "All items of one are in the other: is it the same file?"
            )
            continue
        for item in shared:
            kind = "item-in-two-splits" if item.id in equal else "id-in-two-splits"
            oddities.append(Oddity(kind, f"{chosen[one].name}: {item.id}", f"in {chosen[other].name} too"))
    return problems, oddities


def summary(splits: Mapping[str, Sequence[Item]]) -> "Table":
    """What was found, a column per split."""
    from rich.table import Table

    dialogues = {split: {item.dialogue_key for item in items} for split, items in splits.items()}
    hidden = any(item.label is None for items in splits.values() for item in items)
    most_targets = max(len(item.targets) for items in splits.values() for item in items)

    table = Table(title="checked data")
    table.add_column("")
    for split in splits:
        table.add_column(split, justify="right")
    table.add_row("items", *(str(len(items)) for items in splits.values()))
    table.add_row("dialogues", *(str(len(keys)) for keys in dialogues.values()))
    for other in splits:
        shared = [len(dialogues[split] & dialogues[other]) if split != other else 0 for split in splits]
        if any(shared):
            table.add_row(f"  also in {other}", *(str(count or "") for count in shared))
    table.add_section()
    counts = [Counter(item.label for item in items) for items in splits.values()]
    for label, output in enumerate(OUTPUTS):
        table.add_row(f"label {output}", *(str(count[label]) for count in counts))
    if hidden:
        table.add_row("label hidden", *(str(count[None]) for count in counts))
    table.add_section()
    for category in CATEGORIES:
        table.add_row(category, *(str(sum(item.category == category for item in items)) for items in splits.values()))
    table.add_section()
    for targets in range(1, most_targets + 1):
        row = (str(sum(len(item.targets) == targets for item in items)) for items in splits.values())
        table.add_row(f"{targets} target utterance{'s' if targets > 1 else ''}", *row)
    return table


if __name__ == "__main__":
    sys.exit(run_main(main))
