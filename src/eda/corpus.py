"""The corpus that a notebook looks at: the one on the disk, or the invented sample."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from src.console.cli import UserError
from src.console.start import ROOT
from src.data import DATA, SPLITS, Item, dump_items, load_split, parse_items, split_path
from src.eda.measures import length_figures
from src.toy import corpus as sample

DATA_VARIABLE = "CCI_EDA_DATA"
"""In the environment of a notebook: the folder of the corpus, or SAMPLE."""
SAMPLE = "sample"

OFFICIAL_ITEMS = {"train": 758, "dev": 151, "test": 605}
PUBLISHED = {"turns": (20.816623, 4.788459), "words": (91.463061, 36.051528)}
"""Mean and standard deviation per item of the official train split, as the competition entry published them."""


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
        return {split: len(items) for split, items in self.splits.items()} == OFFICIAL_ITEMS

    @property
    def as_published(self) -> bool:
        """Whether the train split has the published figures, to the last digit that was published."""
        found = length_figures(self.splits["train"])
        return all(
            abs(found[name].mean - mean) < 1e-6 and abs(found[name].std - std) < 1e-6
            for name, (mean, std) in PUBLISHED.items()
        )

    @property
    def name(self) -> str:
        """What people call this corpus. "Official" takes the official sizes and the published figures, since any file
        may lie in the folder.
        """
        if self.kind == SAMPLE:
            return "지어낸 말뭉치(sample)"
        return "공식 말뭉치" if self.of_official_size and self.as_published else f"{self.folder}의 말뭉치"


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


def sample_corpus() -> Corpus:
    """The invented corpus, as `run.make_miniature` would write it."""
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
