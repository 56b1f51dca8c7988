"""The sample corpus: invented Korean dialogues and items in the official shape, to try everything without the real one.

A generated dialogue has a hidden scene: an event of one speaker and, for each category, the one filler that is true of
it. The dialogue states each of them in plain words, in any order. For an item, the fillers of its options are drawn
first, then which of them is true, and the dialogue is built around that. The options alone are symmetric, so a rule
that skips the dialogue is right only by chance. In some items a wrong filler is mentioned too: as a wrong guess, or
about another person. Counting shared words answers many items, reading answers more.

The words, and the categories and options they are for, are in resource/miniature/corpus.yaml. A few dialogues written
by hand (handwritten.json beside it) are added. All of it is invented for the official task.
"""

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

from src import task
from src.console.cli import UserError
from src.console.start import ROOT
from src.data import SPLITS

RawItem = dict[str, Any]
"""An item in the official shape."""

FOLDER = ROOT / "resource" / "miniature"
WORDS = FOLDER / "corpus.yaml"
HANDWRITTEN = FOLDER / "handwritten.json"

# {split: {items of a dialogue: dialogues}}, as in the official files.
ITEMS_PER_DIALOGUE = {
    "train": {5: 113, 4: 43, 3: 7},
    "dev": {5: 24, 4: 1, 1: 27},
    "test": {5: 37, 4: 80, 2: 8, 1: 84},
}
# The splits that the handwritten dialogues go to, in the order of their file, over and over.
HANDWRITTEN_SPLITS = ("train", "dev", "train", "test")

TURNS = (10, 16)
# The share of true fillers next to which a wrong one is mentioned.
DECOYS = 0.3
# The share of dialogues that tell one filler before the event.
ONE_FIRST = 0.25
# Weights of an event told in one, two or three turns. All of them are target utterances.
EVENT_TURNS = (88, 10, 2)

PARTICLES = {"은": "는", "이": "가", "을": "를"}


class Noun(str):
    """A word that takes the right particle in a format spec: `{key:이}` is "친구가" for 친구, "name1이" for name1."""

    def __format__(self, spec: str) -> str:
        return self + (spec if _ends_in_consonant(self) else PARTICLES[spec]) if spec else str(self)


def _ends_in_consonant(word: str) -> bool:
    # Digits by their Korean reading: 1 is 일, 2 is 이.
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
    """A kind of event in someone's life and, for each category, the fillers that fit it."""

    topics: list[str]
    say: list[str]
    more: list[str]
    past: str
    fillers: dict[str, list[Filler]]


@dataclass(frozen=True)
class Words:
    """The contents of corpus.yaml. categories, options and letters are those of the task that it is invented for.

    told_by_listener   the category whose filler the listener tells
    told_first         the category whose filler may be told before the event
    """

    categories: tuple[str, ...]
    options: tuple[str, ...]
    letters: tuple[str, ...]
    told_by_listener: str
    told_first: str
    events: list[Event]
    registers: list[dict[str, str]]
    chat: dict[str, Any]
    announce: list[str]
    questions: dict[str, list[str]]
    wrong_guess: list[str]


@dataclass(frozen=True)
class Line:
    """A possible turn, by the speaker whose event it is (`own`) or by the listener.

    group: lines of one group are kept or left out together; a line without a group is always kept.
    """

    own: bool
    template: str
    key: str = ""
    group: int | None = None
    target: bool = False


def make_corpus(seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, list[RawItem]]:
    """Items in the official shape for each of train, dev and test, all with labels; no dialogue is in two splits.

    sizes: items per split; a split that it leaves out has the official size. Equal arguments give equal items.
    UserError where another task than the official one is current.
    """
    _check_task()
    assert set(sizes or {}) <= set(SPLITS), sizes
    by_hand = _handwritten()
    corpus = {}
    for split in SPLITS:
        rng = random.Random(f"sample {split} {seed}")
        counts = _items_per_dialogue(ITEMS_PER_DIALOGUE[split], (sizes or {}).get(split), rng)
        dialogues = []
        # A tenth of the dialogues at most, so that a small sample, too, is mostly what the miniature can learn.
        for items in by_hand[split][: len(counts) // 10]:
            if len(items) in counts:
                counts.remove(len(items))
                dialogues.append(items)
        dialogues += [_dialogue(rng, size) for size in counts]
        rng.shuffle(dialogues)
        corpus[split] = _numbered(dialogues, f"sample-{split}")
    return corpus


def make_dialogues(count: int, seed: int) -> list[RawItem]:
    """`count` generated dialogues with an item of each category, to pre-train on. No corpus is drawn from the same
    stream of random numbers.
    """
    _check_task()
    rng = random.Random(f"sample more {seed}")
    return _numbered([_dialogue(rng, len(load_words().categories)) for _ in range(count)], "sample-more")


def _check_task() -> None:
    words, now = load_words(), task.current()
    if (now.categories, now.options, now.letters) != (words.categories, words.options, words.letters):
        raise UserError(
            "the sample corpus and the miniature are invented for the official task, with the categories "
            f"{', '.join(words.categories)}, and the task here is {now.name!r}. "
            "Leave --task out to use them, or give a corpus of your own."
        )


def _dialogue(rng: random.Random, size: int) -> list[RawItem]:
    """`size` items, each of another category, on one new dialogue. Utterance ids are the number of the turn."""
    words = load_words()
    event = rng.choice(words.events)
    topic = Noun(rng.choice(event.topics))
    # The order matters: options first, then which of them is true, then the dialogue that makes it so.
    count = len(words.options)
    options = {category: rng.sample(event.fillers[category], count) for category in words.categories}
    labels = {category: rng.randrange(count) for category in words.categories}
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
    for category in rng.sample(words.categories, size):
        style = rng.randrange(2)
        sentences = [
            filler.pool.option[style].format_map(names | {"key": Noun(filler.key)}) for filler in options[category]
        ]
        inner = {"conversation": conversation, "reference_id": targets, "category": category}
        inner |= dict(zip(words.options, sentences, strict=True))
        items.append({"input": inner, "output": words.options[labels[category]]})
    return items


def _lines(
    rng: random.Random, words: Words, event: Event, options: dict[str, list[Filler]], labels: dict[str, int]
) -> Iterator[Line]:
    """Everything the two could say, in order. The event, the true fillers and some wrong fillers are always said."""
    group = itertools.count()
    nods = iter(rng.sample(words.chat["nod"], len(words.categories)))

    def exchange(kind: str) -> list[Line]:
        number = next(group)
        return [Line(who == "s", text, group=number) for who, text in rng.choice(words.chat[kind]).items()]

    def maybe(own: bool, text: str) -> Line:
        return Line(own, text, group=next(group))

    def true_line(category: str, before: str = "") -> Line:
        filler = options[category][labels[category]]
        return Line(category != words.told_by_listener, before + rng.choice(filler.pool.say), filler.key)

    order = rng.sample(words.categories, len(words.categories))
    yield from exchange("open")
    if rng.random() < ONE_FIRST:
        order.remove(words.told_first)
        yield true_line(words.told_first)

    turns = rng.choices((1, 2, 3), EVENT_TURNS)[0]
    if turns == 3:
        yield Line(True, rng.choice(words.announce), target=True)
    yield Line(True, rng.choice(event.say), target=True)
    if turns >= 2:
        yield Line(True, rng.choice(event.more), target=True)

    for place, category in enumerate(order):
        if place == 2:
            yield from exchange("small")
        own = category != words.told_by_listener
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
    """How many items each dialogue has, mixed as in the official split: `size` in all, by default the official size."""
    pattern = [items for items, dialogues in official.items() for _ in range(dialogues)]
    size = sum(pattern) if size is None else size
    endless = itertools.chain.from_iterable(rng.sample(pattern, len(pattern)) for _ in itertools.count())
    counts: list[int] = []
    while (left := size - sum(counts)) > 0:
        counts.append(min(next(endless), left))
    return counts


def _numbered(dialogues: Sequence[list[RawItem]], prefix: str) -> list[RawItem]:
    """The items of all dialogues, in order, with unique ids that say where they come from."""
    numbered: list[RawItem] = []
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


def _handwritten() -> dict[str, list[list[RawItem]]]:
    """By split, the dialogues written by hand; each is the list of its items."""
    items = json.loads(HANDWRITTEN.read_text(encoding="utf-8"))
    by_split: dict[str, list[list[RawItem]]] = {split: [] for split in SPLITS}
    dialogues = itertools.groupby(items, key=lambda item: item["input"]["conversation"])
    for split, (_, dialogue) in zip(itertools.cycle(HANDWRITTEN_SPLITS), dialogues):
        by_split[split].append(list(dialogue))
    return by_split


@lru_cache(maxsize=1)
def load_words() -> Words:
    """The words and sentences that generated dialogues are made of."""
    raw = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    of_task: dict[str, Any] = {key: tuple(values) for key, values in raw.pop("task").items()}
    pools = {name: Pool(**pool) for name, pool in raw.pop("pools").items()}
    events = []
    for event in raw.pop("events").values():
        fillers = {
            category: [Filler(key, pools[name]) for name in names for key in pools[name].keys]
            for category, names in event.pop("slots").items()
        }
        events.append(Event(fillers=fillers, **event))
    return Words(events=events, registers=list(raw.pop("registers").values()), **of_task, **raw)
