"""The corpus that a notebook looks at: the one on the disk, or the invented sample."""

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from src import task
from src.console.cli import UserError
from src.console.start import ROOT
from src.data import DATA, SPLITS, Item, dump_items, load_split, parse_items, split_path
from src.eda.measures import length_figures
from src.toy import corpus as sample

DATA_VARIABLE = "CCI_EDA_DATA"
"""In the environment of a notebook: the folder of the corpus, or SAMPLE."""
SAMPLE = "sample"

TASK_VARIABLE = "CCI_EDA_TASK"
"""In the environment of a notebook: the file of the task, if it is not resource/task.yaml."""


@dataclass(frozen=True)
class Corpus:
    """The three splits.

    kind    SAMPLE, or "own" for what lies on the disk, in `folder`
    sha256  of all objects as the files have them, 16 hexadecimal digits
    """

    kind: str
    splits: dict[str, list[Item]]
    sha256: str
    folder: str = str(DATA)

    @property
    def of_official_size(self) -> bool:
        """False if nothing is known of the task's official corpus."""
        known = task.current().official.items
        return bool(known) and all(len(self.splits[split]) == count for split, count in known.items())

    @property
    def as_published(self) -> bool:
        """Whether the train split has the published figures, to the last digit. False if none were published."""
        found, known = length_figures(self.splits["train"]), published()
        return bool(known) and all(
            abs(found[name].mean - mean) < 1e-6 and abs(found[name].std - std) < 1e-6
            for name, (mean, std) in known.items()
        )

    @property
    def name(self) -> str:
        """Name of this corpus for people. "Official" requires the official sizes and the published figures, since the
        folder may hold any files.
        """
        if self.kind == SAMPLE:
            return "지어낸 말뭉치(sample)"
        return "공식 말뭉치" if self.of_official_size and self.as_published else f"{self.folder}의 말뭉치"


def published() -> dict[str, tuple[float, float]]:
    """Mean and standard deviation per item of the task's official train split: those of "turns" and "words" that were
    published.
    """
    known = task.current().official
    return {name: span for name, span in (("turns", known.turns), ("words", known.words)) if span is not None}


def read_corpus(folder: str | Path | None = None) -> Corpus:
    """The splits in `folder` (by default the environment's, else resource/data), or the sample corpus if it has none.

    UserError when only some of the splits are there, or when a file cannot be read.
    """
    place = str(folder or os.environ.get(DATA_VARIABLE) or DATA)
    there = [] if place == SAMPLE else [split for split in SPLITS if split_path(place, split).is_file()]
    if not there:
        return sample_corpus()
    missing = [split for split in SPLITS if split not in there]
    if missing:
        raise UserError(
            f"{place}: found {', '.join(there)}, but not {', '.join(missing)}; allowed: all three splits, or none for "
            "the sample corpus. Prepare the whole download: python -m run.prepare_data 대화맥락추론_데이터.zip"
        )
    return _corpus("own", {split: load_split(place, split) for split in SPLITS}, _shown(Path(place)))


def of_shipped_kind() -> bool:
    """Whether the current task has the categories, options and letters of the shipped one. The repository's prompts
    and its sample corpus are for that kind.
    """
    own, wanted = task.official(), task.current()
    return (own.categories, own.options, own.letters) == (wanted.categories, wanted.options, wanted.letters)


def sample_corpus() -> Corpus:
    """The invented corpus, as `run.make_miniature` would write it. UserError if the current task is another one."""
    if not of_shipped_kind():
        raise UserError(
            f"the task {task.current().name} has no sample corpus: the one there is has the categories and options of "
            f"{task.FILE}. Give the folder of a corpus of your task: --data FOLDER."
        )
    return _sample()


@cache
def _sample() -> Corpus:
    splits = {}
    for split, raw in sample.make_corpus().items():
        splits[split], problems = parse_items(dump_items(raw).encode(), split)
        assert not problems, problems
    return _corpus(SAMPLE, splits)


def _corpus(kind: str, splits: dict[str, list[Item]], folder: str = "") -> Corpus:
    text = "".join(dump_items([item.source for item in items]) for items in splits.values())
    return Corpus(kind, splits, hashlib.sha256(text.encode()).hexdigest()[:16], folder)


def _shown(folder: Path) -> str:
    """A folder as pictures name it: its path within the project, or only its name if it lies elsewhere."""
    whole, root = folder.resolve(), ROOT.resolve()
    inside = whole != root and whole.is_relative_to(root)
    return whole.relative_to(root).as_posix() if inside else whole.name
