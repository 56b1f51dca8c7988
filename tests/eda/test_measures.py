"""What is measured of a corpus, on hand-made items whose figures can be worked out on paper."""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp

from src.console.cli import UserError
from src.data import Item, dump_items, parse_items, split_path
from src.eda import measures as eda
from src.eda.measures import MEASURES, Corpus, Measure, View, compare
from src.prompt.encode import Encoder
from tests.conftest import make_item, odd_items


def read(raw: list[dict[str, Any]]) -> list[Item]:
    items, problems = parse_items(dump_items(raw).encode(), "made")
    assert not problems
    return items


def talk(*lines: Any, speakers: str = "") -> list[dict[str, Any]]:
    """A conversation; speakers take turns unless `speakers` ("1121") tells."""
    return [
        {"speaker": int(speakers[turn]) if speakers else 1 + turn % 2, "utterance": line, "utterance_id": f"u{turn}"}
        for turn, line in enumerate(lines)
    ]


def item(
    number: int, *lines: Any, targets: tuple[int, ...] = (0,), speakers: str = "", **changes: Any
) -> dict[str, Any]:
    ids = [f"u{turn}" for turn in targets]
    return make_item(number, conversation=talk(*lines, speakers=speakers), reference_id=ids, **changes)


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


def test_the_published_figures_are_whole_sums_of_the_official_train_split() -> None:
    for mean, _ in eda.PUBLISHED.values():
        assert mean * eda.OFFICIAL_ITEMS["train"] == pytest.approx(round(mean * 758), abs=1e-3)


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
    assert eda.odd_values(read(raw))["앞뒤에 빈칸이 있는 선택지"] == 0


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


def test_content_words_are_morphemes() -> None:
    assert eda.content_words("어제 우산을 사러 백화점에 갔어") == ("우산", "사다", "백화점", "가다")
    assert eda.content_words("name1은 우산을 샀어") == ("우산", "사다")  # no noun "은"
    for empty in ("네 ㅎㅎ", "응, 그래 ㅋㅋㅋ", "name1이", "", "그러게요"):
        assert not eda.content_words(empty), empty


def test_content_words_do_not_depend_on_the_batch() -> None:
    texts = ["화분에 물을 듬뿍 주자", "비가 쏟아지네"]
    eda._words.clear()
    alone = [eda.content_words(text) for text in texts]
    eda._words.clear()
    eda.read_words(texts)
    assert [eda.content_words(text) for text in texts] == alone


def test_options_are_alike_and_overlap() -> None:
    (one,) = read(
        [item(0, "우산이 없어", inference_1="우산을 샀다", inference_2="화분을 샀다", inference_3="전혀 관계없는 말")]
    )
    assert eda.overlap(one, one.options[0]) == 0.5  # 우산, 사다
    assert eda.overlap(one, one.options[1]) == 0
    assert eda.overlap(one, "ㅎㅎ") == 0
    # 을 ·  샀·샀다 of seven pairs are shared by the first two, none by the third.
    assert eda.option_likeness(one) == pytest.approx(2 * (3 / 7) / 6)


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


def test_items_of_a_dialogue_are_counted_before_rows_are_chosen() -> None:
    first = read([item(n, "같은 대화") for n in range(4)])
    second = read([item(4 + n, f"대화 {n}") for n in range(4)])
    assert compare(MEASURES["대화당 문항"], first, second).value == 1


def test_every_measure_measures_the_sample() -> None:
    corpus = eda.sample_corpus()
    items = corpus.splits["dev"][:30]
    for name, measure in MEASURES.items():
        rows = eda.dialogues(items) if measure.per_dialogue else items
        values = measure.of(items if measure.of is eda.items_of_dialogues else rows)
        assert len(values) == len(rows), name
        assert isinstance(measure, Measure)


def write_corpus(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, raw in splits.items():
        split_path(folder, split).write_text(dump_items(raw), encoding="utf-8")


def test_the_corpus_is_the_prepared_one_or_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert eda.read_corpus(tmp_path).kind == eda.SAMPLE
    splits = {"train": [make_item(0)], "dev": [make_item(4)], "test": [make_item(7, output="")]}
    write_corpus(tmp_path, {"train": splits["train"]})
    with pytest.raises(UserError, match=r"found train, but not dev, test; allowed: all three"):
        eda.read_corpus(tmp_path)
    write_corpus(tmp_path, splits)
    own = eda.read_corpus(tmp_path)
    assert (own.kind, len(own.splits["test"])) == ("own", 1)
    assert own.sha256 != eda.sample_corpus().sha256
    assert own.name == f"{tmp_path.name}의 말뭉치"
    monkeypatch.setenv(eda.DATA_VARIABLE, str(tmp_path))
    assert eda.read_corpus() == own
    monkeypatch.setenv(eda.DATA_VARIABLE, eda.SAMPLE)
    assert eda.read_corpus().kind == eda.SAMPLE


def test_only_the_published_figures_make_a_corpus_official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the same number of items is not enough."""
    made = [make_item(0), make_item(1)]
    write_corpus(tmp_path, {"train": made, "dev": made[:1], "test": made[:1]})
    monkeypatch.setattr(eda, "OFFICIAL_ITEMS", {"train": 2, "dev": 1, "test": 1})
    own = eda.read_corpus(tmp_path)
    assert (own.of_official_size, own.name) == (True, f"{tmp_path.name}의 말뭉치")
    assert eda.View(own, "train").source.startswith(f"자료: {tmp_path.name}의 말뭉치 · train 2문항")
    found = eda.length_figures(own.splits["train"])
    figures = {name: (found[name].mean, found[name].std) for name in eda.PUBLISHED}
    monkeypatch.setattr(eda, "PUBLISHED", figures)
    assert eda.read_corpus(tmp_path).name == "공식 말뭉치"
    monkeypatch.setattr(eda, "OFFICIAL_ITEMS", {"train": 2, "dev": 1, "test": 2})
    assert eda.read_corpus(tmp_path).name == f"{tmp_path.name}의 말뭉치"


def test_a_corpus_is_named_by_where_it_lies(tmp_path: Path) -> None:
    root = Path(eda.__file__).parents[2]
    assert eda._shown(Path("resource/data")) == eda._shown(root / "resource" / "data") == "resource/data"
    assert eda._shown(tmp_path / "some" / "corpus") == "corpus"


def test_the_stamp_is_that_of_every_word() -> None:
    first = Corpus("own", {"train": read([make_item(0)])}, "")
    assert eda._corpus("own", first.splits).sha256 == eda._corpus("own", first.splits).sha256
    other = {"train": read([make_item(0, inference_1="다른 말")])}
    assert eda._corpus("own", first.splits).sha256 != eda._corpus("own", other).sha256


def test_tokenizers_come_from_this_disk_alone(
    tmp_path: Path, backbone_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def refuse(*address: Any, **_: Any) -> None:
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    (tmp_path / "near.yaml").write_text(json.dumps({"model_id": str(backbone_folder("qwen2"))}))
    # What a download leaves: a branch that names a commit, and the commit's files.
    cache = tmp_path / "cache" / "models--somebody--downloaded"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("c0ffee")
    shutil.copytree(backbone_folder("solarko"), cache / "snapshots" / "c0ffee")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    recipe = {"model_id": "somebody/downloaded", "chat_template": "{{ messages[-1].content }}\n"}
    (tmp_path / "downloaded.yaml").write_text(json.dumps(recipe))
    (tmp_path / "far.yaml").write_text(json.dumps({"model_id": "nobody/has-this-model", "chat_template": "{{ x }}"}))
    own = Corpus("own", {"train": read([make_item(0)])}, "")
    found = eda.find_encoders(own, tmp_path)
    assert sorted(found) == ["downloaded", "near"]
    assert asked == []
    assert isinstance(found["near"], Encoder)
    assert len(View(own, "train").parts) == 1


def test_two_splits_may_give_an_id_each(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = read([item(0, "가"), item(1, "나")]), read([item(0, "가 나 다", "라"), item(1, "마 바", "사")])
    corpus = eda.Corpus("own", {"train": short, "dev": long, "test": short}, "0" * 16)
    view = View(corpus, "train", "dev")
    monkeypatch.setitem(view.__dict__, "tokens", {"any": {"train": [5, 5], "dev": [50, 50]}})
    assert view.distances["토큰 수"].value == 1


def test_a_view_measures_distances_only_with_another_split() -> None:
    corpus = eda.sample_corpus()
    assert View(corpus, "train").distances == {}
    assert View(corpus, "train").apart("턴 수") == ""
    assert View(corpus, "train").titled("턴", "턴 수") == "턴"
    assert np.isfinite(corpus.splits["train"][0].label or 0)
