import json
import os
from pathlib import Path

import pytest

from src.console.cli import UserError
from src.files import reading
from src.files.reading import MOST_VALUES, load_json, parse_json, read_bytes, read_json, read_text


def test_a_file_is_its_text_and_its_value(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('\ufeff{"가": [1, 2.5, 1e-7, 0.10000000000000001,\r\n null]}'.encode())
    assert read_json(path) == {"가": [1, 2.5, 1e-7, 0.1, None]}
    assert read_text(path).count("\n") == 1 and "\r" not in read_text(path)


def test_what_is_no_file_of_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes("one\ntwo \xe9".encode("latin-1"))
    (tmp_path / "large").write_bytes(b"12345")
    for name, told in (
        ("missing", "no such file"),
        (".", "this is a folder"),
        ("pipe", "no ordinary file"),
        ("latin", "not UTF-8: found byte 0xe9 in line 2"),
        ("large", "too large; allowed: 4 bytes"),
        ("zero\0", "cannot be read: embedded null byte"),
        ("n" * 300, "cannot be read: File name too long"),
        ("latin/inner", "cannot be read: Not a directory"),
    ):
        with pytest.raises(UserError, match=told):
            read_text(tmp_path / name, 4 if name == "large" else reading.MOST_BYTES)
    with pytest.raises(UserError, match="no ordinary file"):
        read_bytes("/dev/zero")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a").touch(mode=0)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        read_text(tmp_path / "a")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not valid JSON"),
        ('{"a": 1', "not valid JSON"),
        ("NaN", "found the number NaN"),
        ("[-Infinity]", "found the number -Infinity"),
        ("1e400", "found the number 1e400; allowed: finite"),
        ("1e-400", "would become 0.0"),
        ("1e-" + "9" * 30, "would become 0.0"),
        ("9007199254740993", "9007199254740993, which most programs would change"),
        ("0.12345678901234567890123", "would become 0.12345678901234568"),
        ("1" * 5000, "a number of 5,000 digits; allowed: 1,000"),
        ("0." + "1" * 5000, "would become 0.1111"),
        ("[" * 100_000, "nested too deeply; allowed: 64"),
        ("[" * 65 + "]" * 65, "nested too deeply; allowed: 64"),
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a' more than once"),
        (r'{"a": ["\ud800"]}', "half a character in the text '.ud800'"),
        (r'{"\udfff": 1}', "half a character"),
        (b'"\xff"', "not UTF-8"),
    ],
)
def test_json_that_cannot_be_used_as_it_is(text: str | bytes, told: str) -> None:
    with pytest.raises(UserError, match=f"^mine.json.*{told}"):
        load_json(text, "mine.json")


def test_what_is_just_allowed() -> None:
    assert load_json("[" * 64 + "]" * 64, "f")
    assert load_json("[9007199254740992, 18014398509481984, -9007199254740991]", "f")[1] == 2**54
    assert load_json(r'"\ud83d\ude00"', "f") == "😀"
    for value in (0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -1e22):
        assert load_json(json.dumps(value), "f") == value
        assert load_json(f"{value:.17g}" if "." in f"{value:.17g}" else repr(value), "f") == value


def test_a_bomb_is_not_even_parsed(tmp_path: Path) -> None:
    path = tmp_path / "bomb.json"
    for part in ("[],", "0,", '{"":{}},'):
        path.write_text(f"[{part * (reading.MOST_VALUES // 2 + 1)}0]")
        many = path.read_text().count(",") + path.read_text().count("[") > reading.MOST_VALUES
        if many:
            with pytest.raises(UserError, match="more than 1,500,000 values"):
                read_json(path)
    assert load_json(json.dumps("," * (reading.MOST_VALUES - 1)), "f")


def test_signs_within_texts_are_no_values() -> None:
    text = json.dumps(['가, 나: [다] {라}, "마", ' * 100] * 4_000, ensure_ascii=False)
    assert sum(map(text.count, ",:[{")) > MOST_VALUES and len(parse_json(text)) == 4_000
    with pytest.raises(ValueError, match=f"more than {MOST_VALUES:,} values"):
        parse_json("[" + "0," * MOST_VALUES + "0]")
