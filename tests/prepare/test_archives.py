"""What a user may give as a zip: whatever is wrong with its bytes is one sentence."""

import io
import os
import random
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from src.console.cli import UserError
from src.files import reading
from src.prepare import archives, splits
from src.prepare.archives import Candidate, find, is_json, readable
from tests.official_shape import zip_of

TEXT = b'[{"id": "made-0000", "input": {}}]' * 40


def a_zip(compression: int, inner: bytes | None = None) -> bytes:
    files = {"대화/train.json": TEXT, "dev.json": TEXT[::-1]}
    return zip_of(files if inner is None else {**files, "안.zip": inner}, compression)


def read_all(path: Path, content: bytes) -> list[str]:
    """What every JSON file in a zip of these bytes holds; the words of a refusal where there is one."""
    path.write_bytes(content)
    told = []
    try:
        found = find(path)
        told += found.unread
        for candidate in found.candidates:
            told.append(candidate.read().decode("latin-1"))
    except UserError as error:
        told.append(str(error))
    return told


COMPRESSIONS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_compression_of_zipfile_is_read(tmp_path: Path, compression: int) -> None:
    content = a_zip(compression, a_zip(compression))
    assert read_all(tmp_path / "x.zip", content) == [text.decode() for text in [TEXT, TEXT[::-1]] * 2]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_zip_cut_anywhere_is_one_sentence(tmp_path: Path, compression: int) -> None:
    content = a_zip(compression, a_zip(compression))
    for end in range(0, len(content), 23):
        (told,) = read_all(tmp_path / "x.zip", content[:end])
        assert "a damaged zip" in told and "ownload it again" in told


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_no_damage_to_a_zip_is_more_than_a_sentence(tmp_path: Path, compression: int) -> None:
    rng = random.Random(compression)
    whole = a_zip(compression, a_zip(compression))
    for _ in range(250):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 12)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        for told in read_all(tmp_path / "x.zip", bytes(content)):
            assert "\n" not in told


def test_a_member_larger_than_the_zip_says_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", 100_000)
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            archive.writestr("train.json", bytes(30_000_000))
        content = buffer.getvalue()
        directory = content.rindex(b"PK\1\2")
        lies = content[: directory + 24] + (99_999).to_bytes(4, "little") + content[directory + 28 :]
        tracemalloc.start()
        (told,) = read_all(tmp_path / "x.zip", lies)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "cannot be unpacked" in told or "is packed" in told
        if compression == zipfile.ZIP_DEFLATED:
            assert peak < 5_000_000, peak
        (told,) = read_all(tmp_path / "x.zip", content)
        assert "found 30,000,000 bytes; allowed: 100,000" in told


def test_an_inner_zip_that_is_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", 2000)
    told = read_all(tmp_path / "x.zip", a_zip(zipfile.ZIP_DEFLATED, a_zip(zipfile.ZIP_STORED)))
    assert any("안.zip: found" in one and "allowed: 2,000" in one for one in told)
    assert TEXT.decode() in told


def test_names_with_bytes_of_no_encoding_can_be_shown() -> None:
    assert readable("plain.json") == "plain.json"
    assert readable("\udcff\udcfftrain.json").encode("utf-8").endswith(b"train.json")
    assert Candidate(Path("\udcb4\udceb_train.json"), "x").place == "대_train.json"


def test_what_counts_as_json() -> None:
    assert all(is_json(name) for name in ("a.json", "b/A.JSON", "c.jsonl", "../d.ndjson"))
    assert not any(is_json(name) for name in ("a.txt", ".a.json", "__MACOSX/a.json", "a.json/", "json"))


def test_a_name_that_no_file_system_takes_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="File name too long"):
        find(Path("x" * 5000))


@pytest.mark.parametrize("name", ["자료.7z", "자료.tar.gz", "자료.egg"])
def test_other_archives_are_to_be_unpacked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"7z\xbc\xaf\x27\x1c")
    with pytest.raises(UserError, match="Unpack any other archive and give its folder"):
        find(tmp_path / name)


@pytest.mark.parametrize("part", [b"[],", b"0,", b'{"a":{}},'])
def test_a_small_zip_with_many_values_is_not_parsed(tmp_path: Path, part: bytes) -> None:
    path = tmp_path / "data_train.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data_train.json", b"[" + part * (reading.MOST_VALUES + 1) + b"0]")
    assert path.stat().st_size < 50_000
    started = time.thread_time()
    chosen, _ = splits.choose(splits.search([path]), [path], tmp_path / "out")
    with pytest.raises(UserError, match="more than 1,500,000 values"):
        splits.check(chosen)
    assert time.thread_time() - started < 2


def test_a_zip_of_very_many_files_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_LISTED_BYTES", 1_000)
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(30):
            archive.writestr(f"{number}.json", b"[]")
    with pytest.raises(UserError, match=r"its directory has 1,\d\d\d bytes; allowed: 1,000"):
        find(path)


def test_many_files_for_one_split_are_not_all_read(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"train_{number}.json").write_bytes(TEXT)
    with pytest.raises(UserError, match="more than one file for a split"):
        splits.choose(splits.search([tmp_path]), [tmp_path], tmp_path / "out")


def test_what_is_no_ordinary_file_or_a_whole_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no ordinary file"):
        find(tmp_path / "pipe")
    monkeypatch.setattr(archives, "MOST_FILES", 2)
    for name in "abc":
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="more than 2 files"):
        find(tmp_path)
