"""The trained floor finds what options give away, and nothing where they give nothing away."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from src.data import Item, dump_items, parse_items
from src.toy.corpus import make_corpus
from src.vote.weights import dialogue_folds
from src.worth.metrics import chance_range
from src.worth.trained_floor import cross_validated_answers, describe, trained_answers


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[Item]]:
    return {split: parse_items(dump_items(raw).encode(), split)[0] for split, raw in make_corpus().items()}


def folds_of(items: Sequence[Item]) -> list[int]:
    return dialogue_folds([item.dialogue_key for item in items]).tolist()


def share_right(items: Sequence[Item], answers: Sequence[int]) -> float:
    return sum(item.label == answer for item, answer in zip(items, answers, strict=True)) / len(items)


def ended(item: Item, right: str, wrong: str) -> Item:
    """The right option ends in one way, the wrong ones in another."""
    ends = [right if place == item.label else wrong for place in range(len(item.options))]
    options = tuple(option.removesuffix(".") + end for option, end in zip(item.options, ends, strict=True))
    return replace(item, options=options)


@pytest.mark.parametrize(("right", "wrong"), [(" 것이다.", "."), (".", "지 않다.")], ids=["ending", "negation"])
def test_a_planted_shortcut_is_found(right: str, wrong: str, corpus: dict[str, list[Item]]) -> None:
    dev, train = ([ended(item, right, wrong) for item in corpus[split]] for split in ("dev", "train"))
    assert share_right(dev, cross_validated_answers(dev, folds_of(dev))) > 0.95
    assert share_right(dev, trained_answers(dev, train)) > 0.95


def test_a_shortcut_in_some_items_is_found_beyond_chance(corpus: dict[str, list[Item]]) -> None:
    rng = random.Random(0)
    both = [*corpus["train"], *corpus["dev"]]
    items = [ended(item, " 것이다.", ".") if rng.random() < 0.3 else item for item in both]
    found = share_right(items, cross_validated_answers(items, folds_of(items)))
    # Right on these, and by chance on the others: .3 + .7 / 3 = .53.
    assert 0.48 < found < 0.58 and found > chance_range(len(items))[1]


def test_distractors_that_are_edits_of_the_right_option_are_found(corpus: dict[str, list[Item]]) -> None:
    def edited(item: Item) -> Item:
        """Each wrong option is the right one with a word of its own."""
        assert item.label is not None
        right = item.options[item.label].split()
        made = [
            [*right[:place], *option.split()[-2:-1], *right[place + 1 :]] for place, option in enumerate(item.options)
        ]
        options = [item.options[item.label] if place == item.label else " ".join(one) for place, one in enumerate(made)]
        return replace(item, options=tuple(options))

    items = [edited(item) for item in corpus["dev"]]
    assert share_right(items, cross_validated_answers(items, folds_of(items))) > 0.6


def test_nothing_is_found_in_the_sample_corpus(corpus: dict[str, list[Item]]) -> None:
    both = [*corpus["train"], *corpus["dev"]]
    low, high = chance_range(len(both))
    assert low <= share_right(both, cross_validated_answers(both, folds_of(both))) <= high
    low, high = chance_range(len(corpus["test"]))
    assert low <= share_right(corpus["test"], trained_answers(corpus["test"], both)) <= high


def test_labels_that_mean_nothing_are_not_learned(corpus: dict[str, list[Item]]) -> None:
    """What leaks between folds lifts the mean of many draws. Its standard error is .01 here."""
    rng = random.Random(1)
    ends = [ended(item, " 것이다.", ".") for item in corpus["dev"]]
    draws = [[replace(item, label=rng.randrange(3)) for item in ends] for _ in range(20)]
    found = [share_right(items, cross_validated_answers(items, folds_of(items))) for items in draws]
    assert abs(sum(found) / len(found) - 1 / 3) < 0.03


def test_the_order_of_the_items_changes_nothing(corpus: dict[str, list[Item]]) -> None:
    items = corpus["dev"]
    mixed = random.Random(2).sample(items, len(items))
    found = dict(zip((item.id for item in items), cross_validated_answers(items, folds_of(items)), strict=True))
    assert cross_validated_answers(mixed, folds_of(mixed)) == [found[item.id] for item in mixed]
    asked = corpus["test"][:40]
    assert trained_answers(asked, mixed) == trained_answers(asked, items)
    assert trained_answers(asked[::-1], items) == trained_answers(asked, items)[::-1]


def test_what_is_described_is_what_sets_an_option_apart() -> None:
    one, other, last = describe(["가나", "가다", "가나다"])
    assert one["has 나\x03"] == pytest.approx(one["has 가나\x03"]) and "has 가" not in one and "has \x02가" not in other
    assert "lacks 가나" in other and "lacks 다\x03" in one and "has 나다" in last
    assert (last["most length"], one["most length"], one["least length"]) == (1.0, 0.0, 0.0)
    assert [one["place 0"], other["place 1"], last["place 2"]] == [1.0, 1.0, 1.0]
    assert sum(value**2 for name, value in last.items() if name.startswith("has ")) == pytest.approx(1)
    assert len(describe(["가", "나"])) == 2 and len(describe(["가", "나", "다", "라"])) == 4
