"""The tables in resource/data/README.md: for each kind an example, which must fare as the table says."""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from run.prepare_data import main
from src.console.cli import UserError
from src.data import load_split
from src.files.reading import MOST_BYTES
from src.items.oddities import KINDS
from tests.conftest import make_item
from tests.official_shape import unpacked, zip_of, zipped_with_raw_names

HEADINGS = {
    "README.md": ("거절", "알리고 계속", "말없이 계속"),
    "README.en.md": ("Refused", "Reported", "Passes"),
}
"""Page → what it calls the kinds that are refused, those that are told, and those that pass without a word."""

Splits = dict[str, Any]


def splits() -> Splits:
    """Three splits without anything odd; the items of train are 0 to 5, of dev 30 to 32, of test 60 and 61."""
    return {
        "train": [make_item(number) for number in range(6)],
        "dev": [make_item(number) for number in range(30, 33)],
        "test": [make_item(number, output="") for number in (60, 61)],
    }


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def files_of(all_splits: Mapping[str, Any] | None = None, **changes: bytes) -> dict[str, bytes]:
    found = {f"data_{split}.json": as_json(value) for split, value in (all_splits or splits()).items()}
    return found | {f"data_{split}.json": content for split, content in changes.items()}


def with_item(**changes: Any) -> dict[str, bytes]:
    """Item 1 of train with these changes (`tests.conftest.make_item`); its label is inference_2."""
    made = splits()
    made["train"][1] = make_item(1, **changes)
    return files_of(made)


def with_turn(turn: int, **changes: Any) -> dict[str, bytes]:
    """Item 1 of train with these changes of a turn; its target is turn 1 (from 0), of the id d0.2."""
    made = splits()
    entry = made["train"][1]["input"]["conversation"][turn]
    entry.update(changes)
    for key in [key for key, value in changes.items() if value is ...]:
        del entry[key]
    return files_of(made)


def edited(old: str, new: str) -> dict[str, bytes]:
    """Train with its text changed once."""
    text = as_json(splits()["train"]).decode()
    assert old in text
    return files_of(train=text.replace(old, new, 1).encode())


def flagged(content: bytes, offset_in_directory: int, value: bytes) -> bytes:
    """A zip with bytes changed in each entry of its directory."""
    for found in re.finditer(b"PK\1\2", content):
        start = found.start() + offset_in_directory
        content = content[:start] + value + content[start + len(value) :]
    return content


def table_of(items: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {key: {str(number): item[key] for number, item in enumerate(items)} for key in items[0]}


def swapped() -> dict[str, bytes]:
    made = splits()
    made["train"], made["test"] = made["test"], made["train"]
    return files_of(made)


def in_two_splits(**changes: Any) -> dict[str, bytes]:
    made = splits()
    made["dev"][0] = make_item(2, **changes)
    return files_of(made)


def said_twice() -> dict[str, bytes]:
    made = splits()
    made["train"].append(make_item(1))
    return files_of(made)


def other_with_the_id() -> dict[str, bytes]:
    made = splits()
    made["train"].append(make_item(1, category="전제"))
    return files_of(made)


PLAIN = splits()["train"][1]["input"]
NFD = unicodedata.normalize("NFD", PLAIN["inference_1"])

REFUSALS: dict[str, Callable[[], Any]] = {
    "not-json": lambda: files_of(train=as_json(splits()["train"])[:-40]),
    "not-a-list": lambda: files_of({**splits(), "train": {"data": splits()["train"]}}),
    "encoding-unknown": lambda: files_of(train=as_json(splits()["train"]).replace("화".encode(), b"\xff\xfe")),
    "key-differs": lambda: edited('"id": "made-0001"', '"id": "made-0001", "id": "other"'),
    "id-missing": lambda: with_item(id=" "),
    "id-twice": other_with_the_id,
    "part-missing": lambda: with_item(inference_2=...),
    "category-unknown": lambda: with_item(category="결론"),
    "speaker-unknown": lambda: with_turn(2, speaker=0),
    "dialogue-blank": lambda: with_item(
        conversation=[{"speaker": 1, "utterance": " ", "utterance_id": "d0.2"}], reference_id=["d0.2"]
    ),
    "target-unknown": lambda: with_item(reference_id=["d0.2", "d9.9"]),
    "target-ambiguous": lambda: with_turn(3, utterance_id="d0.2"),
    "option-blank": lambda: with_item(inference_3=" \n"),
    "options-same": lambda: with_item(inference_1="같다.", inference_2="같다. "),
    "label-unknown": lambda: with_item(output="2"),
    "label-missing": lambda: with_item(output=""),
    "splits-swapped": swapped,
    "splits-same": lambda: files_of({**splits(), "dev": splits()["train"]}),
    "two-files": lambda: files_of() | {"old/train.json": as_json(splits()["train"][:3])},
    "no-split": lambda: {"part_1.json": as_json(splits()["train"]), "읽어.txt": b""},
    "zip-damaged": lambda: zip_of(files_of())[:-60],
    "zip-unknown": lambda: flagged(zip_of(files_of()), 10, b"\x62\0"),
    "zip-encrypted": lambda: flagged(zip_of(files_of()), 8, b"\1\0"),
    "zip-large": lambda: flagged(zip_of(files_of()), 24, (MOST_BYTES + 1).to_bytes(4, "little")),
    "zip-deep": lambda: zip_of({"a.zip": zip_of({"b.zip": zip_of(files_of())})}),
}

# What the message says, so that nothing is refused for another reason.
WORDS = {
    "not-json": "it is cut off",
    "not-a-list": 'Save the list under "data" alone',
    "encoding-unknown": "not UTF-8: found byte 0xff",
    "key-differs": 'the key "id" more than once, with different values',
    "id-missing": "id: found",
    "id-twice": "id: found again",
    "part-missing": "input.inference_2: missing",
    "category-unknown": "input.category: found",
    "speaker-unknown": "speaker: found 0",
    "dialogue-blank": "1 blank utterances",
    "target-unknown": 'reference_id: found "d9.9"',
    "target-ambiguous": 'found "d0.2" a second time',
    "option-blank": "input.inference_3: found",
    "options-same": "the same as inference_1",
    "label-unknown": 'output: found "2"',
    "label-missing": "output: found no label",
    "splits-swapped": "train and test look swapped",
    "splits-same": "is it the same file?",
    "two-files": "more than one file for a split",
    "no-split": "no split in",
    "zip-damaged": "damaged zip",
    "zip-unknown": "not known here",
    "zip-encrypted": "is encrypted",
    "zip-large": "found 50,000,001 bytes",
    "zip-deep": "a zip in a zip in a zip",
}

ODD: dict[str, Callable[[], Any]] = {
    "encoding": lambda: files_of(train=as_json(splits()["train"]).decode().encode("utf-16")),
    "one-object-a-line": lambda: files_of(train=b"\n".join(map(as_json, splits()["train"]))),
    "columns": lambda: files_of({**splits(), "train": table_of(splits()["train"])}),
    "file-twice": lambda: files_of() | {"old/train.json": as_json(splits()["train"])},
    "not-used": lambda: files_of() | {"sample.json": b"[]"},
    "item-twice": said_twice,
    "key-twice": lambda: edited('"category": "반응"', '"category": "반응", "category": "반응"'),
    "unknown-key": lambda: with_item(topic="화분"),
    "id-number": lambda: with_item(id=17),
    "number": lambda: with_turn(2, utterance=7),
    "decomposed": lambda: with_item(inference_1=NFD),
    "half-character": lambda: edited("잎이 다", "잎이\\ud83d 다"),
    "speaker-spelling": lambda: with_turn(2, speaker="1"),
    "speaker-more": lambda: with_turn(2, speaker=3),
    "utterance-blank": lambda: with_turn(2, utterance=" "),
    "utterance-null": lambda: with_turn(2, utterance=None),
    "utterance-id-missing": lambda: with_turn(2, utterance_id=...),
    "utterance-id-twice": lambda: with_turn(3, utterance_id="d0.3"),
    "target-alone": lambda: with_item(reference_id="d0.2"),
    "target-twice": lambda: with_item(reference_id=["d0.2", "d0.2"]),
    "target-spelling": lambda: with_item(reference_id=["d0.2 "]),
    "target-blank": lambda: with_turn(1, utterance=""),
    "category-spelling": lambda: with_item(category="후행 사건\u200b"),
    "option-blanks": lambda: with_item(inference_3="끝에 빈칸 "),
    "options-equal": lambda: with_item(inference_1="같다.", inference_3="같다."),
    "label-spelling": lambda: with_item(output="Inference_2 "),
    "id-in-two-splits": lambda: in_two_splits(category="동기"),
    "item-in-two-splits": in_two_splits,
}

FINE: dict[str, Callable[[], Any]] = {
    "mark": lambda: files_of(train=b"\xef\xbb\xbf" + as_json(splits()["train"])),
    "line-ends": lambda: files_of(train=as_json(splits()["train"]).replace(b"\n", b"\r\n")),
    "label-hidden": lambda: files_of({**splits(), "test": [make_item(60, output=...), make_item(61, output=None)]}),
    "label-shown": lambda: files_of({**splits(), "test": [make_item(60), make_item(61)]}),
    "text": lambda: with_turn(2, utterance="첫 줄\n둘째 줄 😀 name1 \u200b\ue000 {{ x }}"),
    "target-order": lambda: with_item(reference_id=["d0.4", "d0.2"]),
    "reasoning": lambda: with_item(reasoning="물을 주지 않았으니 잎이 말랐다."),
    "dialogue-shared": lambda: in_two_splits(id="other", category="동기"),
    "mac-twins": lambda: zip_of(files_of() | {"__MACOSX/._data_train.json": b"\0\5", "._data_dev.json": b"\0"}),
    "names": lambda: {f"대화/{name}".encode("cp949"): content for name, content in files_of().items()},
    "inner-zip": lambda: zip_of({"안/자료.zip": zip_of(files_of())}),
}

# An example has another kind with it where it cannot be had alone.
WITH = {"target-blank": {"utterance-blank"}}


def tables(page: str) -> dict[str, list[str]]:
    """Heading → the kinds in the table below it."""
    parts = (Path("resource/data") / page).read_text(encoding="utf-8").split("\n### ")[1:]
    return {part.splitlines()[0]: re.findall(r"^\| `([a-z-]+)` \|", part, re.MULTILINE) for part in parts}


def given(tmp_path: Path, example: Any) -> Path:
    """The example as a folder, or as a zip where it is one."""
    path = tmp_path / "given.zip"
    if isinstance(example, bytes):
        path.write_bytes(example)
    elif all(isinstance(name, bytes) for name in example):
        zipped_with_raw_names(path, example)
    else:
        path = unpacked(tmp_path / "given", example)
    return path


def said(printed: str) -> set[str]:
    found = set(re.findall(r"^  ([a-z-]+): \d+ (?:item|file)s?: ", printed, re.MULTILINE))
    return found | ({"not-used"} if "not used" in printed else set())


@pytest.mark.parametrize("page", HEADINGS)
def test_the_tables_list_just_the_kinds_that_there_are(page: str) -> None:
    assert tables(page) == dict(zip(HEADINGS[page], (list(REFUSALS), list(ODD), list(FINE)), strict=True))
    assert set(ODD) == {*KINDS, "not-used"}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_the_table_calls_refused_is_refused_in_words(tmp_path: Path, kind: str) -> None:
    path = given(tmp_path, REFUSALS[kind]())
    with pytest.raises(UserError) as caught:
        main([str(path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    assert WORDS[kind] in str(caught.value)
    assert len([line for line in str(caught.value).splitlines() if line.strip()]) <= 4


@pytest.mark.parametrize("kind", ODD)
def test_what_the_table_calls_said_is_carried_on_and_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = given(tmp_path, ODD[kind]())
    main([str(path), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert said(printed) == {kind} | WITH.get(kind, set())
    assert [len(load_split(tmp_path / "out", split)) for split in ("train", "dev", "test")] == [6, 3, 2]


@pytest.mark.parametrize("kind", FINE)
def test_what_the_table_calls_silent_is_carried_on_silently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = given(tmp_path, FINE[kind]())
    main([str(path), "--out", str(tmp_path / "out")])
    assert said(capsys.readouterr().out) == set()
    assert [len(load_split(tmp_path / "out", split)) for split in ("train", "dev", "test")] == [6, 3, 2]


def test_a_folder_without_anything_odd_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(given(tmp_path, files_of())), "--out", str(tmp_path / "out")])
    assert "odd" not in capsys.readouterr().out
