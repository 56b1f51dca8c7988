"""Assigns files to splits, and checks the splits, each alone and all together."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from src.console.cli import UserError
from src.data import SPLITS, Item, missing_labels, problem_lines, read_items, read_json_of_task, split_path
from src.items.json_files import same
from src.items.oddities import Oddity
from src.prepare.archives import Candidate, Found, find

MOST_ALIKE = 5
"""Files for one split that are compared."""


def search(paths: Sequence[Path]) -> Found:
    """The contents of all these paths together, each JSON file once."""
    together = Found()
    for path in paths:
        found = find(path)
        together.unread += found.unread
        together.others += found.others
        known = {candidate.key for candidate in together.candidates}
        together.candidates += [candidate for candidate in found.candidates if candidate.key not in known]
    return together


def choose(found: Found, paths: Sequence[Path], out: Path) -> tuple[dict[str, Candidate], list[Oddity]]:
    """The file of each split that has one, in the order of `SPLITS`; and which splits had more than one, all equal.

    paths  where `found` was searched, for messages
    out    the folder to write to
    """
    chosen: dict[str, Candidate] = {}
    problems: list[str] = []
    oddities: list[Oddity] = []
    for split in SPLITS:
        meant = [candidate for candidate in found.candidates if candidate.split == split]
        # A file that an earlier run wrote beside the official ones is not a second candidate.
        made_here = split_path(out, split).resolve()
        meant = [candidate for candidate in meant if candidate.path.resolve() != made_here] or meant
        # Files in a zip within the zip count only where the outer zip has none.
        meant = [candidate for candidate in meant if candidate.outer is None] or meant
        if len(meant) > 1 and (len(meant) > MOST_ALIKE or not _all_same(meant)):
            problems.append(f"{split}: {', '.join(candidate.place for candidate in meant[:20])}")
        elif meant:
            chosen[split] = meant[0]
            oddities += [Oddity("file-twice", other.place, f"as {meant[0].place}") for other in meant[1:]]
    if problems:
        raise UserError(
            problem_lines("found more than one file for a split; allowed: one. Name the files that are meant", problems)
        )
    if not chosen:
        raise UserError(_nothing_found(found, paths))
    return chosen, oddities


def _all_same(candidates: Sequence[Candidate]) -> bool:
    """Whether all hold the same JSON, however it is written."""
    read = (read_json_of_task(candidate.read(), candidate.name) for candidate in candidates)  # not all at once
    first = next(read)
    return not first.problems and all(not other.problems and same(first.value, other.value) for other in read)


def _nothing_found(found: Found, paths: Sequence[Path]) -> str:
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
    """The items of each split, and their oddities. One UserError lists the problems of all files and between them."""
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
                f"{chosen[split].name} has no label and {chosen['test'].name} has all: "
                f"{split} and test look swapped. Rename the two files"
            )
        elif split in chosen:
            problems[split] += missing_labels(items, chosen[split].name)
    faults, shared = _shared_ids(chosen, splits)
    together += faults
    blocks = [problem_lines(chosen[split].place, lines) for split, lines in problems.items() if lines]
    if together:
        blocks.append(problem_lines("the files together", together))
    if blocks:
        raise UserError("\n".join(["nothing was written.", *blocks]))
    return splits, [*(oddity for one in read.values() for oddity in one.oddities), *shared]


def _shared_ids(
    chosen: Mapping[str, Candidate], splits: Mapping[str, Sequence[Item]]
) -> tuple[list[str], list[Oddity]]:
    """Problems and oddities of ids that are in two splits.

    If one split holds all items of another, the same file was given twice: a problem. Otherwise shared ids are only
    odd, since items are looked up by id within their split.
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
