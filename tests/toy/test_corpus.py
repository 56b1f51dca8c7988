"""The sample corpus is shaped like the official one, reads like talk, and cannot be answered without its dialogues."""

import itertools
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from src import task
from src.console.cli import UserError
from src.data import SPLITS, Item, parse_items
from src.toy.corpus import HANDWRITTEN, ITEMS_PER_DIALOGUE, TURNS, Noun, load_words, make_corpus, make_dialogues
from src.worth.metrics import wilson

Rule = Callable[[Item], int]
CATEGORIES = task.current().categories


def parsed(raw: list[dict[str, Any]]) -> list[Item]:
    items, problems = parse_items(json.dumps(raw).encode(), "sample")
    assert not problems, problems
    return items


@pytest.fixture(scope="module")
def raw_corpus() -> dict[str, list[dict[str, Any]]]:
    return make_corpus()


@pytest.fixture(scope="module")
def corpus(raw_corpus: dict[str, list[dict[str, Any]]]) -> dict[str, list[Item]]:
    return {split: parsed(raw) for split, raw in raw_corpus.items()}


@pytest.fixture(scope="module")
def handwritten() -> list[Item]:
    return parsed(json.loads(HANDWRITTEN.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def many() -> tuple[list[Item], list[Item]]:
    """Two sets of 7,500 items each: enough to see a tilt of two points."""
    return parsed(make_dialogues(1500, seed=1)), parsed(make_dialogues(1500, seed=2))


# Shape


def test_every_item_is_official(corpus: dict[str, list[Item]]) -> None:
    for split, items in corpus.items():
        assert all(item.label is not None for item in items)
        assert {item.category for item in items} == set(CATEGORIES)
        targets = Counter(len(item.targets) for item in items)
        assert set(targets) <= {1, 2, 3}
        assert 0.75 * len(items) < targets[1] < 0.95 * len(items)
        assert {turn.speaker for item in items for turn in item.dialogue} == {1, 2}
        assert all(turn.text.strip() == turn.text != "" for item in items for turn in item.dialogue)
        assert all(turn.id.startswith(f"sample-{split}-d") for item in items for turn in item.dialogue)
        assert [item.id for item in items] == [f"sample-{split}-{n:06}" for n in range(1, len(items) + 1)]


def test_official_sizes(corpus: dict[str, list[Item]]) -> None:
    assert {split: len(items) for split, items in corpus.items()} == {"train": 758, "dev": 151, "test": 605}
    for split, items in corpus.items():
        # Items of a dialogue follow each other, and no two of them are of one category.
        groups = [list(group) for _, group in itertools.groupby(items, key=lambda item: item.dialogue_key)]
        assert Counter(map(len, groups)) == ITEMS_PER_DIALOGUE[split]
        assert all(len({item.category for item in group}) == len(group) for group in groups)
        assert all(len({item.dialogue[0].id for item in group}) == 1 for group in groups)


def test_other_sizes() -> None:
    sizes = {"train": 1000, "dev": 7, "test": 0}
    assert {split: len(items) for split, items in make_corpus(sizes=sizes).items()} == sizes
    assert len(make_corpus(sizes={"dev": 7})["train"]) == 758


def test_equal_seeds_give_equal_items() -> None:
    assert make_corpus(3) == make_corpus(3)
    assert make_dialogues(20, seed=3) == make_dialogues(20, seed=3)
    assert len(make_dialogues(20, seed=3)) == 100


def test_another_task_has_no_sample_corpus() -> None:
    other = task.Task("뉴스", ("원인", "결과"), ("inference_1", "inference_2"), ("A", "B"))
    task.use(other)
    try:
        for make in (make_corpus, lambda: make_dialogues(1, 0)):
            with pytest.raises(UserError, match=r"invented for the official task, .* the task here is '뉴스'"):
                make()
    finally:
        task.use(None)


@pytest.mark.slow
def test_no_dialogue_is_met_twice(corpus: dict[str, list[Item]], many: tuple[list[Item], list[Item]]) -> None:
    sets = [*corpus.values(), *many, parsed(make_corpus(1)["train"])]
    keys = [{item.dialogue_key for item in items} for items in sets]
    # The handwritten dialogues are in the corpus of every seed.
    keys[-1] -= {item.dialogue_key for item in parsed(json.loads(HANDWRITTEN.read_text(encoding="utf-8")))}
    assert len(set().union(*keys)) == sum(map(len, keys))
    assert len(keys[3]) == len(keys[4]) == 1500


def test_labels_and_categories_are_balanced(corpus: dict[str, list[Item]], many: tuple[list[Item], list[Item]]) -> None:
    for items in corpus.values():
        assert all(0.26 < count / len(items) < 0.4 for count in Counter(item.label for item in items).values())
        assert all(0.14 < count / len(items) < 0.26 for count in Counter(item.category for item in items).values())
    assert set(Counter(len(item.targets) for item in many[0])) == {1, 2, 3}
    assert all(abs(count - 2500) < 4 * 41 for count in Counter(item.label for item in many[0]).values())


def test_it_is_made_in_no_time() -> None:
    load_words.cache_clear()
    start = time.process_time()
    make_corpus(5)
    assert time.process_time() - start < 2


# What can be known from the options, and from the dialogue


def best(scores: Sequence[float]) -> int:
    return max(range(3), key=scores.__getitem__)


def bigrams(text: str) -> set[str]:
    return {text[start : start + 2] for start in range(len(text) - 1)}


def naive_bayes(train: list[Item]) -> Rule:
    right: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for item in train:
        for place, option in enumerate(item.options):
            (right if place == item.label else wrong).update([f"place {place}", *option.split()])
    size = len(right | wrong)
    all_right, all_wrong = right.total() + size, wrong.total() + size

    def odds(word: str) -> float:
        return math.log((right[word] + 1) / all_right * all_wrong / (wrong[word] + 1))

    def answer(item: Item) -> int:
        return best([sum(map(odds, [f"place {n}", *text.split()])) for n, text in enumerate(item.options)])

    return answer


def most_often_right(train: list[Item]) -> Rule:
    """The filler that was right most often: an option is known by its words without the speaker's."""

    def name(option: str) -> str:
        return re.sub(r"화자\d\S*", "", option)

    right = Counter(name(item.options[item.label]) for item in train if item.label is not None)
    return lambda item: best([right[name(option)] for option in item.options])


def closeness(item: Item) -> list[float]:
    """How much each option has in common with the other two."""
    sets = [bigrams(option) for option in item.options]
    return [sum(len(own & other) / len(own | other) for other in sets) for own in sets]


BLIND: dict[str, Callable[[list[Item]], Rule]] = {
    "naive Bayes": naive_bayes,
    "most often right": most_often_right,
    "longest": lambda _: lambda item: best([len(option) for option in item.options]),
    "shortest": lambda _: lambda item: best([-len(option) for option in item.options]),
    "most central": lambda _: lambda item: best(closeness(item)),
    "least central": lambda _: lambda item: best([-value for value in closeness(item)]),
}


def shared_with_dialogue(item: Item) -> int:
    """The option with the largest share of its own bigrams, those not in all three, found in the dialogue."""
    dialogue = bigrams(" ".join(turn.text for turn in item.dialogue))
    sets = [bigrams(option) for option in item.options]
    own = [part - (sets[0] & sets[1] & sets[2]) for part in sets]
    return best([len(part & dialogue) / len(part) for part in own])


def correct(rule: Rule, items: list[Item]) -> int:
    return sum(rule(item) == item.label for item in items)


@pytest.mark.slow
@pytest.mark.parametrize("name", BLIND)
def test_options_alone_are_worth_chance(
    name: str, corpus: dict[str, list[Item]], many: tuple[list[Item], list[Item]]
) -> None:
    low, high = wilson(correct(BLIND[name](corpus["train"]), corpus["test"]), len(corpus["test"]))
    assert low < 1 / 3 < high
    # Four standard errors of a guess, on a set large enough to tell.
    train, test = many
    share = correct(BLIND[name](train), test) / len(test)
    assert abs(share - 1 / 3) < 4 * math.sqrt(2 / 9 / len(test))


def test_the_dialogue_gives_the_answer(corpus: dict[str, list[Item]], many: tuple[list[Item], list[Item]]) -> None:
    for items in (corpus["test"], many[0]):
        # Shared words are good, but not all: wrong fillers are mentioned too.
        assert 0.8 < correct(shared_with_dialogue, items) / len(items) < 0.92


def test_wrong_fillers_are_mentioned_in_some_items(many: tuple[list[Item], list[Item]]) -> None:
    keys = sorted(
        {filler.key for event in load_words().events for f in event.fillers.values() for filler in f}, key=len
    )

    def mentions(item: Item) -> tuple[bool, int]:
        text = " ".join(turn.text for turn in item.dialogue)
        found = [any(key in option and key in text for key in keys) for option in item.options]
        assert item.label is not None
        return found.pop(item.label), sum(found)

    counts = Counter(map(mentions, many[0][:1500]))
    assert set(counts) == {(True, 0), (True, 1)}, "the true filler is always told, of the wrong ones one at most"
    assert 0.2 < counts[True, 1] / 1500 < 0.35


# Words


def test_dialogues_are_short_and_whole(many: tuple[list[Item], list[Item]]) -> None:
    for item in many[0]:
        assert TURNS[0] <= len(item.dialogue) <= TURNS[1]
        assert 30 <= sum(len(turn.text.split()) for turn in item.dialogue) <= 95
        texts = [*(turn.text for turn in item.dialogue), *item.options]
        assert not any(re.search(r"[{}]|\s\s|^\s|\s$", text) for text in texts), texts
        assert all(re.fullmatch(r".*화자[12].*\.", option) for option in item.options)


@pytest.mark.parametrize(
    "expected",
    [
        "친구 친구는 친구가 친구를",
        "약속 약속은 약속이 약속을",
        "name1 name1은 name1이 name1을",
        "화자2 화자2는 화자2가 화자2를",
        "서울 서울은 서울이 서울을",
    ],
)
def test_particles(expected: str) -> None:
    noun = Noun(expected.split()[0])
    assert " ".join(format(noun, particle) for particle in ("", "은", "이", "을")) == expected


def test_words_of_fillers_are_nowhere_else() -> None:
    words = load_words()
    for event in words.events:
        fillers = [(category, filler) for category in CATEGORIES for filler in event.fillers[category]]
        assert all(len(filler.key.split()) == (1 if category == "반응" else 2) for category, filler in fillers)
        own = [word for _, filler in fillers for word in filler.key.split()]
        twice = [word for word, times in Counter(own).items() if times > 1]
        assert not twice, (event.past, twice)

        exchanges = [turn for kind in words.chat.values() for turn in kind]
        chat = [text for turn in exchanges for text in (turn.values() if isinstance(turn, dict) else [turn])]
        questions = [text for asked in words.questions.values() for text in asked]
        pools = {id(filler.pool): filler.pool for _, filler in fillers}.values()
        sentences = [text for pool in pools for text in (*pool.say, *pool.guess, *pool.aside, *pool.option)]
        forms = [form for register in words.registers for form in register.values()]
        others = [*event.topics, *event.say, *event.more, event.past, *words.announce, *words.wrong_guess]
        others += [*chat, *questions, *sentences, *forms]
        found = {word: text for word in own if len(word) > 1 for text in [*others, *own] if word in text != word}
        assert not found, (event.past, found)


def test_every_slot_has_many_fillers() -> None:
    for event in load_words().events:
        assert set(event.fillers) == set(CATEGORIES)
        assert all(len(fillers) >= 20 for fillers in event.fillers.values())
        assert all(len(filler.pool.option) == 2 for fillers in event.fillers.values() for filler in fillers)


# The dialogues written by hand


def test_handwritten_items(handwritten: list[Item], corpus: dict[str, list[Item]]) -> None:
    dialogues = {item.dialogue_key: item.dialogue for item in handwritten}
    assert len(handwritten) >= 24
    assert len(dialogues) >= 8
    assert all(12 <= len(dialogue) <= 16 for dialogue in dialogues.values())
    assert {item.category for item in handwritten} == set(CATEGORIES)
    # Each is in one split, with all of its items.
    splits = [split for split in SPLITS for item in corpus[split] if item.dialogue_key in dialogues]
    assert len(splits) == len(handwritten)
    assert set(splits) == set(SPLITS)


@pytest.mark.parametrize("name", ["longest", "shortest", "most central", "least central"])
def test_handwritten_options_do_not_give_themselves_away(name: str, handwritten: list[Item]) -> None:
    low, high = wilson(correct(BLIND[name]([]), handwritten), len(handwritten))
    assert low < 1 / 3 < high


def test_handwritten_items_need_more_than_shared_words(handwritten: list[Item]) -> None:
    assert correct(shared_with_dialogue, handwritten) / len(handwritten) < 0.6


def test_corpus_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load_words.cache_clear()
    assert len(make_corpus(sizes={"train": 5, "dev": 5, "test": 5})["dev"]) == 5
