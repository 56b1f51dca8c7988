"""A view of one split or two."""

import pytest

from src.eda.corpus import Corpus, sample_corpus
from src.eda.view import View
from tests.eda.made import item, read


def test_two_splits_may_give_an_id_each(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = read([item(0, "가"), item(1, "나")]), read([item(0, "가 나 다", "라"), item(1, "마 바", "사")])
    corpus = Corpus("own", {"train": short, "dev": long, "test": short}, "0" * 16)
    view = View(corpus, "train", "dev")
    monkeypatch.setitem(view.__dict__, "tokens", {"any": {"train": [5, 5], "dev": [50, 50]}})
    assert view.distances["토큰 수"].value == 1


def test_a_view_measures_distances_only_with_another_split() -> None:
    corpus = sample_corpus()
    assert View(corpus, "train").distances == {}
    assert View(corpus, "train").apart("턴 수") == ""
    assert View(corpus, "train").titled("턴", "턴 수") == "턴"
