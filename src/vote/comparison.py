"""Compares answers to a labelled split with the labels, with floors, and with each other."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import task
from src.data import Item, sha256
from src.vote.ballots import Source
from src.vote.changed import Changed, find_changed
from src.worth.metrics import Evaluation, chance_range, evaluate

if TYPE_CHECKING:
    from src.worth.paired import Pair


@dataclass(frozen=True)
class Comparison:
    """Results of several answers to the same items.

    answers  name → its answers, in the order of `items`
    results  name → what they are worth
    floors   name of a floor → what its answers are worth; how_read: what they are, in words
    pairs    two answers, tested against each other
    changed  what runs answer to changed dialogues, and notes on what is left out of it
    """

    items: Sequence[Item]
    data: Path
    sources: Sequence[Source]
    answers: Mapping[str, Sequence[int]]
    results: Mapping[str, Evaluation]
    floors: Mapping[str, Evaluation]
    pairs: "Sequence[Pair]"
    how_read: str = ""
    changed: tuple[Sequence[Changed], Sequence[str]] = ((), ())

    @property
    def dialogues(self) -> int:
        return len({item.dialogue_key for item in self.items})

    def as_json(self) -> dict[str, Any]:
        chance = {"accuracy": 1 / len(task.current().options), "range": chance_range(len(self.items))}
        return {
            "data": {
                "path": self.data,
                "sha256": sha256(self.data),
                "items": len(self.items),
                "dialogues": self.dialogues,
            },
            "floors": {"chance": chance} | {name: floor.as_json() for name, floor in self.floors.items()},
            "how_floors_read": self.how_read,
            "changed_dialogues": [one.as_json() for one in self.changed[0]],
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


def compare(
    items: Sequence[Item],
    data: Path,
    sources: Sequence[Source],
    against: str | None,
    pairs: bool = True,
    split: str | None = None,
) -> Comparison:
    """`items`, each with a label, were read from `data`. against: the name of the answers that all others are tested
    against; without it every two are, unless `pairs` is False: then none. split: with it, runs on changed dialogues are
    looked for beside the others.
    """
    from src.vote.baselines import all_floors  # loads numpy, for which --help does not wait
    from src.worth.paired import compare_pairs

    answers = {source.ballot.run: [source.ballot.answers[item.id] for item in items] for source in sources}
    results = {name: evaluate(items, given) for name, given in answers.items()}
    baselines = all_floors(items, data)
    floors = {name: evaluate(items, given) for name, given in baselines.answers.items()}
    right = {
        name: [item.label == answer for item, answer in zip(items, given, strict=True)]
        for name, given in answers.items()
    }
    tested = compare_pairs(right, [item.dialogue_key for item in items], against) if pairs else []
    changed = find_changed(sources, items, data, split) if split else ([], [])
    return Comparison(items, data, sources, answers, results, floors, tested, baselines.note, changed)
