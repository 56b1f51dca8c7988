"""The subject of a notebook: one split of a corpus, alone or beside another one."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from src.data import Item
from src.eda.corpus import Corpus
from src.eda.distances import MEASURES, Distance, by_item, compare
from src.eda.tokens import find_encoders
from src.eda.words import read_words, texts_of

if TYPE_CHECKING:
    from src.prompt.encode import Encoder


@dataclass(frozen=True)
class View:
    """The subject of a notebook: a split, and perhaps another one to compare it with."""

    corpus: Corpus
    split: str
    against: str | None = None

    @property
    def items(self) -> list[Item]:
        return self.corpus.splits[self.split]

    @cached_property
    def parts(self) -> dict[str, list[Item]]:
        """The split's items, then those of the other one."""
        return {split: self.corpus.splits[split] for split in (self.split, self.against) if split}

    @property
    def source(self) -> str:
        """Which corpus this is: the line below every picture."""
        counts = [f"{split} {len(items):,}문항" for split, items in self.parts.items()]
        return f"자료: {self.corpus.name} · {', '.join(counts)} · {self.corpus.sha256}"

    @cached_property
    def encoders(self) -> "dict[str, Encoder]":
        return find_encoders(self.corpus)

    @cached_property
    def tokens(self) -> dict[str, dict[str, list[int]]]:
        """Tokens of each item's prompt: [backbone][split]."""
        return {
            name: {split: [len(one.ids) for one in encoder.for_scoring(items)] for split, items in self.parts.items()}
            for name, encoder in self.encoders.items()
        }

    @cached_property
    def distances(self) -> dict[str, Distance]:
        """How far the two splits are apart in each measure; empty with a single split."""
        if self.against is None:
            return {}
        read_words(text for items in self.parts.values() for text in texts_of(items))
        found = {name: compare(measure, *self.parts.values()) for name, measure in MEASURES.items()}
        if self.tokens:
            counts = next(iter(self.tokens.values()))
            lengths = {  # by the item, not by its id, which both splits may use
                item: float(count)
                for split, items in self.parts.items()
                for item, count in zip(items, counts[split], strict=True)
            }
            found["토큰 수"] = compare(by_item(lengths.__getitem__), *self.parts.values())
        return found

    def titled(self, title: str, name: str) -> str:
        """A panel's title, with the distance of the splits in this measure where there are two."""
        return f"{title} · 거리 {self.distances[name].value:.2f}" if self.against else title

    def apart(self, *names: str) -> str:
        """A sentence on the distances of these measures; nothing with a single split."""
        if self.against is None:
            return ""
        told = [f"{name} {self.distances[name].text}" for name in names]
        return f" {self.against}과의 거리: {', '.join(told)}."
