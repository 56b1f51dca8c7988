"""The bytes of a JSON file → its value, for the various forms in which programs save a list of items.

A file that could be read in more than one way is a problem. Encodings are recognised by what they must hold: JSON
begins with an ASCII character, and a CP949 file holds a Korean word that the caller knows.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from src.files.reading import TOO_NESTED, exact_float, refuse_many, refuse_nested, shortened, whole_number
from src.items.oddities import Oddity

BLANKS = " \t\n\r"
"""Characters allowed between two JSON values."""
MOST_REPEATED = 20_000
"""Objects with a key twice."""


@dataclass
class Json:
    """The contents of a JSON file.

    value     None when there is none
    problems  a line each
    repeated  the objects that hold a key twice with the same value, each with those keys; json kept one of them
    """

    value: Any = None
    problems: list[str] = field(default_factory=list)
    oddities: list[Oddity] = field(default_factory=list)
    repeated: list[tuple[dict[str, Any], list[str]]] = field(default_factory=list)


def read_json(content: bytes, name: str, korean: Sequence[str] = ()) -> Json:
    """The value of a file of items: a list, or something plainly meant as one. Each problem begins with `name`.

    korean  words. A file that is not UTF-8 is read as CP949 only when one of its texts begins with one of them; words
            of ASCII letters prove nothing and are left out.
    """
    read = Json()
    text = _decode(content, name, korean, read)
    if text is not None and not text.strip():
        read.problems.append(f"{name}: the file is empty; allowed: a list of items")
    elif text is not None:
        _parse(text, name, read)
    return read


def shown(value: Any) -> str:
    """A value as JSON, short enough for a line. Characters that cannot be seen or encoded are escaped."""
    value = shortened(value, 200) if isinstance(value, str) else value
    text = ""
    for part in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        text += shortened(part, 200)
        if len(text) > 60:
            break
    text = "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in text)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _decode(content: bytes, name: str, korean: Sequence[str], read: Json) -> str | None:
    encoding = json.detect_encoding(content)  # from a byte order mark, or from where the zero bytes are
    try:
        text = content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        if (text_949 := _as_cp949(content, korean)) is not None:
            read.oddities.append(Oddity("encoding", name, "CP949"))
            return text_949
        if error.reason in ("unexpected end of data", "truncated data"):
            fault = "the file ends within a character, so it is cut off: copy or download it again"
        else:
            line = content.count(b"\n", 0, error.start) + 1
            kind = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
            fault = f"not {kind}: found byte 0x{content[error.start]:02x} in line {line}. Save the file as UTF-8"
        read.problems.append(f"{name}: {fault}")
        return None
    if not encoding.startswith("utf-8"):
        read.oddities.append(Oddity("encoding", name, encoding.upper()))
    return text.lstrip("\ufeff")  # some programs write the mark twice


def _as_cp949(content: bytes, korean: Sequence[str]) -> str | None:
    """The text if it is certainly CP949: in another encoding the same bytes would not spell a known word."""
    try:
        text = content.decode("cp949")
    except UnicodeDecodeError:
        return None
    return text if any(f'"{word}' in text for word in korean if not word.isascii()) else None


def _parse(text: str, name: str, read: Json) -> None:
    def whole_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # json silently keeps the last of two equal keys.
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated.append((found, pairs))
        return found

    repeated: list[tuple[dict[str, Any], list[tuple[str, Any]]]] = []
    decoder = json.JSONDecoder(
        object_pairs_hook=whole_object, parse_int=whole_number, parse_float=exact_float, parse_constant=exact_float
    )
    values: list[Any] = []
    position = _skip(text, 0)
    try:
        refuse_many(text)
        while position < len(text):
            if values and not (isinstance(values[-1], dict) and text[position] == "{"):
                raise json.JSONDecodeError("Extra data", text, position)
            value, position = decoder.raw_decode(text, position)
            values.append(value)
            position = _skip(text, position)
        refuse_nested(values)
    except json.JSONDecodeError as error:
        whole = text.rstrip()
        cut = error.pos >= len(whole) or whole[-1] not in "]}"
        advice = "The file looks cut off: copy or download it again" if cut else "Only whole, valid JSON is read"
        if error.msg == "Extra data":
            advice = "Allowed: one list of items, [{…}, {…}], or one item a line"
        where = f"line {error.lineno}, column {error.colno}"
        read.problems = [f"{name}: not valid JSON: {error.msg} at {where}. {advice}"]
    except ValueError as error:  # a number out of range, or brackets nested too deeply
        read.problems = [f"{name}: not valid JSON: {error}"]
    except RecursionError:
        read.problems = [f"{name}: not valid JSON: {TOO_NESTED}"]
    else:
        _note_repeated(repeated, name, read)
        read.value = _as_list(values, name, read)


def _note_repeated(repeated: Sequence[tuple[dict[str, Any], list[tuple[str, Any]]]], name: str, read: Json) -> None:
    """Notes the objects that hold a key twice, each with all that stood in it. json itself keeps the last value."""
    if len(repeated) > MOST_REPEATED:
        read.problems.append(f"{name}: found {len(repeated):,} objects with a key twice; allowed: {MOST_REPEATED:,}")
        return
    known: dict[int, bytes] = {}
    for found, pairs in repeated:
        values: dict[str, set[bytes]] = {}
        counts = Counter(key for key, _ in pairs)
        for key, value in pairs:
            if counts[key] > 1:
                values.setdefault(key, set()).add(_digest(value, known))
        twice = sorted(values)
        if all(len(digests) == 1 for digests in values.values()):
            read.repeated.append((found, twice))
        else:
            some = ", ".join(map(shown, twice[:3])) + (", …" if len(twice) > 3 else "")
            read.problems.append(
                f"{name}: found the key {some} more than once, with different values, in the object {shown(found)}"
            )


def _digest(value: Any, known: dict[int, bytes]) -> bytes:
    """Equal for the same JSON, whatever the order of keys. known: those of inner lists and objects, by identity."""
    if not isinstance(value, dict | list):
        return _canonical(value).encode(errors="surrogatepass")
    if id(value) not in known:
        parts = (
            [f"{key!r}:".encode(errors="surrogatepass") + _digest(value[key], known) for key in sorted(value)]
            if isinstance(value, dict)
            else [_digest(one, known) for one in value]
        )
        known[id(value)] = hashlib.sha256(type(value).__name__.encode() + b",".join(parts)).digest()
    return known[id(value)]


def _as_list(values: list[Any], name: str, read: Json) -> Any:
    """The list that is meant: some files lack its brackets, others hold a table saved by columns."""
    first = values[0]
    if len(values) == 1 and not (isinstance(first, dict) and {"id", "input"} <= set(first)):
        return first
    if len(values) == 1 and _is_table(first):
        read.oddities.append(Oddity("columns", name, ", ".join(first)))
        return [{key: column[number] for key, column in first.items()} for number in first["id"]]
    read.oddities.append(Oddity("one-object-a-line", name, f"{len(values)} object{'s' if len(values) > 1 else ''}"))
    return values


def _is_table(value: dict[str, Any]) -> bool:
    """Whether this is {column: {number: cell}} with the same numbers in each column, as pandas writes by default."""
    columns = list(value.values())
    return all(isinstance(column, dict) and column and list(column) == list(columns[0]) for column in columns)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON, whatever the order of keys. (To Python, true equals 1 and 1.0.)"""
    return _canonical(one) == _canonical(other)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in BLANKS:
        position += 1
    return position
