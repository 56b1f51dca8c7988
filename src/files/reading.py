"""Reading files that somebody else may have written: whole, within bounds, and with one message for all that is wrong.

Each bound is named in the message. What is read can be printed and written again: no number is changed by reading it,
and no text holds half a character.
"""

import contextlib
import json
import os
import re
import stat
import unicodedata
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from src.console.cli import UserError

MOST_BYTES = 50_000_000
"""Of one file. The official files hold a few megabytes."""
MOST_VALUES = 1_500_000
"""Of one JSON text: about 150 MB of memory, and a second. Every comma, colon and opening bracket counts as one."""
MOST_NESTED = 64
"""Brackets within brackets of one JSON text."""
TOO_NESTED = f"its brackets are nested too deeply; allowed: {MOST_NESTED}"
MOST_DIGITS = 1_000
"""Of one number. The largest one that a computer reckons with has 309."""

HALF = re.compile("[\ud800-\udfff]")
"""Half a character (a lone surrogate). JSON can write one as an escape, UTF-8 cannot."""

MARKS = re.compile("[^\x00-\u02ff\u1100-\u11ff\uac00-\ud7a3]{31}")
"""So many characters in a row, of which all may be combining marks. Hangul and Latin letters are none."""
STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
"""A string of JSON."""


def read_bytes(path: str | Path, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of an ordinary file. UserError when it is missing, is something else (a folder, a pipe, a device), may
    not be read, or is larger than `most_bytes`.
    """
    try:
        # A pipe without a writer would block already when it is opened.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"{path}: this is no ordinary file (a pipe or a device); allowed: a file.")
            content = file.read(most_bytes + 1)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file.") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: this is a folder, not a file.") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise UserError(f"{str(path)[:200]} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if len(content) > most_bytes:
        raise UserError(f"{path} is too large; allowed: {most_bytes:,} bytes. Is it another kind of file?")
    return content


def read_text(path: str | Path, most_bytes: int = MOST_BYTES) -> str:
    """The text of a file in UTF-8, its line ends as `\\n`. UserError as in `read_bytes`, or when it is not UTF-8."""
    return decoded(read_bytes(path, most_bytes), str(path)).replace("\r\n", "\n").replace("\r", "\n")


def decoded(content: bytes, where: str) -> str:
    """`content` as UTF-8. UserError, which names `where`, when it is something else."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where} is not UTF-8: found byte 0x{content[error.start]:02x} in line {line}. Save it as UTF-8."
        ) from error


def read_json(path: str | Path, most_bytes: int = MOST_BYTES) -> Any:
    """The value of a JSON file. UserError as in `read_text` and `load_json`."""
    return load_json(read_text(path, most_bytes), str(path))


def load_json(text: str | bytes, where: str) -> Any:
    """The value of `text`. UserError, which names `where`, for all that `parse_json` takes for wrong."""
    try:
        return parse_json(decoded(text, where) if isinstance(text, bytes) else text)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where} cannot be read: {error}.") from error


def parse_json(text: str) -> Any:
    """The value of `text`. ValueError says why when it is no JSON, exceeds a bound, or holds a key twice in an object,
    a number that would be changed, or half a character.
    """
    refuse_many(text)
    try:
        value = json.loads(
            text.removeprefix("\ufeff"),
            object_pairs_hook=_object,
            parse_int=exact_int,
            parse_float=exact_float,
            parse_constant=exact_float,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(TOO_NESTED) from error
    refuse_nested(value)
    if "\\u" in text or HALF.search(text):
        _refuse_half(value)
    return value


# The bounds, also for readers with a grammar of their own


def refuse_many(text: str) -> None:
    """ValueError when JSON `text` holds more than `MOST_VALUES` values. It is not parsed for that."""
    many = len(text) > MOST_VALUES and _signs(text) > MOST_VALUES
    if many and _signs(STRING.sub("", text)) > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES:,} values, which is the most allowed")


def _signs(text: str) -> int:
    """Each value but the first follows one of these, those within strings counted as well."""
    return sum(map(text.count, ",:[{"))


def refuse_nested(value: Any) -> None:
    """ValueError when lists and objects of `value` are nested more than `MOST_NESTED` deep."""
    level = [value]
    for _ in range(MOST_NESTED):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError(TOO_NESTED)


def exact_int(literal: str) -> int:
    """A whole number of JSON. ValueError when other programs, which reckon with floats, would change it."""
    value = whole_number(literal)
    if abs(value) > 2**53 and not _same_as_float(value):
        raise ValueError(f"found the number {shortened(literal)}, which most programs would change; allowed: to 2^53")
    return value


def whole_number(literal: str) -> int:
    """ValueError when it has more than `MOST_DIGITS` digits."""
    if len(literal) > MOST_DIGITS:
        raise ValueError(f"found a number of {len(literal):,} digits; allowed: {MOST_DIGITS:,}")
    return int(literal)


def exact_float(literal: str) -> float:
    """A number of JSON with a point or an exponent. ValueError when it is not finite, or when a float has another value
    in its first 17 digits, which is what a float can tell apart.
    """
    value = float(literal)
    if repr(value) == literal and value - value == 0:
        return value
    if value - value != 0:
        raise ValueError(f'found the number {shortened(literal)}; allowed: finite ones, and null or "" for none')
    with contextlib.suppress(InvalidOperation):  # an exponent of many digits
        if len(literal) <= MOST_DIGITS and Decimal(literal) in (Decimal(repr(value)), Decimal(f"{value:.17g}")):
            return value
    raise ValueError(f"found the number {shortened(literal)}, which would become {value!r}; allowed: 17 digits")


def composed(text: str) -> str:
    """`text` in NFC: a Mac may have stored one syllable as two or three characters. A text with more than 30 combining
    marks in a row, which no writing has, stays as it is: to sort them takes ever longer.
    """
    return text if _too_many_marks(text) else unicodedata.normalize("NFC", text)


def is_composed(text: str) -> bool:
    """Whether `composed` leaves `text` as it is."""
    return _too_many_marks(text) or unicodedata.is_normalized("NFC", text)


def _too_many_marks(text: str) -> bool:
    if not MARKS.search(text):
        return False
    row = 0
    for sign in text:
        row = row + 1 if unicodedata.combining(sign) else 0
        if row > 30:
            return True
    return False


def _same_as_float(value: int) -> bool:
    try:
        return float(value) == value
    except OverflowError:
        return False


def shortened(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # json would keep the last in silence
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"found the key {shortened(twice)!r} more than once in an object")
    return found


def _refuse_half(value: Any) -> None:
    if isinstance(value, str) and HALF.search(value):
        raise ValueError(f"found half a character in the text {shortened(value)!a}; allowed: whole ones")
    if isinstance(value, dict | list):
        for one in [*value, *value.values()] if isinstance(value, dict) else value:
            _refuse_half(one)
