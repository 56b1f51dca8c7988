import json
import os
import struct
import subprocess
import sys
import unicodedata
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from run.prepare_data import main
from src.console.cli import UserError
from src.data import SPLITS, dump_items, load_split, predictions
from src.files.reading import MOST_BYTES
from tests.conftest import make_item
from tests.made_task import FOUR, TASK_FILE, make_four, working_on
from tests.official_shape import (
    load_json,
    official_files,
    unpacked,
    write_official_zip,
    zip_of,
    zipped_with_raw_names,
)

ROOT = Path(__file__).parent.parent.parent
NAME = "대화맥락추론_{}.json"


def official() -> dict[str, bytes]:
    """Three splits by name, BOM and CRLF as the real ones: a dialogue of train is also in dev, test has no labels."""
    shared = make_item(5)["input"]
    splits: dict[str, list[dict[str, Any]]] = {
        "train": [make_item(number) for number in range(6)],
        "dev": [make_item(100, input=shared), make_item(12), make_item(13, reference_id=["d4.1", "d4.3"])],
        "test": [make_item(number, output="") for number in (21, 22)],
    }
    return {
        NAME.format(split): b"\xef\xbb\xbf" + dump_items(items).encode().replace(b"\n", b"\r\n")
        for split, items in splits.items()
    }


def zipped(path: Path, files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    path.write_bytes(zip_of(files, compression))
    return path


def made(out: Path) -> list[str]:
    return sorted(entry.name for entry in out.iterdir()) if out.exists() else []


def refused(*argv: object, out: Path) -> str:
    before = made(out)
    with pytest.raises(UserError) as caught:
        main([*map(str, argv), "--out", str(out)])
    assert made(out) == before, "something was written in spite of the error"
    return str(caught.value)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "resource" / "data"


ALL = ["data_dev.json", "data_test.json", "data_train.json"]


# Where the files may lie


def test_the_official_zip_becomes_three_checked_files(tmp_path: Path, out: Path, capsys: Any) -> None:
    archive = zipped(tmp_path / "대화맥락추론_데이터.zip", official())
    assert main([str(archive), "--out", str(out)]) == 0
    assert made(out) == ALL
    for split in SPLITS:
        written = (out / f"data_{split}.json").read_bytes()
        assert written.startswith(b"[\n")
        assert b"\r" not in written
        assert json.loads(written) == json.loads(official()[NAME.format(split)].decode("utf-8-sig"))
        assert load_split(out, split, labelled=split != "test")
    shown = capsys.readouterr().out
    assert f"data_train.json  from {archive}: 대화맥락추론_train.json" in shown
    assert "missing" not in shown


@pytest.mark.parametrize(
    "names",
    [
        {split: NAME.format(split) for split in SPLITS},
        {split: f"nikluge-추론-{split}.json" for split in SPLITS},
        {split: f"data_{split}.json" for split in SPLITS},
        {split: f"{split.upper()}.JSON" for split in SPLITS},
        {split: f"자료/latest dev train/추론{split}(최종).json" for split in SPLITS},
        {split: unicodedata.normalize("NFD", f"대화/{NAME.format(split)}") for split in SPLITS},
        {split: f"../../../tmp/{NAME.format(split)}" for split in SPLITS},
        {split: f"대화\\{NAME.format(split)}" for split in SPLITS},
    ],
)
def test_the_split_word_in_the_name_decides(tmp_path: Path, out: Path, capsys: Any, names: dict[str, str]) -> None:
    files = {names[split]: official()[NAME.format(split)] for split in SPLITS}
    main([str(zipped(tmp_path / "x.zip", files)), "--out", str(out)])
    assert made(out) == ALL
    assert unicodedata.normalize("NFC", names["dev"]).replace("\\", "/") in capsys.readouterr().out
    if ".." not in names["dev"]:
        folder = unpacked(tmp_path / "unpacked", files)
        again = tmp_path / "again"
        main([str(folder), "--out", str(again)])
        assert [(again / name).read_bytes() for name in ALL] == [(out / name).read_bytes() for name in ALL]


@pytest.mark.parametrize(
    ("encoding", "form"), [("cp949", "NFC"), ("utf-8", "NFC"), ("utf-8", "NFD")], ids=["windows", "linux", "mac"]
)
def test_names_of_other_systems_are_read_as_they_were_meant(
    tmp_path: Path, out: Path, capsys: Any, encoding: str, form: Any
) -> None:
    files = {
        unicodedata.normalize(form, f"문항/{name.removeprefix('대화맥락추론')}").encode(encoding): content
        for name, content in official().items()
    }
    main([str(zipped_with_raw_names(tmp_path / "x.zip", files)), "--out", str(out)])
    assert made(out) == ALL
    assert "x.zip: 문항/_dev.json" in capsys.readouterr().out


def test_resource_forks_of_a_mac_and_hidden_files_are_no_candidates(tmp_path: Path, out: Path, capsys: Any) -> None:
    files = official()
    for name in list(files):
        files |= {
            f"__MACOSX/._{name}": b"\0\5",
            f"__MACOSX/{name}": b"\0\5",
            f"._{name}": b"\0\5",
            f".cache/{name}": b"[]",
        }
    main([str(zipped(tmp_path / "x.zip", files)), "--out", str(out)])
    main([str(unpacked(tmp_path / "folder", files)), "--out", str(out)])
    assert made(out) == ALL
    assert "not used" not in capsys.readouterr().out


def test_json_files_may_be_named_one_by_one_and_some_may_be_missing(tmp_path: Path, out: Path, capsys: Any) -> None:
    folder = unpacked(tmp_path / "x", official())
    main([str(folder / NAME.format("train")), "--out", str(out)])
    assert made(out) == ["data_train.json"]
    shown = capsys.readouterr().out
    assert "missing: dev. Give its file" in shown
    assert "missing: test. Give its file" in shown

    dev, test = folder / NAME.format("dev"), folder / NAME.format("test")
    main([str(dev), str(test), str(dev), os.path.relpath(dev), "--out", str(out)])
    assert made(out) == ALL
    assert f"missing: train. {out / 'data_train.json'} stays as it was" in capsys.readouterr().out


def test_files_that_name_no_split_are_left_aside_and_said_so(tmp_path: Path, out: Path, capsys: Any) -> None:
    folder = unpacked(tmp_path / "x", official() | {"sample.json": b"{}", "train_and_dev.json": b"{}", "읽어.txt": b""})
    main([str(folder), "--out", str(out)])
    assert made(out) == ALL
    shown = capsys.readouterr().out
    assert "not used (no one split word in its name)" in shown
    assert "sample.json" in shown
    assert "train_and_dev.json" in shown


def test_running_it_again_on_its_own_folder_changes_nothing(tmp_path: Path, out: Path) -> None:
    unpacked(out, official())
    main([str(out), "--out", str(out)])
    first = [(out / name).read_bytes() for name in ALL]
    main([str(out), "--out", str(out)])
    assert [(out / name).read_bytes() for name in ALL] == first
    for name in official():
        (out / name).unlink()
    main([str(out), "--out", str(out)])
    assert [(out / name).read_bytes() for name in ALL] == first


def test_the_text_of_the_files_is_kept(tmp_path: Path, out: Path) -> None:
    odd = make_item(21, output="", inference_2="끝에 빈칸 ", note={"쪽": [1, 2.5, None]})
    odd["input"]["conversation"][0]["utterance"] = 7
    odd["input"]["conversation"][1]["utterance"] = ""
    odd["input"]["conversation"][2]["utterance"] = unicodedata.normalize("NFD", "줄\n바꿈 name1")
    path = tmp_path / "test.json"
    path.write_text(json.dumps([odd]), "utf-8")
    main([str(path), "--out", str(out)])
    assert json.loads((out / "data_test.json").read_text("utf-8")) == [odd]


def test_a_labelled_test_file_keeps_its_labels(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "test.json"
    path.write_text(dump_items([make_item(1), make_item(2)]), "utf-8")
    main([str(path), "--out", str(out)])
    assert [item.label for item in load_split(out, "test", labelled=True)] == [1, 2]


def test_the_table_counts_what_was_found(tmp_path: Path, out: Path, capsys: Any) -> None:
    main([str(zipped(tmp_path / "x.zip", official())), "--out", str(out)])
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        name, *cells = [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]
        rows[name] = cells
    assert rows[""] == ["train", "dev", "test"]
    assert rows["items"] == ["6", "3", "2"]
    assert rows["dialogues"] == ["2", "2", "1"]
    assert rows["also in train"] == ["", "1", ""]
    assert rows["also in dev"] == ["1", "", ""]
    assert "also in test" not in rows
    assert [rows[f"label inference_{number}"] for number in (1, 2, 3)] == [
        ["2", "1", "0"],
        ["2", "2", "0"],
        ["2", "0", "0"],
    ]
    assert rows["label hidden"] == ["0", "0", "2"]
    assert [rows[category][0] for category in ("원인", "후행사건", "전제", "동기", "반응")] == ["2", "1", "1", "1", "1"]
    assert rows["1 target utterance"] == ["6", "2", "2"]
    assert rows["2 target utterances"] == ["0", "1", "0"]


def test_a_corpus_of_another_task(tmp_path: Path, out: Path, capsys: Any) -> None:
    folder = unpacked(tmp_path / "x", {"train.json": dump_items([make_four(number) for number in range(5)]).encode()})
    (tmp_path / "task.yaml").write_text(TASK_FILE, encoding="utf-8")
    with working_on(FOUR):  # and afterwards on the shipped one
        main([str(folder), "--out", str(out), "--task", str(tmp_path / "task.yaml")])
        printed = capsys.readouterr().out
        counts = {
            line.strip("│ ").split("│")[0].strip(): line.strip("│ ").split("│")[-1].strip()
            for line in printed.splitlines()
        }
        assert [counts[f"label Choice_{number}"] for number in (1, 2, 3, 4)] == ["2", "1", "1", "1"]
        assert (counts["Cause"], counts["What follows"]) == ("3", "2")
        assert [item.label for item in load_split(out, "train")] == [0, 1, 2, 3, 0]
    with pytest.raises(UserError, match="allowed: 원인, 후행사건"):
        main([str(folder), "--out", str(out)])


# The official download, with everything odd that it has


@pytest.mark.parametrize(
    ("system", "hidden"),
    [
        ("mac", ""),
        ("windows", None),
        *(
            pytest.param(system, hidden, marks=pytest.mark.thorough)
            for system, hidden in (("linux", ""), ("linux", None), ("mac", None), ("windows", ""))
        ),
    ],
)
def test_the_official_shape_goes_through_and_its_text_comes_out_unchanged(
    tmp_path: Path, out: Path, capsys: Any, system: str, hidden: str | None
) -> None:
    archive = write_official_zip(tmp_path / "대화맥락추론_데이터.zip", small=True, system=system, hidden=hidden)
    assert main([str(archive), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for split in SPLITS:
        official = load_json(official_files(small=True, hidden=hidden)[f"대화맥락추론_{split}.json"])
        items = load_split(out, split, labelled=split != "test")
        filled = predictions(items, [1] * len(items))
        assert [{**one, "output": "inference_2"} for one in official] == filled
        assert [list(one["input"]) for one in official] == [list(one["input"]) for one in filled]
        assert f"{archive}: 대화맥락추론/대화맥락추론_{split}.json" in printed
    told = [line for line in printed.splitlines() if line.startswith("  ") and " (first: " in line]
    assert [line.split(": ")[:2] for line in told] == [
        ["  number", "4 items"],
        ["  decomposed", "1 item"],
        ["  utterance-blank", "12 items"],
        ["  target-twice", "1 item"],
        ["  option-blanks", "24 items"],
    ]
    assert "dev.json: item " in told[3] and "shape.dev." in told[3]
    assert "not used" not in printed


@pytest.mark.slow
def test_the_official_shape_has_the_official_sizes(tmp_path: Path, out: Path, capsys: Any) -> None:
    main([str(write_official_zip(tmp_path / "x.zip")), "--out", str(out)])
    printed = capsys.readouterr().out
    splits = {split: load_split(out, split) for split in SPLITS}
    assert {split: len(items) for split, items in splits.items()} == {"train": 758, "dev": 151, "test": 605}
    keys = {split: {item.dialogue_key for item in items} for split, items in splits.items()}
    assert {split: len(found) for split, found in keys.items()} == {"train": 163, "dev": 52, "test": 209}
    assert len(keys["train"] & keys["dev"]) == 1 and not keys["test"] & (keys["train"] | keys["dev"])
    turns = {item.dialogue_key: item.dialogue for items in splits.values() for item in items}.values()
    assert {len(dialogue) for dialogue in turns} == set(range(12, 31))
    assert sum(not turn.text.strip() for dialogue in turns for turn in dialogue) == 28 + 1
    assert "target-twice: 1 item: " in printed and "number: 5 items: " in printed
    again = write_official_zip(tmp_path / "again.zip")
    assert again.read_bytes() == (tmp_path / "x.zip").read_bytes()


# What is odd among files, and carried on


def test_a_zip_within_the_zip_is_read_where_the_outer_one_has_no_file(tmp_path: Path, out: Path, capsys: Any) -> None:
    files = official()
    train = NAME.format("train")
    inner = zipped(tmp_path / "inner.zip", files | {train: b"[]"}).read_bytes()
    outer = zipped(tmp_path / "x.zip", {train: files[train], "대화/안.zip": inner})
    main([str(outer), "--out", str(out)])
    printed = capsys.readouterr().out
    assert f"from {outer}: 대화맥락추론_train.json" in printed
    assert f"from {outer}: 대화/안.zip: 대화맥락추론_dev.json" in printed
    assert [len(load_split(out, split)) for split in SPLITS] == [6, 3, 2]


def test_a_zip_within_that_cannot_be_read_hinders_nothing(tmp_path: Path, out: Path, capsys: Any) -> None:
    whole = zipped(tmp_path / "inner.zip", {"a.txt": b"x" * 1000}).read_bytes()
    files = official() | {"cut.zip": whole[:-20], "no.zip": b"no zip at all", "__MACOSX/._cut.zip": b"\0"}
    main([str(zipped(tmp_path / "x.zip", files)), "--out", str(out)])
    printed = capsys.readouterr().out
    assert printed.count("not used: ") == 2
    assert "cut.zip is a damaged zip" in printed and "no.zip is a damaged zip" in printed
    del files[NAME.format("train")], files[NAME.format("dev")], files[NAME.format("test")]
    message = refused(zipped(tmp_path / "y.zip", files), out=out)
    assert "Found JSON files: none" in message and "cut.zip is a damaged zip" in message


def test_the_same_items_in_two_files_are_one_file(tmp_path: Path, out: Path, capsys: Any) -> None:
    files = official()
    again = dump_items(load_json(files[NAME.format("dev")])).encode()  # no BOM, other line ends
    folder = unpacked(tmp_path / "x", files | {"나중/data_dev.json": again})
    main([str(folder), "--out", str(out)])
    assert f"file-twice: 1 file: the same items in more than one file; the first is taken (first: {folder}" in (
        capsys.readouterr().out
    )
    assert len(load_split(out, "dev")) == 3


def test_ids_that_splits_share_for_other_items_are_said(tmp_path: Path, out: Path, capsys: Any) -> None:
    files = official() | {
        NAME.format("train"): dump_items([make_item(number, id=number) for number in range(6)]).encode(),
        NAME.format("dev"): dump_items([make_item(30 + number, id=number) for number in range(3)]).encode(),
    }
    main([str(zipped(tmp_path / "x.zip", files)), "--out", str(out)])
    printed = capsys.readouterr().out
    assert "id-in-two-splits: 3 items" in printed and "id-number: 9 items" in printed
    assert "item-in-two-splits" not in printed


def test_files_of_one_item_a_line_may_be_called_so(tmp_path: Path, out: Path) -> None:
    lines = "\n".join(json.dumps(make_item(number)) for number in range(3)).encode()
    folder = unpacked(tmp_path / "x", {"train.jsonl": lines, "dev.NDJSON": lines.replace(b"made-", b"more-")})
    main([str(folder), "--out", str(out)])
    main([str(folder / "train.jsonl"), "--out", str(out)])
    assert load_split(out, "train")[2].source == make_item(2)


def test_names_that_windows_wrote_and_linux_unpacked_are_shown_as_they_were_meant(
    tmp_path: Path, out: Path, capsys: Any
) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    for name, content in official().items():
        Path(os.fsdecode(bytes(folder) + b"/" + name.encode("cp949"))).write_bytes(content)
    main([str(folder), "--out", str(out)])
    printed = capsys.readouterr().out
    assert printed.encode("utf-8") and f"from {folder}/대화맥락추론_train.json" in printed


# What is refused, with nothing written


def test_all_problems_of_all_files_are_told_at_once(tmp_path: Path, out: Path) -> None:
    files = official()
    files[NAME.format("train")] = dump_items([make_item(0, category="이유"), make_item(1, output="")]).encode()
    files[NAME.format("dev")] = files[NAME.format("dev")][:-30]
    files[NAME.format("test")] = dump_items([make_item(1, output="", reference_id=["d0.9"])]).encode()
    message = refused(zipped(tmp_path / "x.zip", files), out=out)
    assert message.startswith("nothing was written.\n")
    assert "x.zip: 대화맥락추론_train.json: 2 problems\n" in message
    assert 'item 1 (made-0000), input.category: found "이유"' in message
    assert "대화맥락추론_dev.json: not valid JSON" in message
    assert "대화맥락추론_test.json: item 1 (made-0001), input.reference_id" in message


def test_one_bad_file_of_three_keeps_all_from_being_written(tmp_path: Path, out: Path) -> None:
    unpacked(out, {"data_train.json": b"old"})
    files = official() | {NAME.format("test"): b"[]"}
    refused(zipped(tmp_path / "x.zip", files), out=out)
    assert (out / "data_train.json").read_bytes() == b"old"


def test_swapped_train_and_test_are_recognised(tmp_path: Path, out: Path) -> None:
    files = official()
    train, test = NAME.format("train"), NAME.format("test")
    files[train], files[test] = files[test], files[train]
    message = refused(zipped(tmp_path / "x.zip", files), out=out)
    assert f"{train} has no label and {test} has all: train and test look swapped" in message
    assert message.count("problem") == 1

    alone = unpacked(tmp_path / "y", {"train.json": files[train]}) / "train.json"
    assert "looks like a test file" in refused(alone, out=out)


def test_a_file_of_problems_only_is_not_called_swapped(tmp_path: Path, out: Path) -> None:
    labelled, hidden = dump_items([make_item(0)]).encode(), dump_items([make_item(1, output="")]).encode()
    for train, test in ((b"[1]", labelled), (hidden, b"[1]")):
        files = {"train.json": train, "test.json": test}
        assert "look swapped" not in refused(unpacked(tmp_path / "x", files), out=out)


def test_dev_without_labels_is_refused(tmp_path: Path, out: Path) -> None:
    files = official() | {NAME.format("dev"): dump_items([make_item(30), make_item(31, output="")]).encode()}
    assert "item made-0031, output: found no label" in refused(zipped(tmp_path / "x.zip", files), out=out)


def test_ids_shared_between_splits_are_refused(tmp_path: Path, out: Path) -> None:
    files = official() | {NAME.format("dev"): official()[NAME.format("train")]}
    message = refused(zipped(tmp_path / "x.zip", files), out=out)
    assert (
        "대화맥락추론_train.json and 대화맥락추론_dev.json share 6 ids (made-0000, made-0001, made-0002, …)" in message
    )


def test_two_files_for_a_split_are_listed(tmp_path: Path, out: Path) -> None:
    files = official() | {"old/dev.json": b"[]", "old/data_test.json": b"[]"}
    archive = zipped(tmp_path / "x.zip", files)
    message = refused(archive, out=out)
    assert "2 problems" in message
    assert f"dev: {archive}: 대화맥락추론_dev.json, {archive}: old/dev.json" in message
    assert "old/data_test.json" in message
    assert "train:" not in message


def test_what_holds_no_split_says_what_was_found(tmp_path: Path, out: Path) -> None:
    folder = unpacked(tmp_path / "x", {"sample.json": b"[]", "latest.json": b"[]", "말뭉치.zip": b""})
    message = refused(folder, out=out)
    assert "latest.json, sample.json" in message
    assert "train, dev, test" in message
    assert f"To read a zip, name it: {folder / '말뭉치.zip'}" in message
    assert "Found JSON files: none" in refused(zipped(tmp_path / "x.zip", {"a.txt": b"", "..": b""}), out=out)
    assert "does not say which split" in refused(folder / "latest.json", out=out)


def test_paths_that_cannot_be_read_are_named(tmp_path: Path, out: Path) -> None:
    archive = zipped(tmp_path / "말뭉치.zip", official())
    assert "no such file or folder. Did you mean '말뭉치.zip'?" in refused(tmp_path / "말뭉지.zip", out=out)
    cut = tmp_path / "cut.zip"
    cut.write_bytes(archive.read_bytes()[:-100])
    assert "a damaged zip, download it again" in refused(cut, out=out)
    (tmp_path / "말뭉치.hwp").write_bytes(b"x")
    assert "found neither; allowed: a zip, a folder or a JSON file" in refused(tmp_path / "말뭉치.hwp", out=out)
    with pytest.raises(SystemExit, match="2"):
        main([str(archive), "--out", str(cut)])


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_damaged_inside_is_named(tmp_path: Path, out: Path, compression: int) -> None:
    archive = zipped(tmp_path / "x.zip", official(), compression)
    content = bytearray(archive.read_bytes())
    content[100:140] = b"\xff" * 40
    archive.write_bytes(content)
    assert "cannot be unpacked" in refused(archive, out=out)


def test_an_encrypted_zip_is_named(tmp_path: Path, out: Path) -> None:
    archive = zipped(tmp_path / "x.zip", official())
    content = archive.read_bytes()
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        parts = content.split(signature)
        content = signature.join(
            [parts[0], *(part[: offset - 4] + bytes([part[offset - 4] | 1]) + part[offset - 3 :] for part in parts[1:])]
        )
    archive.write_bytes(content)
    assert "is encrypted" in refused(archive, out=out)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, out: Path) -> None:
    archive = zipped(tmp_path / "x.zip", {"train.json": b"[]"})
    content = archive.read_bytes()
    directory = content.rindex(b"PK\x01\x02")
    huge = struct.pack("<I", MOST_BYTES + 1)
    archive.write_bytes(content[: directory + 24] + huge + content[directory + 28 :])
    assert "found 50,000,001 bytes" in refused(archive, out=out)


def test_the_command_reports_a_users_mistake_in_words(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "run.prepare_data", str(tmp_path / "none.zip")], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert "Traceback" not in ended.stderr


def test_help_is_quick_and_light() -> None:
    code = "import run.prepare_data, sys; print({'torch', 'transformers', 'rich', 'scipy'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
