"""Compares answers to a labelled split with the labels, with the accuracy of floors, and with each other."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from src import task
from src.data import Item, sha256
from src.vote.ballots import Source
from src.worth.metrics import Evaluation, Pair, chance_range, compare_pairs, evaluate


@dataclass(frozen=True)
class Comparison:
    """Results of several answers to the same items.

    answers  name → its answers, in the order of `items`
    results  name → what they are worth
    floors   name of a floor → what its answers are worth
    note     how to read the floors
    pairs    two answers, tested against each other
    """

    items: Sequence[Item]
    data: Path
    sources: Sequence[Source]
    answers: Mapping[str, Sequence[int]]
    results: Mapping[str, Evaluation]
    floors: Mapping[str, Evaluation]
    note: str
    pairs: Sequence[Pair]

    def as_json(self) -> dict[str, Any]:
        chance = {"accuracy": 1 / len(task.current().options), "range": chance_range(len(self.items))}
        return {
            "data": {"path": self.data, "sha256": sha256(self.data), "items": len(self.items)},
            "floors": {"chance": chance} | {name: floor.as_json() for name, floor in self.floors.items()},
            "floors_note": self.note,
            "pairs": [asdict(pair) | {"better": pair.better} for pair in self.pairs],
            "inputs": [
                {"name": source.ballot.run, "file": source.file, "sha256": source.sha256}
                | self.results[source.ballot.run].as_json()
                | {"missed": self.missed(source.ballot.run)}
                for source in self.sources
            ],
        }

    def missed(self, name: str) -> list[dict[str, str]]:
        """Items that these answers get wrong, label and answer called as in the files."""
        options = task.current().options
        return [
            {"id": item.id, "category": item.category, "label": options[item.label], "answer": options[answer]}
            for item, answer in zip(self.items, self.answers[name], strict=True)
            if item.label is not None and item.label != answer
        ]


def compare(items: Sequence[Item], data: Path, sources: Sequence[Source], against: str | None) -> Comparison:
    """`items`, each with a label, were read from `data`. against: the name of the answers that all others are tested
    against; without it every two are.
    """
    from src.vote.baselines import all_floors  # takes numpy, for which no --help should wait

    answers = {source.ballot.run: [source.ballot.answers[item.id] for item in items] for source in sources}
    results = {name: evaluate(items, given) for name, given in answers.items()}
    found = all_floors(items, data)
    floors = {name: evaluate(items, given) for name, given in found.answers.items()}
    right = {
        name: [item.label == answer for item, answer in zip(items, given, strict=True)]
        for name, given in answers.items()
    }
    return Comparison(items, data, sources, answers, results, floors, found.note, compare_pairs(right, against))
