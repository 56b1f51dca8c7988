"""Distances of two splits, held against scipy and against what can be worked out on paper."""

import pytest
from scipy.stats import ks_2samp

from src.data import Item
from src.eda.corpus import sample_corpus
from src.eda.distances import MEASURES, compare
from tests.eda.made import item, read


def splits_of(first: list[int], second: list[int]) -> tuple[list[Item], list[Item]]:
    """Items whose dialogues have these many turns, each dialogue another."""
    made = [
        item(number, *(f"{number}번 대화 {turn}" for turn in range(turns)))
        for number, turns in enumerate([*first, *second])
    ]
    items = read(made)
    return items[: len(first)], items[len(first) :]


def test_distances_of_numbers() -> None:
    first, second = splits_of([2, 3, 3, 5, 8, 8], [3, 4, 5, 5])
    found = compare(MEASURES["턴 수"], first, second)
    assert found.value == pytest.approx(ks_2samp([2, 3, 3, 5, 8, 8], [3, 4, 5, 5]).statistic)
    assert found.value <= found.luck <= 1
    assert compare(MEASURES["턴 수"], first, first).value == 0
    apart = compare(MEASURES["턴 수"], *splits_of([2] * 40, [9] * 40))
    assert apart.value == 1
    assert apart.luck < 0.5
    assert compare(MEASURES["턴 수"], *splits_of([2] * 9, [9] * 9)) == compare(
        MEASURES["턴 수"], *splits_of([2] * 9, [9] * 9)
    )


def test_distances_of_counts() -> None:
    first = read(
        [
            item(0, "가", category="원인"),
            item(1, "나", category="원인"),
            item(2, "다", category="전제"),
            item(3, "라", category="반응"),
        ]
    )
    second = read([item(4, "마", category="원인"), item(5, "바", category="동기")])
    # Shares 2/4, 1/4, 1/4, 0 against 1/2, 0, 0, 1/2.
    assert compare(MEASURES["유형"], first, second).value == pytest.approx(0.5)


def test_luck_moves_whole_dialogues() -> None:
    """Ten items of one dialogue are no ten draws: with few dialogues chance alone reaches farther."""

    def luck(dialogues: int) -> float:
        talks = [[f"{n}번 대화"] * (2 + n % 5) for n in range(dialogues)]
        items = read([item(n, *talks[n * dialogues // 240]) for n in range(240)])
        return compare(MEASURES["턴 수"], items[:120], items[120:]).luck

    assert luck(24) > 1.5 * luck(240)


def test_a_dialogue_of_both_splits_can_be_dealt_too() -> None:
    items = read([item(n, f"대화 {n % 3}", *"가나다"[: n % 3]) for n in range(6)])
    found = compare(MEASURES["턴 수"], items[:3], items[3:])
    assert found.value == 0
    assert 0 < found.luck <= 1


def test_items_of_a_dialogue_are_counted_before_one_is_chosen() -> None:
    first = read([item(n, "같은 대화") for n in range(4)])
    second = read([item(4 + n, f"대화 {n}") for n in range(4)])
    assert compare(MEASURES["대화당 문항 수"], first, second).value == 1


@pytest.mark.slow
def test_every_measure_measures_the_sample() -> None:
    corpus = sample_corpus()
    items = corpus.splits["dev"][:30]
    for name, measure in MEASURES.items():
        assert len(measure.of(items)) == len(measure.samples(items)), name
