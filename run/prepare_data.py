"""The official download, checked and put where every other command looks for it: data_{train,dev,test}.json.

    python -m run.prepare_data 대화맥락추론_데이터.zip
    python -m run.prepare_data downloads/ --out resource/data
    python -m run.prepare_data 대화맥락추론_train.json 대화맥락추론_dev.json

A file belongs to the split whose word (train, dev, test) stands in its name, at any depth of a zip or folder.
All files are checked before anything is written, and all problems are shown at once. Text is kept as it stands.
"""

import argparse
import re
import sys
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src.cli import Parser, UserError, nearest, new_folder, run_main
from src.data import (
    CATEGORIES,
    DATA,
    OUTPUTS,
    SPLITS,
    Item,
    dump_items,
    missing_labels,
    parse_items,
    problem_lines,
    split_path,
)
from src.records import write_texts

if TYPE_CHECKING:
    from rich.table import Table

# The official files hold a few megabytes; a zip that claims this much for one is not theirs.
LARGEST_MEMBER_BYTES = 200_000_000

UTF8_NAME, ENCRYPTED = 0x800, 0x1  # bits of a zip member's general purpose flag (APPNOTE.TXT, 4.4.4)


@dataclass(frozen=True)
class Candidate:
    """A JSON file: the one at `path`, or the `member` of the zip there. `name` is its readable base name."""

    path: Path
    name: str
    member: zipfile.ZipInfo | None = None

    @property
    def place(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}: {member_name(self.member)}"

    @property
    def split(self) -> str | None:
        """The one split word in the name; None for no such word or several."""
        words = set(re.findall(rf"(?<![a-z])({'|'.join(SPLITS)})(?![a-z])", self.name.lower()))
        return words.pop() if len(words) == 1 else None

    def read(self) -> bytes:
        """Zip members are read in memory, never extracted: their names cannot reach a path of this machine."""
        if self.member is None:
            return self.path.read_bytes()
        if self.member.flag_bits & ENCRYPTED:
            raise UserError(f"{self.place} is encrypted. Unpack the zip with its password and give the folder instead.")
        if self.member.file_size > LARGEST_MEMBER_BYTES:
            raise UserError(
                f"{self.place}: found {self.member.file_size:,} bytes; allowed: {LARGEST_MEMBER_BYTES:,}. "
                "This is not the official zip."
            )
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.member)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise UserError(f"{self.place} cannot be unpacked ({error}). Download the zip again.") from error


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, "run.prepare_data")
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="the official zip, a folder, or the JSON files"
    )
    parser.add_argument("--out", type=new_folder, default=DATA, help="folder to write (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int | None:
    args = make_parser().parse_args(argv)
    chosen, left_aside = choose(args.paths, args.out)
    splits = check(chosen)
    write_texts({split_path(args.out, split): dump_items([item.source for item in splits[split]]) for split in splits})

    from src.tables import Fitted, make_console

    make_console().print(Fitted(summary(splits)))
    for split, candidate in chosen.items():
        print(f"{split_path(args.out, split)}  from {candidate.place}")
    for candidate in left_aside:
        print(f"not used (no one split word in its name): {candidate.place}")
    for split in SPLITS:
        path = split_path(args.out, split)
        if split not in chosen:
            print(
                f"missing: {split}. {f'{path} stays as it was' if path.exists() else 'Give its file to have it too'}."
            )
    if len(chosen) == len(SPLITS):
        print("next: python -m run.train --help (one backbone) or python -m run.reproduce --help (all, then the vote)")
    return 0


def choose(paths: Sequence[Path], out: Path) -> tuple[dict[str, Candidate], list[Candidate]]:
    """The file of each split that has one, in the order of `SPLITS`, and the JSON files whose name names no split."""
    found_once = {
        (candidate.path.resolve(), candidate.member and candidate.member.header_offset): candidate
        for path in paths
        for candidate in find(path)
    }
    candidates = list(found_once.values())
    chosen: dict[str, Candidate] = {}
    problems: list[str] = []
    for split in SPLITS:
        found = [candidate for candidate in candidates if candidate.split == split]
        # What an earlier run wrote beside the official files is no second candidate.
        made_here = split_path(out, split).resolve()
        found = [candidate for candidate in found if candidate.path.resolve() != made_here] or found
        if len(found) > 1:
            problems.append(f"{split}: {', '.join(candidate.place for candidate in found)}")
        elif found:
            chosen[split] = found[0]
    left_aside = [candidate for candidate in candidates if candidate.split is None]
    if problems:
        raise UserError(
            problem_lines("found more than one file for a split; allowed: one. Name the files that are meant", problems)
        )
    if not chosen:
        seen = ", ".join(candidate.name for candidate in left_aside) or "none"
        zips = [str(file) for path in paths if path.is_dir() for file in sorted(path.glob("*.zip"))]
        hint = f". To read a zip, name it: {', '.join(zips)}" if zips else ""
        raise UserError(
            f"no split in {', '.join(map(str, paths))}. Found JSON files: {seen}; "
            f"allowed: names with one of the words {', '.join(SPLITS)}, like 대화맥락추론_train.json{hint}"
        )
    return chosen, left_aside


def find(path: Path) -> Iterator[Candidate]:
    """The JSON files at a path that the user gave: a folder (searched to its depth), a zip, or a JSON file itself."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if is_json(file.relative_to(path).as_posix()) and file.is_file():
                yield Candidate(file, unicodedata.normalize("NFC", file.name))
    elif not path.exists():
        there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file or folder.{nearest(path.name, there)}")
    elif zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except zipfile.BadZipFile as error:
            raise UserError(f"{path} is a damaged zip ({error}). Download it again.") from error
        for member in members:
            name = member_name(member)
            if is_json(name):
                yield Candidate(path, name.split("/")[-1], member)
    elif path.suffix.lower() == ".json":
        candidate = Candidate(path, unicodedata.normalize("NFC", path.name))
        if candidate.split is None:
            raise UserError(
                f"{path}: the name does not say which split this is; allowed: exactly one of the words "
                f"{', '.join(SPLITS)} in it. Rename it, for instance to data_train.json"
            )
        yield candidate
    else:
        kind = "a damaged zip, download it again" if path.suffix.lower() == ".zip" else "neither"
        raise UserError(f"{path}: found {kind}; allowed: a zip, a folder or a JSON file")


def is_json(name: str) -> bool:
    """Whether a path in a folder or zip is a JSON file. Resource forks of a Mac (`__MACOSX/`, `._x.json`) are not."""
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return name.lower().endswith(".json") and not any(part.startswith((".", "__MACOSX")) for part in parts)


def member_name(member: zipfile.ZipInfo) -> str:
    """The name as it was meant, NFC and with slashes.

    Without the UTF-8 flag zipfile reads a name as cp437; macOS then meant UTF-8 all the same, and Korean Windows CP949.
    """
    name = member.filename
    if not member.flag_bits & UTF8_NAME:
        for encoding in ("utf-8", "cp949"):
            try:
                name = name.encode("cp437").decode(encoding)
                break
            except UnicodeError:
                continue
    return unicodedata.normalize("NFC", name).replace("\\", "/")


def check(chosen: Mapping[str, Candidate]) -> dict[str, list[Item]]:
    """The items of each split. UserError with the problems of all files, and of the files together."""
    splits: dict[str, list[Item]] = {}
    problems: dict[str, list[str]] = {}
    for split, candidate in chosen.items():
        splits[split], problems[split] = parse_items(candidate.read(), candidate.name)

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
    for one, other in combinations(splits, 2):
        ids = {item.id for item in splits[other]}
        shared = [item.id for item in splits[one] if item.id in ids]
        if shared:
            examples = ", ".join(shared[:3]) + (", …" if len(shared) > 3 else "")
            together.append(
                f"{chosen[one].name} and {chosen[other].name} share {len(shared)} ids ({examples}); allowed: none"
            )
    blocks = [problem_lines(chosen[split].place, lines) for split, lines in problems.items() if lines]
    if together:
        blocks.append(problem_lines("the files together", together))
    if blocks:
        raise UserError("\n".join(["nothing was written.", *blocks]))
    return splits


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
