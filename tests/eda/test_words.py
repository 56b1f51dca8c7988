"""Content words are found by morphemes, one text at a time or many."""

import pytest

from src.eda import words
from tests.eda.made import item, read


def test_content_words_are_morphemes() -> None:
    assert words.content_words("어제 우산을 사러 백화점에 갔어") == ("우산", "사다", "백화점", "가다")
    assert words.content_words("name1은 우산을 샀어") == ("우산", "사다")  # no noun "은"
    for empty in ("네 ㅎㅎ", "응, 그래 ㅋㅋㅋ", "name1이", "", "그러게요"):
        assert not words.content_words(empty), empty


def test_content_words_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["화분에 물을 듬뿍 주자", "비가 쏟아지네"]
    monkeypatch.setattr(words, "read_already", {})
    alone = [words.content_words(text) for text in texts]
    monkeypatch.setattr(words, "read_already", {})
    words.read_words(texts)
    assert [words.content_words(text) for text in texts] == alone


def test_an_option_overlaps_with_what_was_said() -> None:
    (one,) = read([item(0, "우산이 없어", inference_1="우산을 샀다", inference_2="화분을 샀다")])
    assert words.overlap(one, one.options[0]) == 0.5  # 우산, 사다
    assert words.overlap(one, one.options[1]) == 0
    assert words.overlap(one, "ㅎㅎ") == 0


def test_words_of_a_dialogue_count_once() -> None:
    items = read([item(0, "우산이 없어"), item(1, "우산이 없어"), item(2, "우산을 샀어")])
    assert words.spoken_words(items) == {"우산": 2, "사다": 1}
