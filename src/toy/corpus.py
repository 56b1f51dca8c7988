"""The sample corpus: invented Korean dialogues and items in the official shape, to try everything without the real one.

A generated dialogue has a hidden scene: somebody's event and, for each category, the one filler that is true of it. The
dialogue tells each of them in plain words, in any order. Three fillers are drawn first, then which of them is true, and
the dialogue is built around that: the options alone are symmetric in the three, so a rule that skips the dialogue is
left with chance. In some items a wrong filler is mentioned too, guessed in vain or said of somebody else: counting
shared words is good, reading is better.

The words are in resource/miniature/corpus.yaml; a few dialogues written by hand (handwritten.json beside it) join them.
"""

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from src.data import CATEGORIES, OUTPUTS, SPLITS

FOLDER = Path(__file__).resolve().parents[2] / "resource" / "miniature"
WORDS = FOLDER / "corpus.yaml"
HANDWRITTEN = FOLDER / "handwritten.json"

# {split: {items of a dialogue: dialogues}}, as in the official files.
ITEMS_PER_DIALOGUE = {
    "train": {5: 113, 4: 43, 3: 7},
    "dev": {5: 24, 4: 1, 1: 27},
    "test": {5: 37, 4: 80, 2: 8, 1: 84},
}
# The splits of the handwritten dialogues, over and over in the order of their file.
HANDWRITTEN_SPLITS = ("train", "dev", "train", "test")

TURNS = (10, 16)
# The share of true fillers that come with a wrong one which is mentioned as well.
DECOYS = 0.3
# The share of dialogues that tell the motive before the event.
MOTIVE_FIRST = 0.25
# Weights of an event told in one, two or three turns. All of them are target utterances.
EVENT_TURNS = (88, 10, 2)

PARTICLES = {"은": "는", "이": "가", "을": "를"}


class Noun(str):
    """A word that takes the right particle in a format spec: `{key:이}` is "친구가" for 친구, "name1이" for name1."""

    def __format__(self, spec: str) -> str:
        return self + (spec if _ends_in_consonant(self) else PARTICLES[spec]) if spec else str(self)


def _ends_in_consonant(word: str) -> bool:
    # Digits as they are read: 1 is 일, 2 is 이.
    last = "영일이삼사오육칠팔구"[int(word[-1])] if word[-1].isdigit() else word[-1]
    assert "가" <= last <= "힣", f"no reading is known for the end of {word!r}"
    return (ord(last) - ord("가")) % 28 > 0


@dataclass(frozen=True)
class Pool:
    """Fillers (`keys`) that take the same sentences; resource/miniature/corpus.yaml says what each list is for."""

    say: list[str]
    guess: list[str]
    aside: list[str]
    option: list[str]
    keys: list[str]


@dataclass(frozen=True)
class Filler:
    """Something that may be true of an event. `key`: the words that name it, in the dialogue and in its option."""

    key: str
    pool: Pool


@dataclass(frozen=True)
class Event:
    """A kind of thing that happens to somebody and, for each category, the fillers that fit it."""

    topics: list[str]
    say: list[str]
    more: list[str]
    past: str
    fillers: dict[str, list[Filler]]


@dataclass(frozen=True)
class Words:
    """corpus.yaml, read."""

    events: list[Event]
    registers: list[dict[str, str]]
    chat: dict[str, Any]
    announce: list[str]
    questions: dict[str, list[str]]
    wrong_guess: list[str]


@dataclass(frozen=True)
class Line:
    """A turn that may be said: by the one whose event it is (`own`) or by the listener.

    `group`: lines of one group are kept or left out together; None is always kept.
    """

    own: bool
    template: str
    key: str = ""
    group: int | None = None
    target: bool = False


def make_corpus(seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Items in the official shape for each of train, dev and test, all with labels; no dialogue is in two splits.

    `sizes`: items per split, the official 758, 151 and 605 where it says nothing. Equal arguments give equal items.
    """
    assert set(sizes or {}) <= set(SPLITS), sizes
    by_hand = _handwritten()
    corpus = {}
    for split in SPLITS:
        rng = random.Random(f"sample {split} {seed}")
        counts = _items_per_dialogue(ITEMS_PER_DIALOGUE[split], (sizes or {}).get(split), rng)
        dialogues = []
        # A tenth of the dialogues at most: a small sample too is mostly what the miniature can learn.
        for items in by_hand[split][: len(counts) // 10]:
            if len(items) in counts:
                counts.remove(len(items))
                dialogues.append(items)
        dialogues += [_dialogue(rng, size) for size in counts]
        rng.shuffle(dialogues)
        corpus[split] = _numbered(dialogues, f"sample-{split}")
    return corpus


def make_dialogues(count: int, seed: int) -> list[dict[str, Any]]:
    """`5 * count` generated items on `count` dialogues to pre-train on: no corpus is drawn from the same stream."""
    rng = random.Random(f"sample more {seed}")
    return _numbered([_dialogue(rng, len(CATEGORIES)) for _ in range(count)], "sample-more")


def _dialogue(rng: random.Random, size: int) -> list[dict[str, Any]]:
    """`size` items, each of another category, on one new dialogue. Utterance ids are the number of the turn."""
    words = load_words()
    event = rng.choice(words.events)
    topic = Noun(rng.choice(event.topics))
    # The order matters: options first, then which of them is true, then the dialogue that makes it so.
    options = {category: rng.sample(event.fillers[category], len(OUTPUTS)) for category in CATEGORIES}
    labels = {category: rng.randrange(len(OUTPUTS)) for category in CATEGORIES}
    lines = _fitted(list(_lines(rng, words, event, options, labels)), rng)

    register = rng.choice(words.registers)
    own = rng.choice((1, 2))
    conversation = [
        {
            "speaker": own if line.own else 3 - own,
            "utterance": line.template.format_map(register | {"topic": topic, "key": Noun(line.key)}),
            "utterance_id": str(turn),
        }
        for turn, line in enumerate(lines, start=1)
    ]
    targets = [str(turn) for turn, line in enumerate(lines, start=1) if line.target]
    names = {
        "who": Noun(f"화자{own}"),
        "other": Noun(f"화자{3 - own}"),
        "past": event.past.format(topic=topic),
    }
    items = []
    for category in rng.sample(CATEGORIES, size):
        style = rng.randrange(2)
        sentences = [
            filler.pool.option[style].format_map(names | {"key": Noun(filler.key)}) for filler in options[category]
        ]
        inner = {"conversation": conversation, "reference_id": targets, "category": category}
        inner |= dict(zip(OUTPUTS, sentences, strict=True))
        items.append({"input": inner, "output": OUTPUTS[labels[category]]})
    return items


def _lines(
    rng: random.Random, words: Words, event: Event, options: dict[str, list[Filler]], labels: dict[str, int]
) -> Iterator[Line]:
    """Everything the two could say, in order. The event, the true fillers and some wrong ones are always said."""
    group = itertools.count()
    nods = iter(rng.sample(words.chat["nod"], len(CATEGORIES)))

    def exchange(kind: str) -> list[Line]:
        number = next(group)
        return [Line(who == "s", text, group=number) for who, text in rng.choice(words.chat[kind]).items()]

    def maybe(own: bool, text: str) -> Line:
        return Line(own, text, group=next(group))

    def true_line(category: str, before: str = "") -> Line:
        filler = options[category][labels[category]]
        # The listener's reaction is the listener's to tell.
        return Line(category != "반응", before + rng.choice(filler.pool.say), filler.key)

    order = rng.sample(CATEGORIES, len(CATEGORIES))
    yield from exchange("open")
    if rng.random() < MOTIVE_FIRST:
        order.remove("동기")
        yield true_line("동기")

    turns = rng.choices((1, 2, 3), EVENT_TURNS)[0]
    if turns == 3:
        yield Line(True, rng.choice(words.announce), target=True)
    yield Line(True, rng.choice(event.say), target=True)
    if turns >= 2:
        yield Line(True, rng.choice(event.more), target=True)

    for place, category in enumerate(order):
        if place == 2:
            yield from exchange("small")
        own = category != "반응"
        wrong = rng.choice([filler for n, filler in enumerate(options[category]) if n != labels[category]])
        aside = rng.choice(wrong.pool.aside)
        question = rng.choice(words.questions[category])
        mention = rng.choice(("guess", "before", "after")) if rng.random() < DECOYS else "none"
        if mention == "guess":
            yield Line(not own, rng.choice(wrong.pool.guess), wrong.key)
            yield true_line(category, rng.choice(words.wrong_guess) + " ")
        elif mention == "before":
            yield Line(not own, f"{aside} {question}", wrong.key)
            yield true_line(category)
        else:
            yield maybe(not own, question)
            yield true_line(category)
            if mention == "after":
                yield Line(not own, aside, wrong.key)
            else:
                yield maybe(not own, next(nods))
    yield from exchange("close")


def _fitted(lines: list[Line], rng: random.Random) -> list[Line]:
    """The lines that must stay, and as many groups of the others as fit into a length drawn from `TURNS`."""
    room = rng.randint(*TURNS) - sum(line.group is None for line in lines)
    sizes = Counter(line.group for line in lines if line.group is not None)
    kept: set[int | None] = {None}
    for group in rng.sample(sorted(sizes), len(sizes)):
        if sizes[group] <= room:
            kept.add(group)
            room -= sizes[group]
    return [line for line in lines if line.group in kept]


def _items_per_dialogue(official: Mapping[int, int], size: int | None, rng: random.Random) -> list[int]:
    """Items of each dialogue, mixed as in the official split; together `size`, or as many as there."""
    pattern = [items for items, dialogues in official.items() for _ in range(dialogues)]
    size = sum(pattern) if size is None else size
    endless = itertools.chain.from_iterable(rng.sample(pattern, len(pattern)) for _ in itertools.count())
    counts: list[int] = []
    while (left := size - sum(counts)) > 0:
        counts.append(min(next(endless), left))
    return counts


def _numbered(dialogues: Sequence[list[dict[str, Any]]], prefix: str) -> list[dict[str, Any]]:
    """The items of all dialogues, in order, with ids that are unique and say where they come from."""
    numbered: list[dict[str, Any]] = []
    for place, items in enumerate(dialogues, start=1):
        for item in items:
            inner = item["input"]
            turns = inner["conversation"]
            ids = {turn["utterance_id"]: f"{prefix}-d{place:04}-{n:02}" for n, turn in enumerate(turns, start=1)}
            new = {
                "conversation": [turn | {"utterance_id": ids[turn["utterance_id"]]} for turn in turns],
                "reference_id": [ids[target] for target in inner["reference_id"]],
            }
            numbered.append({"id": f"{prefix}-{len(numbered) + 1:06}", "input": inner | new, "output": item["output"]})
    return numbered


def _handwritten() -> dict[str, list[list[dict[str, Any]]]]:
    """By split, the dialogues written by hand; each is the list of its items."""
    items = json.loads(HANDWRITTEN.read_text(encoding="utf-8"))
    by_split: dict[str, list[list[dict[str, Any]]]] = {split: [] for split in SPLITS}
    dialogues = itertools.groupby(items, key=lambda item: item["input"]["conversation"])
    for split, (_, dialogue) in zip(itertools.cycle(HANDWRITTEN_SPLITS), dialogues):
        by_split[split].append(list(dialogue))
    return by_split


@lru_cache(maxsize=1)
def load_words() -> Words:
    """The words and sentences that generated dialogues are made of."""
    raw = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    pools = {name: Pool(**pool) for name, pool in raw.pop("pools").items()}
    events = []
    for event in raw.pop("events").values():
        fillers = {
            category: [Filler(key, pools[name]) for name in names for key in pools[name].keys]
            for category, names in event.pop("slots").items()
        }
        events.append(Event(fillers=fillers, **event))
    return Words(events=events, registers=list(raw.pop("registers").values()), **raw)
