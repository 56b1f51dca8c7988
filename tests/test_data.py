import copy
import dataclasses
import json
import random
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src import task
from src.console.cli import UserError
from src.data import (
    PROBLEMS_SHOWN,
    Item,
    dump_items,
    load_items,
    load_split,
    missing_labels,
    oddity_note,
    parse_items,
    predictions,
    read_items,
    sha256,
    split_path,
)
from tests.conftest import make_item
from tests.made_task import FOUR, make_four, working_on

TASK = task.current()


def write(tmp_path: Path, raw: Any, name: str = "data_train.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")
    return path


def load(tmp_path: Path, *raw: dict[str, Any], labelled: bool | None = None) -> list[Item]:
    return load_items(write(tmp_path, list(raw)), labelled=labelled)


def refused(tmp_path: Path, *raw: dict[str, Any], labelled: bool | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, *raw, labelled=labelled)
    return str(caught.value)


def with_turn(number: int, turn: int, **changes: Any) -> dict[str, Any]:
    item = make_item(number)
    utterance = item["input"]["conversation"][turn]
    utterance.update(changes)
    for key in [key for key, value in changes.items() if value is ...]:
        del utterance[key]
    return item


# What is read


def test_an_item_is_read_field_by_field(tmp_path: Path) -> None:
    raw = make_item(4)
    (item,) = load(tmp_path, raw)
    assert item.id == "made-0004"
    assert [(turn.id, turn.speaker) for turn in item.dialogue] == [
        ("d1.1", 1),
        ("d1.2", 2),
        ("d1.3", 1),
        ("d1.4", 2),
        ("d1.5", 1),
    ]
    assert item.dialogue[0].text == "화분에 물 줬어?"
    assert item.targets == ("d1.2",)
    assert item.category == "반응"
    assert item.options == tuple(raw["input"][key] for key in TASK.options)
    assert item.label == 1
    assert item.source == raw


def test_the_shipped_sample_is_a_sound_item() -> None:
    (item,) = load_items(Path(__file__).parent.parent / "resource" / "data" / "sample.json", labelled=True)
    assert item.label is not None
    assert len(item.dialogue) == 12


def test_targets_keep_the_files_order_and_target_utterances_the_dialogues(tmp_path: Path) -> None:
    (item,) = load(tmp_path, make_item(0, reference_id=["d0.4", "d0.2"]))
    assert item.targets == ("d0.4", "d0.2")
    assert [utterance.id for utterance in item.target_utterances] == ["d0.2", "d0.4"]


def test_items_of_one_dialogue_share_its_key_whatever_their_utterance_ids(tmp_path: Path) -> None:
    renamed = make_item(1)
    for turn in renamed["input"]["conversation"]:
        turn["utterance_id"] = turn["utterance_id"].replace("d0", "other")
    renamed["input"]["reference_id"] = ["other.1"]
    first, second, third = load(tmp_path, make_item(0), renamed, make_item(3))
    assert first.dialogue_key == second.dialogue_key != third.dialogue_key
    other_speaker = load(tmp_path, with_turn(0, 0, speaker=2))[0]
    assert other_speaker.dialogue_key != first.dialogue_key


@pytest.mark.parametrize(("number", "text"), [(7, "7"), (0, "0"), (-3, "-3"), (2.5, "2.5"), (10**30, str(10**30))])
def test_a_number_is_read_as_its_text_and_stays_a_number_in_the_source(
    tmp_path: Path, number: float, text: str
) -> None:
    (item,) = load(tmp_path, with_turn(0, 1, utterance=number))
    assert item.dialogue[1].text == text
    assert item.source["input"]["conversation"][1]["utterance"] == number
    assert type(predictions([item], [0])[0]["input"]["conversation"][1]["utterance"]) is type(number)


@pytest.mark.parametrize("text", ["", "   ", "첫 줄\n둘째 줄", " 앞뒤 빈칸 ", "탭\t과 \r\n", "{{ name1 }} 😀"])
def test_utterances_keep_blanks_and_newlines(tmp_path: Path, text: str) -> None:
    (item,) = load(tmp_path, with_turn(0, 1, utterance=text))
    assert item.dialogue[1].text == text


def test_options_are_stripped_in_the_item_and_kept_in_the_source(tmp_path: Path) -> None:
    (item,) = load(tmp_path, make_item(0, inference_2="\t길을 잃었다. \n"))
    assert item.options[1] == "길을 잃었다."
    assert item.source["input"]["inference_2"] == "\t길을 잃었다. \n"


@pytest.mark.parametrize(("speaker", "read"), [(1, 1), (2, 2), ("1", 1), ("2", 2)])
def test_speakers_may_be_numbers_or_their_text(tmp_path: Path, speaker: object, read: int) -> None:
    (item,) = load(tmp_path, with_turn(0, 0, speaker=speaker))
    assert item.dialogue[0].speaker == read
    assert type(item.dialogue[0].speaker) is int


@pytest.mark.parametrize("output", ["", " ", None, ...])
def test_a_hidden_label_is_none(tmp_path: Path, output: object) -> None:
    assert load(tmp_path, make_item(0, output=output))[0].label is None


@pytest.mark.parametrize("label", [0, 1, 2])
def test_labels_are_indices_of_options(tmp_path: Path, label: int) -> None:
    (item,) = load(tmp_path, make_item(0, output=f"{TASK.options[label]} "), labelled=True)
    assert item.label == label


def test_labels_may_be_there_where_they_are_not_asked_for(tmp_path: Path) -> None:
    items = load(tmp_path, make_item(0), make_item(1, output=""), labelled=False)
    assert [item.label for item in items] == [0, None]


def test_text_of_a_mac_is_composed_in_the_item_and_untouched_in_the_source(tmp_path: Path) -> None:
    decomposed = json.loads(unicodedata.normalize("NFD", json.dumps(make_item(0), ensure_ascii=False)))
    (item,) = load(tmp_path, decomposed)
    assert decomposed["input"]["category"] != "원인"
    (composed,) = load(tmp_path, make_item(0))
    assert item == composed
    assert item.dialogue_key == composed.dialogue_key
    assert item.source == decomposed
    assert predictions([item], [0])[0]["input"] == decomposed["input"]


@pytest.mark.parametrize("category", TASK.categories)
def test_categories_are_read_composed_and_stripped(tmp_path: Path, category: str) -> None:
    (item,) = load(tmp_path, make_item(0, category=unicodedata.normalize("NFD", category) + " "))
    assert item.category == category


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_marks_and_line_ends_of_other_systems_change_nothing(tmp_path: Path, mark: bytes, line_end: bytes) -> None:
    path = tmp_path / "data_dev.json"
    path.write_bytes(mark + dump_items([make_item(0), make_item(1)]).encode().replace(b"\n", line_end))
    assert [item.source for item in load_items(path)] == [make_item(0), make_item(1)]


def test_keys_we_do_not_know_are_kept(tmp_path: Path) -> None:
    raw = make_item(0, topic="날씨")
    raw["input"]["conversation"][0]["emotion"] = None
    assert predictions(load(tmp_path, raw), [0])[0] == raw


def test_the_largest_split_loads_in_no_time(tmp_path: Path) -> None:
    raw = [make_item(number) for number in range(800)]
    for item in raw:
        turns = [
            {"speaker": 1, "utterance": "그래서 어떻게 됐는지 말해 줘.", "utterance_id": f"x{turn}"}
            for turn in range(25)
        ]
        item["input"]["conversation"] += turns
    path = write(tmp_path, raw)
    start = time.perf_counter()
    assert len(load_items(path, labelled=True)) == 800
    assert time.perf_counter() - start < 2


# What is refused


PROBLEMS: list[tuple[dict[str, Any], list[str]]] = [
    (make_item(0, id=...), ["item 1, id: missing"]),
    (make_item(0, id=" "), ["id: found", "not blank"]),
    (make_item(0, id=True), ["id: found true"]),
    (make_item(0, input=...), ["input: missing"]),
    (make_item(0, input=[]), ["input: found []", "an object"]),
    (make_item(0, category=...), ["input.category: missing"]),
    (make_item(0, category="후행사긴"), ['found "후행사긴"', "원인, 후행사건, 전제, 동기, 반응", "'후행사건'?"]),
    (make_item(0, category=3), ["input.category: found 3"]),
    (make_item(0, conversation=...), ["input.conversation: missing"]),
    (make_item(0, conversation=[]), ["input.conversation: found []"]),
    (make_item(0, conversation=["안녕"]), ["turn 1", 'found "안녕"']),
    (make_item(0, reference_id=...), ["input.reference_id: missing"]),
    (make_item(0, reference_id=[]), ["input.reference_id: found []", "at least one"]),
    (make_item(0, reference_id={}), ["input.reference_id: found {}", "a list"]),
    (make_item(0, reference_id="d0.11"), ['input.reference_id: found "d0.11"', "Did you mean 'd0.1'?"]),
    (make_item(0, reference_id=["d0.11"]), ['found "d0.11"', "d0.1 to d0.5", "Did you mean 'd0.1'?"]),
    (make_item(0, reference_id=["d0.1", "d0.11"]), ['found "d0.11"']),
    (make_item(0, reference_id=[1]), ["input.reference_id: found 1"]),
    (make_item(0, inference_3=...), ["input.inference_3: missing"]),
    (make_item(0, inference_3=" \n"), ["input.inference_3: found", "not blank"]),
    (make_item(0, inference_3=None), ["input.inference_3: found null"]),
    (make_item(0, inference_1="같다.", inference_3="같다. "), ['inference_3: found "같다."', "same as inference_1"]),
    (make_item(0, output="inference_4"), ['output: found "inference_4"', "inference_1, inference_2, inference_3"]),
    (make_item(0, output=1), ["output: found 1"]),
    (make_item(0, inference_1="같다.", inference_3="같다.", output=""), ["the same as inference_1"]),
    (make_item(0, inference_2=True), ["input.inference_2: found true"]),
    (with_turn(0, 2, speaker=0), ["turn 3, speaker: found 0; allowed: 1 or 2"]),
    (with_turn(0, 2, speaker=-1), ["turn 3, speaker: found -1"]),
    (with_turn(0, 2, speaker=True), ["turn 3, speaker: found true"]),
    (with_turn(0, 2, speaker=1.5), ["turn 3, speaker: found 1.5"]),
    (with_turn(0, 2, speaker="화자1"), ['turn 3, speaker: found "화자1"']),
    (with_turn(0, 2, speaker=10**400), ["turn 3, speaker: found 1000"]),
    (with_turn(0, 2, speaker=...), ["turn 3, speaker: missing"]),
    (with_turn(0, 2, utterance=...), ["turn 3, utterance: missing"]),
    (with_turn(0, 2, utterance=False), ["turn 3, utterance: found false"]),
    (with_turn(0, 2, utterance=["네"]), ['turn 3, utterance: found ["네"]']),
    (with_turn(0, 2, utterance_id="d0.1"), ['turn 3, utterance_id: found "d0.1" a second time']),
]


@pytest.mark.parametrize(("raw", "expected"), PROBLEMS, ids=[words[0] for _, words in PROBLEMS])
def test_each_problem_names_file_item_field_found_and_allowed(
    tmp_path: Path, raw: dict[str, Any], expected: list[str]
) -> None:
    message = refused(tmp_path, raw)
    assert message.startswith(str(tmp_path / "data_train.json"))
    assert "cannot be used: 1 problem\n" in message
    (line,) = message.splitlines()[1:]
    assert line.startswith("  data_train.json: item 1")
    assert ("(made-0000)" in line) == (raw.get("id") == "made-0000")
    for words in expected:
        assert words in line


@pytest.mark.parametrize(
    ("found", "expected"),
    [("", 'turn 1, utterance_id: found ""'), ([], "turn 1, utterance_id: found []"), (..., "utterance_id: missing")],
)
def test_a_target_that_cannot_be_found_names_the_utterances_without_id(
    tmp_path: Path, found: object, expected: str
) -> None:
    message = refused(tmp_path, with_turn(0, 0, utterance_id=found))
    assert expected in message
    assert 'input.reference_id: found "d0.1"' in message


def test_a_mistyped_key_names_the_nearest(tmp_path: Path) -> None:
    raw = make_item(0)
    raw["input"]["referense_id"] = raw["input"].pop("reference_id")
    assert "input.reference_id: missing. Did you mean 'referense_id'?" in refused(tmp_path, raw)


def test_all_problems_of_a_file_are_told_at_once_in_its_order(tmp_path: Path) -> None:
    message = refused(
        tmp_path,
        make_item(0, category="이유", inference_1=""),
        make_item(1),
        make_item(2, reference_id=["d9.9"]),
        make_item(1, inference_1="다른 문항이다."),
        "줄",  # type: ignore[arg-type]  # not an item at all
        make_item(6, output=""),
        labelled=True,
    )
    lines = message.splitlines()
    assert lines[0].endswith("6 problems")
    assert [line.split(": ")[1] for line in lines[1:]] == [
        "item 1 (made-0000), input.category",
        "item 1 (made-0000), input.inference_1",
        "item 3 (made-0002), input.reference_id",
        "item 4 (made-0001), id",
        'item 5, found "줄"; allowed',
        "item made-0006, output",
    ]
    assert "item 2 has it already" in lines[4]


@pytest.mark.parametrize("more", [0, 1, 7])
def test_very_many_problems_are_counted(tmp_path: Path, more: int) -> None:
    message = refused(tmp_path, *(make_item(number, category="?") for number in range(PROBLEMS_SHOWN + more)))
    headline, *lines = message.splitlines()
    assert headline.endswith(f"{PROBLEMS_SHOWN + more} problems")
    assert all("input.category" in line for line in lines[:PROBLEMS_SHOWN])
    assert lines[PROBLEMS_SHOWN:] == ([f"  … and {more} more"] if more else [])


def test_a_labelled_split_without_any_label_looks_swapped(tmp_path: Path) -> None:
    write(tmp_path, [make_item(number, output="") for number in range(5)])
    with pytest.raises(UserError, match=r"no label in any of 5 items.*test file.*swapped") as caught:
        load_split(tmp_path, "train", labelled=True)
    assert len(str(caught.value).splitlines()) == 2


def test_some_missing_labels_are_named_one_by_one(tmp_path: Path) -> None:
    message = refused(tmp_path, make_item(0), make_item(1, output=...), make_item(2, output=""), labelled=True)
    assert "made-0001" in message
    assert "made-0002" in message
    assert "made-0000" not in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ["empty"]),
        ("\ufeff \n", ["empty"]),
        ("[]", ["the list is empty"]),
        ('{"id": "made-0000"}', ['found {"id": "made-0000"}', "a list of items"]),
        ("null", ["found null", "a list of items"]),
        ('{"id": "a"}\n{"id": "b"}\n', ["item 1 (a), input: missing", "item 2 (b), input: missing"]),
        ('{"id": "a"}\n{"id": "b"', ["line 2", "cut off"]),
        ('{"id": "a"},\n{"id": "b"}', ["Extra data at line 1, column 12", "one list of items"]),
        ('[{"id": "a"}]\n[{"id": "b"}]', ["Extra data at line 2, column 1", "one list of items"]),
        ('{"id": "a"}\n[1]', ["Extra data at line 2, column 1"]),
        ('{"meta": 1, "document": []}', ['Save the list under "document" alone']),
        ('[\n  {"id": "made-0000",', ["line 2, column 22", "cut off"]),
        ('[\n  {"id": "made-00', ["Unterminated string", "line 2", "cut off"]),
        ('[{"id": tru', ["column 9", "cut off"]),
        ('[{"id": "a",}]', ["line 1, column 1", "valid JSON"]),
        ('[{"id": NaN}]', ["NaN"]),
        ('[{"id": 1e999}]', ["1e999"]),
        ("[" * 100_000 + "]" * 100_000, ["not valid JSON"]),
    ],
)
def test_what_is_not_a_json_list_is_refused(tmp_path: Path, content: str, expected: list[str]) -> None:
    path = tmp_path / "data_test.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_items(path)
    for words in expected:
        assert words in str(caught.value)
    assert ("cut off" in str(caught.value)) == ("cut off" in expected)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = dump_items([make_item(0)]).rstrip().encode()
    path = tmp_path / "data_train.json"
    for end in range(1, len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="cut off"):
            load_items(path)


@pytest.mark.parametrize("encoding", ["euc-jp", "johab", "iso2022_kr"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "data_train.json"
    text = dump_items([make_item(0)]).replace("우산", "ウサン") if encoding == "euc-jp" else dump_items([make_item(0)])
    path.write_bytes(text.encode(encoding, "ignore") + b"\xff" * (encoding == "iso2022_kr"))
    with pytest.raises(UserError, match=r"not UTF-8: found byte 0x\w\w in line \d+. Save the file as UTF-8"):
        load_items(path)


def test_a_damaged_utf8_file_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "data_train.json"
    path.write_bytes(dump_items([make_item(0)]).encode().replace("비가".encode(), b"\xb0\xa1"))
    with pytest.raises(UserError, match="not UTF-8"):
        load_items(path)


@pytest.mark.parametrize("encoding", ["cp949", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_encodings_that_are_sure_are_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "data_train.json"
    path.write_bytes(dump_items([make_item(0), make_item(1)]).encode(encoding))
    assert [item.source for item in load_items(path)] == [make_item(0), make_item(1)]
    assert (oddity_note(path) or "").endswith(
        "carried on: encoding 1 (what is done with each: resource/data/README.md)"
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_file_of_two_or_four_bytes_a_character_is_refused_when_cut(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "data_train.json"
    whole = dump_items([make_item(0)]).rstrip().encode(encoding)
    for end in range(5, len(whole), 37):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="cut off"):
            load_items(path)


def test_a_key_given_twice_is_not_settled_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "data_train.json"
    text = dump_items([make_item(0), make_item(1)])
    path.write_text(text.replace('"output":', '"output": "inference_3", "output":', 1), "utf-8")
    with pytest.raises(UserError, match='found the key "output" more than once, with different values'):
        load_items(path)
    path.write_text(text.replace('"speaker": 2', '"speaker": 2, "speaker": 2'), "utf-8")
    assert [item.source for item in load_items(path)] == [make_item(0), make_item(1)]
    assert "key-twice 2" in (oddity_note(path) or "")
    path.write_text(text.replace('"speaker": 1', '"speaker": 1, "speaker": true', 1), "utf-8")  # equal to Python
    with pytest.raises(UserError, match="different values"):
        load_items(path)


def test_half_a_character_is_kept_as_it_stood_and_is_whole_for_the_model(tmp_path: Path) -> None:
    path = tmp_path / "data_train.json"
    raw = with_turn(0, 0, utterance="\ud83d 앗", note="\udfff")
    path.write_text(json.dumps([raw]), "utf-8")
    (item,) = load_items(path)
    assert item.dialogue[0].text == "\ufffd 앗"
    assert item.source == raw
    text = dump_items(predictions([item], [0]))
    assert "\\ud83d 앗" in text and json.loads(text.encode().decode()) == [raw]
    path.write_text(json.dumps([with_turn(0, 0, utterance="😀")]), "utf-8")
    assert load_items(path)[0].dialogue[0].text == "😀"
    assert oddity_note(path) is None


def test_half_a_character_in_an_id_is_refused_because_no_score_could_name_it() -> None:
    items, problems = parse_items(json.dumps([make_item(0, id="a\ud83d")]).encode(), "any")
    assert not items
    assert problems == ['any: item 1, id: found "a\\ud83d"; allowed: a text of whole characters that is not blank']


# What is odd, and carried on


def odd(*raw: dict[str, Any]) -> tuple[list[Item], list[tuple[str, str]]]:
    read = read_items(dump_items(list(raw)).encode(), "any")
    assert read.problems == []
    return read.items, [(one.kind, one.found) for one in read.oddities]


def test_a_target_named_twice_counts_once() -> None:
    (item,), found = odd(make_item(0, reference_id=["d0.4", "d0.2", "d0.4", "d0.4"]))
    assert item.targets == ("d0.4", "d0.2")
    assert found == [("target-twice", '"d0.4"')] * 2
    assert item.source["input"]["reference_id"] == ["d0.4", "d0.2", "d0.4", "d0.4"]


@pytest.mark.parametrize(("value", "read"), [("1", 1), (" 2 ", 2), (1.0, 1), ("02", 2)])
def test_a_speaker_is_the_number_however_it_is_written(value: object, read: int) -> None:
    (item,), found = odd(with_turn(0, 2, speaker=value))
    assert item.dialogue[2].speaker == read
    assert [kind for kind, _ in found] == ["speaker-spelling"]


def test_a_third_speaker_is_carried_on() -> None:
    (item,), found = odd(with_turn(0, 2, speaker="3"))
    assert item.dialogue[2].speaker == 3
    assert [kind for kind, _ in found] == ["speaker-spelling", "speaker-more"]


@pytest.mark.parametrize("category", ["원인 ", "\n원인", "원\u3000인", "\ufeff원인", "원인\u200b"])
def test_blanks_and_unseen_characters_in_a_category_are_said(category: str) -> None:
    (item,), found = odd(make_item(0, category=category))
    assert item.category == "원인"
    assert [kind for kind, _ in found] == ["category-spelling"]
    assert found[0][1].isprintable() and json.loads(found[0][1]) == category


def test_ids_may_be_numbers_on_either_side() -> None:
    raw = make_item(0, id=12, reference_id=[1])
    for number, turn in enumerate(raw["input"]["conversation"]):
        turn["utterance_id"] = str(number)
    (item,), found = odd(raw)
    assert (item.id, item.targets) == ("12", ("1",))
    assert [kind for kind, _ in found] == ["id-number", "target-spelling"]
    raw["input"]["conversation"][1]["utterance_id"] = 1
    (item,), found = odd(raw)
    assert [turn.id for turn in item.target_utterances] == ["1"]
    assert [kind for kind, _ in found] == ["id-number", "number"]


def test_an_id_and_its_text_are_the_same_id(tmp_path: Path) -> None:
    assert "id: found again, item 1 has it" in refused(tmp_path, make_item(0, id=7), make_item(1, id="7"))


def test_what_is_no_target_needs_no_id_of_its_own() -> None:
    raw = with_turn(0, 2, utterance_id=...)
    raw["input"]["conversation"][3]["utterance_id"] = "d0.2"
    (item,), found = odd(raw)
    assert [turn.id for turn in item.dialogue] == ["d0.1", "d0.2", "", "d0.2", "d0.5"]
    assert [kind for kind, _ in found] == ["utterance-id-missing", "utterance-id-twice"]
    assert len(item.target_utterances) == 1


def test_an_option_may_be_a_number_and_equals_its_text(tmp_path: Path) -> None:
    (item,), found = odd(make_item(0, inference_2=3))
    assert item.options[1] == "3" and item.source["input"]["inference_2"] == 3
    assert found == [("number", "input.inference_2: 3")]
    assert "the same as inference_1" in refused(tmp_path, make_item(0, inference_1="3", inference_2=3))


def test_a_copy_of_an_item_is_kept_once_whatever_the_order_of_its_keys() -> None:
    copied = dict(reversed(make_item(1).items()))
    items, found = odd(make_item(0), make_item(1), copied)
    assert [item.id for item in items] == ["made-0000", "made-0001"]
    assert found == [("item-twice", "as item 2")]


def test_an_item_alone_is_a_list_of_one(tmp_path: Path) -> None:
    path = write(tmp_path, make_item(0))
    assert [item.source for item in load_items(path)] == [make_item(0)]


def test_a_table_by_columns_is_read_only_where_every_column_has_every_row(tmp_path: Path) -> None:
    raw = [make_item(0), make_item(1)]
    columns = {key: {str(row): item[key] for row, item in enumerate(raw)} for key in raw[0]}
    assert [item.source for item in load_items(write(tmp_path, columns))] == raw
    del columns["output"]["1"]
    with pytest.raises(UserError, match="item 1, id: found"):
        load_items(write(tmp_path, columns))


def test_the_note_of_a_file_is_one_line_and_counts_items(tmp_path: Path) -> None:
    path = write(
        tmp_path, [with_turn(0, 2, utterance=""), with_turn(1, 2, speaker="1"), with_turn(2, 3, utterance=" ")]
    )
    assert oddity_note(path) == (
        f"{path}: odd, and carried on: speaker-spelling 1, utterance-blank 2 "
        "(what is done with each: resource/data/README.md)"
    )
    assert oddity_note(write(tmp_path, [make_item(0)])) is None
    assert oddity_note(tmp_path / "none.json") is None
    assert oddity_note(write(tmp_path, [make_item(0, id=3, category="?")])) is None


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path, [make_item(0)])
    monkeypatch.setattr("os.open", denied)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        load_items(path)


@pytest.mark.parametrize("labelled", [None, True])
def test_a_missing_file_says_what_is_there(tmp_path: Path, labelled: bool | None) -> None:
    write(tmp_path, [], "data_dev.json")
    with pytest.raises(UserError, match=r"data_test.json: no such file.*data_dev.json") as caught:
        load_split(tmp_path, "test", labelled)
    assert "python -m run.prepare_data" in str(caught.value)
    with pytest.raises(UserError, match=r"no such file.*data_dev.json"):
        load_items(tmp_path / "x.json")
    with pytest.raises(UserError, match="a folder, not a file"):
        load_items(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        load_split(tmp_path / "nowhere", "test")


def test_an_item_with_a_problem_is_never_among_the_sound_ones() -> None:
    raw = [make_item(0), make_item(1, category=""), make_item(0, category="전제")]
    items, problems = parse_items(dump_items(raw).encode(), "any")
    assert [item.id for item in items] == ["made-0000"]
    assert len(problems) == 2


# What is written


def test_predictions_fill_output_and_touch_nothing_else(tmp_path: Path) -> None:
    raw = [make_item(number, output="") for number in (5, 3, 4)]
    items = load(tmp_path, *raw)
    before = copy.deepcopy(items[0].source)
    filled = predictions(items, [2, 0, 1])
    assert [entry["id"] for entry in filled] == ["made-0005", "made-0003", "made-0004"]
    assert [entry["output"] for entry in filled] == ["inference_3", "inference_1", "inference_2"]
    assert [{**entry, "output": ""} for entry in filled] == raw
    assert list(filled[0]) == list(raw[0])
    filled[0]["input"]["conversation"][0]["utterance"] = "다른 글"
    assert items[0].source == before


def test_predictions_add_output_where_the_file_has_none(tmp_path: Path) -> None:
    (entry,) = predictions(load(tmp_path, make_item(0, output=...)), [1])
    assert entry == make_item(0, output="inference_2")


@pytest.mark.parametrize("answers", [[], [0, 1], [3], [-1]])
def test_predictions_want_one_option_for_each_item(tmp_path: Path, answers: list[int]) -> None:
    items = load(tmp_path, make_item(0))
    with pytest.raises(AssertionError):
        predictions(items, answers)


def test_dumped_text_is_readable_korean_with_a_final_newline() -> None:
    text = dump_items([make_item(0)])
    assert "우산도 없는데" in text
    assert text.startswith('[\n  {\n    "id"')
    assert text.endswith("\n]\n")


texts = st.text(st.characters(codec="utf-8"), max_size=20)


@st.composite
def raw_items(draw: st.DrawFn) -> dict[str, Any]:
    turns = draw(
        st.lists(
            st.tuples(
                st.sampled_from([1, 2, "1", "2"]),
                texts | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
            ),
            min_size=1,
            max_size=5,
        ).filter(lambda turns: any(str(text).strip() for _, text in turns))
    )
    options = draw(
        st.lists(
            texts.filter(str.strip), min_size=3, max_size=3, unique_by=lambda o: unicodedata.normalize("NFC", o).strip()
        )
    )
    ids = [f"u{turn}" for turn in range(len(turns))]
    item: dict[str, Any] = {
        "id": draw(texts.filter(str.strip)),
        "input": {
            "conversation": [
                {"speaker": speaker, "utterance": utterance, "utterance_id": utterance_id}
                for (speaker, utterance), utterance_id in zip(turns, ids, strict=True)
            ],
            "reference_id": draw(st.lists(st.sampled_from(ids), min_size=1, unique=True)),
            "category": draw(st.sampled_from(TASK.categories)),
            **dict(zip(TASK.options, options, strict=True)),
        },
        draw(texts.filter(lambda key: key not in ("id", "input"))): draw(texts),
    }
    item["output"] = draw(st.sampled_from([*TASK.options, ""]))
    return item


@settings(max_examples=60, deadline=None)
@given(st.lists(raw_items(), min_size=1, max_size=3, unique_by=lambda item: item["id"]), st.data())
def test_any_sound_items_survive_the_round_trip(raw: list[dict[str, Any]], data: st.DataObject) -> None:
    items, problems = parse_items(dump_items(raw).encode(), "any")
    assert problems == []
    assert [item.source for item in items] == raw
    answers = data.draw(st.lists(st.integers(0, 2), min_size=len(items), max_size=len(items)))
    again, problems = parse_items(dump_items(predictions(items, answers)).encode(), "any")
    assert problems == []
    assert [item.label for item in again] == answers
    assert [item.dialogue for item in again] == [item.dialogue for item in items]
    assert [item.options for item in again] == [item.options for item in items]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "d0.1", "inference_1", "원인"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["speaker", "utterance"]), inner),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["id", "input", "output", "conversation", "reference_id", "category", *TASK.options]), json_values
)
def test_no_json_value_in_any_field_breaks_the_loader(key: str, value: Any) -> None:
    items, problems = parse_items(dump_items([make_item(0, **{key: value})]).encode(), "any")
    assert bool(items) != bool(problems)


@pytest.mark.parametrize("encoding", ["utf-8", "cp949", "utf-16", "utf-32-be"])
def test_no_damage_to_a_file_breaks_the_loader(encoding: str) -> None:
    rng = random.Random(encoding)
    whole = dump_items([make_item(0), make_item(1)]).encode(encoding)
    for _ in range(150):
        content = bytearray(whole[: rng.randint(0, len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(rng.randint(1, 6) if content else 0):
            content[rng.randrange(len(content))] = rng.randrange(256)
        items, problems = parse_items(bytes(content), "any")
        assert items or problems
        assert all("\n" not in line and line.startswith("any: ") for line in problems)


def test_a_file_of_another_kind_is_not_read_to_its_end() -> None:
    """A small zip can hold many millions of entries, and a line for each would fill the memory."""
    problems = parse_items(b"[" + b"0," * 40_000 + b"0]", "data_train.json")[1]
    assert len(problems) == 1_001 and problems[-1].startswith("data_train.json: item 1001 and those after it were")


# Another task


def test_items_of_another_task_come_and_go() -> None:
    with working_on(FOUR):
        raw = [make_four(number) for number in range(4)]
        items, problems = parse_items(dump_items(raw).encode(), "any")
        assert not problems and [item.label for item in items] == [0, 1, 2, 3]
        hidden = [make_four(number, output="") for number in range(4)]
        items, _ = parse_items(dump_items(hidden).encode(), "any")
        assert predictions(items, [3, 0, 1, 2]) == [
            make_four(number, output=FOUR.options[answer]) for number, answer in enumerate((3, 0, 1, 2))
        ]
        with pytest.raises(AssertionError):
            predictions(items[:1], [4])
        assert missing_labels(items[:1], "any")[0].startswith(
            "any: output: found no label in any of 1 items; allowed: Choice_1, Choice_2, Choice_3, Choice_4 in each. "
        )
    items, problems = parse_items(dump_items(raw).encode(), "any")
    assert not items and any("allowed: 원인, 후행사건, 전제, 동기, 반응" in line for line in problems)


def test_cp949_is_known_by_a_korean_category_alone() -> None:
    text = dump_items([make_four(0)])
    with working_on(FOUR):
        assert "not UTF-8" in parse_items(text.encode("cp949"), "any")[1][0]
    with working_on(dataclasses.replace(FOUR, categories=("까닭", "결과"))):
        content = dump_items([make_four(0, category="까닭")]).encode("cp949")
        assert parse_items(content, "any")[1] == []


# The small ones


def test_split_paths_and_digests(tmp_path: Path) -> None:
    path = split_path(tmp_path, "dev")
    assert path == tmp_path / "data_dev.json"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(AssertionError):
        split_path(tmp_path, "valid")


def test_data_and_records_stay_light() -> None:
    code = (
        "import src.data, src.runs.record, sys; print({'torch', 'transformers', 'scipy', 'numpy'} & set(sys.modules))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "set()"
    )


def test_marks_upon_marks_are_left_alone() -> None:
    text = "a" + "\u0301\u0327" * 50_000
    started = time.thread_time()
    (item,), problems = parse_items(json.dumps([make_item(0, inference_1=text)]).encode(), "f")
    assert not problems and item.options[0] == text and time.thread_time() - started < 2


def test_a_dialogue_without_an_end_is_refused() -> None:
    turn = {"speaker": 1, "utterance": "x", "utterance_id": "u"}
    for changes, told in (
        ({"conversation": [turn] * 5_001}, "input.conversation: found 5,001 utterances; allowed: 5,000"),
        ({"reference_id": ["u"] * 5_001}, "input.reference_id: found 5,001 ids; allowed: 5,000"),
    ):
        _, problems = parse_items(json.dumps([make_item(0, **changes)]).encode(), "f")
        assert any(told in line for line in problems)


def test_a_number_that_would_be_changed_is_refused_and_long_ids_are_not() -> None:
    item = json.dumps(make_item(0))
    sound, problems = parse_items(
        f"[{item.replace(chr(34) + 'made-0000' + chr(34), '12345678901234567890')}]".encode(), "f"
    )
    assert not problems and sound[0].id == "12345678901234567890"
    _, problems = parse_items(f'[{item[:-1]}, "more": 0.12345678901234567890}}]'.encode(), "f")
    assert "would become 0.12345678901234568" in problems[0]
