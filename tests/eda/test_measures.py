"""What is measured of items, on hand-made ones whose figures can be worked out on paper."""

import json
import unicodedata

import pytest

from src.data import parse_items
from src.eda import measures as eda
from tests.conftest import make_item, odd_items
from tests.eda.made import item, read


def test_length_figures_are_the_sample_ones_and_count_every_item() -> None:
    # Two items share a dialogue of two turns, the third has four: 2, 2, 4.
    short, long = ("하나 둘", "셋"), ("가", "나  다 라", "마", "바\n사")
    items = read([item(0, *short), item(1, *short), item(2, *long)])
    found = eda.length_figures(items)
    # mean 8/3; squared distances 4/9, 4/9, 16/9, so their sum over n - 1 = 2 is 4/3.
    assert found["turns"] == pytest.approx((8 / 3, (4 / 3) ** 0.5, 2, 4))
    assert found["words"] == pytest.approx((13 / 3, (16 / 3) ** 0.5, 3, 7))  # 3, 3, 7: any blank parts words
    assert found["characters"] == pytest.approx((7, 12**0.5, 5, 11))  # 5, 5, 11: blanks count
    assert eda.describe([7]) == (7, 0, 7, 7)


def test_dialogues_and_what_they_share() -> None:
    items = read([item(0, "가", "나"), item(1, "다", "라"), item(2, "가", "나"), item(3, "가", "나", "다")])
    assert [one.id for one in eda.dialogues(items)] == ["made-0000", "made-0001", "made-0003"]
    assert eda.items_of_dialogues(items) == [2, 1, 1]
    # Two of the four items share a dialogue: they are in one fold or both are seen.
    assert eda.seen_in_folds(items, folds=4) == 0.5
    assert eda.seen_in_folds(items, folds=1) == 0


def test_turns_in_a_row_and_targets() -> None:
    (one,) = read([item(0, *"가나다라마", speakers="11212", targets=(1, 2))])
    assert eda.run_lengths(one) == [2, 1, 1, 1]
    assert eda.target_position(one) == 1.5 / 4
    assert eda.lost_targets([one], turns=4) == 0
    assert eda.lost_targets([one], turns=3) == 1  # one of its two is enough
    (single,) = read([item(0, "가")])
    assert eda.target_position(single) == 0


def test_odd_values_are_those_of_the_file() -> None:
    lines = ("", 7, "두\n줄", " 앞", "뒤 ", "name1 왔어", unicodedata.normalize("NFD", "한글"))
    odd = item(0, *lines, inference_1="선택지 ", output="")
    same_dialogue = item(1, *lines)
    found = eda.odd_values(read([odd, same_dialogue, item(2, "멀쩡해")]))
    assert list(found.values()) == [1, 1, 1, 2, 1, 1, 1, 1]
    assert set(eda.odd_values(read([item(0, "멀쩡해")])).values()) == {0}


def test_odd_values_are_counted_whatever_else_is_odd() -> None:
    found = eda.odd_values(parse_items(json.dumps(odd_items(3, output="")).encode(), "odd")[0])
    # One dialogue: a null and a blank utterance, a number, one that ends in U+2028. Three items: an option in pieces.
    assert list(found.values()) == [2, 1, 0, 1, 3, 3, 0, 3]
    raw = [make_item(0), make_item(1, inference_2=3)]
    assert eda.odd_values(read(raw))["앞뒤에 공백이 있는 선택지"] == 0


def test_marks_and_masked_names() -> None:
    lines = ("ㅋㅋㅋ 그래", "아니 ㅠㅠ!", "name1이랑 name12, name1", "응...")
    items = read([item(0, *lines), item(1, *lines)])
    rates = eda.mark_rates(items)
    assert {name: rate for name, rate in rates.items() if rate} == {
        "ㅋㅋ": 0.25,
        "ㅠㅠ, ㅜㅜ": 0.25,
        "!": 0.25,
        "…, ..": 0.25,
    }
    assert eda.masked_names(items[0]) == {"name1", "name12"}
    assert eda.FEELINGS.search("좋아 ^^") and eda.FEELINGS.search("😀") and not eda.FEELINGS.search("좋아?")


def test_options_are_alike() -> None:
    (one,) = read([item(0, "가", inference_1="우산을 샀다", inference_2="화분을 샀다", inference_3="전혀 관계없는 말")])
    # 을 ·  샀·샀다 of seven pairs are shared by the first two, none by the third.
    assert eda.option_likeness(one) == pytest.approx(2 * (3 / 7) / 6)
