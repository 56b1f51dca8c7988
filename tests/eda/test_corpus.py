"""Which corpus is read, what it is called, and its digest."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from src import task
from src.console.cli import UserError
from src.data import SPLITS
from src.eda import corpus as corpora
from src.eda.measures import length_figures
from src.eda.view import View
from tests.conftest import make_item
from tests.eda.made import weather, write_corpus


@pytest.fixture(autouse=True)
def shipped_task_afterwards() -> Iterator[None]:
    yield
    task.use(None)


def test_the_published_figures_are_whole_sums_of_the_official_train_split() -> None:
    assert list(corpora.published()) == ["turns", "words"]
    for mean, _ in corpora.published().values():
        assert mean * task.current().official.items["train"] == pytest.approx(round(mean * 758), abs=1e-3)


@pytest.mark.slow
def test_the_corpus_is_the_prepared_one_or_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert corpora.read_corpus(tmp_path).kind == corpora.SAMPLE
    splits = {"train": [make_item(0)], "dev": [make_item(4)], "test": [make_item(7, output="")]}
    write_corpus(tmp_path, {"train": splits["train"]})
    with pytest.raises(UserError, match=r"found train, but not dev, test; allowed: all three"):
        corpora.read_corpus(tmp_path)
    write_corpus(tmp_path, splits)
    own = corpora.read_corpus(tmp_path)
    assert (own.kind, len(own.splits["test"])) == ("own", 1)
    assert own.sha256 != corpora.sample_corpus().sha256
    assert own.name == f"{tmp_path.name}의 말뭉치"
    monkeypatch.setenv(corpora.DATA_VARIABLE, str(tmp_path))
    assert corpora.read_corpus() == own
    monkeypatch.setenv(corpora.DATA_VARIABLE, corpora.SAMPLE)
    assert corpora.read_corpus().kind == corpora.SAMPLE


def known_of_it(**known: Any) -> None:
    """From here on this is all that is known of the official corpus."""
    task.use(dataclasses.replace(task.current(), official=task.Official(**known)))


def test_only_the_published_figures_make_a_corpus_official(tmp_path: Path) -> None:
    """A file of the same number of items is not enough."""
    made = [make_item(0), make_item(1)]
    write_corpus(tmp_path, {"train": made, "dev": made[:1], "test": made[:1]})
    own, name = corpora.read_corpus(tmp_path), f"{tmp_path.name}의 말뭉치"
    assert (own.of_official_size, own.name) == (False, name)
    sizes = {"train": 2, "dev": 1, "test": 1}
    known_of_it(items=sizes, turns=(20.8, 4.8), words=(91.5, 36.1))
    assert (own.of_official_size, own.as_published, own.name) == (True, False, name)
    assert View(own, "train").source.startswith(f"자료: {name} · train 2문항")
    found = length_figures(own.splits["train"])
    spans = {name: (found[name].mean, found[name].std) for name in ("turns", "words")}
    known_of_it(items=sizes, **spans)
    assert own.name == "공식 말뭉치"
    known_of_it(items=sizes | {"test": 2}, **spans)
    assert own.name == name


def test_nothing_is_official_where_nothing_is_known(tmp_path: Path) -> None:
    small_corpus(tmp_path)
    own = corpora.read_corpus(tmp_path)
    known_of_it()
    assert not own.of_official_size and not own.as_published
    known_of_it(items={split: 1 for split in SPLITS})
    assert own.of_official_size and not own.as_published
    assert own.name == f"{tmp_path.name}의 말뭉치"


def test_another_task_has_no_sample(tmp_path: Path) -> None:
    task.use(dataclasses.replace(task.current(), name="이름만 다른 과제"))
    assert corpora.read_corpus(tmp_path).kind == corpora.SAMPLE
    task.use(weather(4))
    with pytest.raises(UserError, match=r"날씨 추론 has no sample corpus.* --data FOLDER"):
        corpora.read_corpus(tmp_path)


def small_corpus(folder: Path, **changes: str) -> None:
    """One item in each split; `changes` are of the first item."""
    splits = {"train": [make_item(0, **changes)], "dev": [make_item(4)], "test": [make_item(7, output="")]}
    write_corpus(folder, splits)


def test_a_corpus_is_named_by_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_corpus(tmp_path / "house" / "some" / "corpus")
    assert corpora.read_corpus(tmp_path / "house" / "some" / "corpus").folder == "corpus"
    monkeypatch.setattr(corpora, "ROOT", tmp_path / "house")
    assert corpora.read_corpus(tmp_path / "house" / "some" / "corpus").folder == "some/corpus"
    monkeypatch.chdir(tmp_path / "house")
    assert corpora.read_corpus("some/corpus").folder == "some/corpus"


def test_the_stamp_is_that_of_every_word(tmp_path: Path) -> None:
    small_corpus(tmp_path / "one")
    small_corpus(tmp_path / "same")
    small_corpus(tmp_path / "other", inference_1="다른 말")
    one, same, other = (corpora.read_corpus(tmp_path / name).sha256 for name in ("one", "same", "other"))
    assert one == same != other
