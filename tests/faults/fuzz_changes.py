# the lists of words are easier to change in long lines
"""Files that nobody would write: sound ones, changed in structure, in types of values, in words and in bytes.

All choices go through `Pick`, so a test may draw them by hypothesis, which then shows the smallest change that fails,
and the long form by a plain generator, which is many times faster.
"""

import copy
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import yaml

Pick = Callable[[int], int]
"""n → a number from 0 to n - 1."""
T = TypeVar("T")

DEEP = [[[[[[[[[[1]]]]]]]]]]
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**53 + 1, -(10**400), 10**18, 0.5, -0.0, 1e308, -1e308, 5e-324, float("nan")),
    *("", " ", "\n", "x", "12", "-1", "1e400", "NaN", "nan", "inf", "true", "2020-13-45", "2020-01-02", "../evil", "/"),
    *("\x00", "a\x1b[31mb", "\x9b2J", "a\u202eb", "\u2066", "\u200f", "\u2028", "\ud800", "\udfff\ud800", "😀", "가"),
    *("{{", "{% if %}", "{{ x }}", "a" * 300, "a" * 5000, "a/b", "~", ".", "..", "1" * 5000, "\u0301" * 60, "NFD 각"),
    *(
        [],
        {},
        [None],
        [[]],
        {"": ""},
        {"a": {"b": [1]}},
        [1, "a", None, {}],
        ["012", "012"],
        [1e308, -1e308, 0.0],
        DEEP,
    ),
)
JSON_WORDS = (
    *(
        "null",
        "true",
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "1" * 4400,
        "9007199254740993",
        "-0",
        "1E999",
        "0.1e-400",
    ),
    *(
        '"\\ud800"',
        '"\\u0000"',
        '"\\u202e"',
        "[" * 1100,
        "{" * 20,
        '{"a":' * 80,
        "]" * 9,
        ",",
        ":",
        '"',
        "\\",
        "\n",
        "\r",
    ),
    *("\ufeff", "\u2028", "//", "[[],[],[]]", '{"a": 1, "a": 2}', '"a": 1, "a": 1,', " ", "\t", "0x10", "'a'"),
)
YAML_WORDS = (
    *("!!int x", "!!float x", "!!bool x", "!!timestamp x", "!!binary é", "!!set {a, a}", "!!omap [a: 1]", "!!null x"),
    *("!!python/object:os.system x", "!x y", "&a ", "*a", "&a [*a]", "<<: *a", "<<: {a: 1}", "<<: 3", "? ", "- ", ": "),
    *(
        "2020-13-45",
        "2020-01-02",
        "12:30:45",
        "190:20:30",
        "0o17",
        "0x1F",
        "1_000",
        ".inf",
        ".nan",
        "-.inf",
        "1e5",
        "~",
    ),
    *(
        "---\n",
        "...\n",
        "%YAML 9.9\n",
        "\t",
        "|\n",
        ">-\n",
        "'",
        '"',
        "\\ud800",
        "[" * 400,
        "{" * 70,
        "- " * 70,
        "#",
        "@",
    ),
    *(
        "yes",
        "on",
        "=: 1",
        "9" * 5000,
        "\x07",
        "\u202e",
        "\x85",
        "\ufeff",
        "name: ../evil\n",
        "seed: -1\n",
        "lr: 1e400\n",
    ),
)
TEMPLATE_WORDS = (
    *("{{ '{x}'.format() }}", "{{ cycler() }}", "{{ {'a b': 1}|xmlattr }}", "{{ 'ab'|truncate(-5) }}", "{{ 1/0 }}"),
    *(
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'a'.center(3*10**9) }}",
        "{{ 10**(10**9) }}",
        "{{ x.y.z }}",
    ),
    *(
        "{{ 'a'*10**9 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ dialogue.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ self }}",
    ),
    *("{{ range(10**9) }}", "{{ 1.5|round(10**9, 'ceil') }}", "{{ [1]|sum(start='a') }}", "{{ 'a'|int|string }}", "{#"),
    *(
        "{% for i in range(9) %}",
        "{% endfor %}",
        "{% if question %}",
        "{% endif %}",
        "{{",
        "}}",
        "{%",
        "%}",
        "{{ joiner() }}",
    ),
    *(
        "{{ messages[9].content }}",
        "{{ raise_exception('no') }}",
        "{{ '\\ud800' }}",
        "{{ lipsum(n=2) }}",
        "{{ namespace() }}",
    ),
    *(
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{% block a %}{% endblock %}",
        "{{ super() }}",
    ),
    *(
        "{{ strftime_now('%Y') }}",
        "{{ messages|tojson }}",
        "{{ 'a'|filesizeformat }}",
        "{{ '%s%s' % 1 }}",
        "{{ 'a'|random }}",
    ),
    *(
        "{{ 'a'|wordwrap(0) }}",
        "{{ 'a'|indent('x') }}",
        "{{ 1|batch(0)|list }}",
        "{{ 'a'|attr('x') }}",
        "{{ none|length }}",
    ),
)
SLOW_WORDS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ lipsum(n=10**7) }}",
    "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
)


def one_of(pick: Pick, choices: Sequence[T]) -> T:
    return choices[pick(len(choices))]


def changed_value(pick: Pick, value: Any, words: Sequence[str] = ()) -> Any:
    """A copy of `value`, which JSON could hold, with one to three changes anywhere in it."""
    value = copy.deepcopy(value)
    for _ in range(1 + pick(3)):
        value = _changed(pick, value, words)
    return value


def _changed(pick: Pick, value: Any, words: Sequence[str]) -> Any:
    if isinstance(value, dict | list) and value and pick(5):
        key = one_of(pick, list(value)) if isinstance(value, dict) else pick(len(value))
        way = pick(8)
        if way == 0:
            del value[key]
        elif way == 1 and isinstance(value, dict):
            value[one_of(pick, ("", "x", "name", "weights", "splits_6orders", "recipe", "\u202e"))] = value[key]
        elif way == 1:
            value.append(copy.deepcopy(value[key]))
        else:
            value[key] = _changed(pick, value[key], words)
        return value
    if isinstance(value, str) and pick(3):
        return changed_text(pick, value, words or ("x",))
    if isinstance(value, int | float) and not isinstance(value, bool) and pick(3) == 0:
        return value * one_of(pick, (-1, 2, 3, 1000))
    return copy.deepcopy(one_of(pick, VALUES))


def changed_text(pick: Pick, text: str, words: Sequence[str]) -> str:
    """`text` with one change: something put in, taken out, doubled or cut."""
    start = pick(len(text) + 1)
    end = min(len(text), start + 1 + pick(20))
    way = pick(8)
    if way < 4:
        return text[:start] + one_of(pick, words) + text[start if way < 2 else end :]
    if way == 4:
        return text[:start] + text[end:]
    if way == 5:
        return text[:end] + text[start:]
    if way == 6:
        return text[:start]
    odd = (value for value in VALUES if isinstance(value, str))
    return text[:start] + one_of(pick, tuple(odd)) + text[start:]


def changed_bytes(pick: Pick, content: bytes) -> bytes:
    """`content` with up to three bytes changed, or cut, or a part taken out, or nothing of it."""
    way = pick(6)
    if way == 0:
        return content[: pick(len(content) + 1)]
    if way == 1:
        return bytes(pick(256) for _ in range(pick(30)))
    if way == 2:
        start = pick(len(content) + 1)
        return content[:start] + content[start + 1 + pick(50) :]
    found = bytearray(content)
    for _ in range(1 + pick(3) if found else 0):
        found[pick(len(found))] = pick(256)
    return bytes(found)


def as_json(value: Any, lines: bool = False) -> bytes:
    if lines and isinstance(value, list):
        return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in value).encode(errors="surrogatepass")
    return json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")


def as_yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=True, sort_keys=False).encode(errors="surrogatepass")


def json_file(pick: Pick, value: Any, lines: bool = False) -> bytes:
    """A JSON file that is nearly `value`."""
    way = pick(4)
    if way < 2:
        value = changed_value(pick, value)
    content = as_json(value, lines)
    return _last_change(pick, content, JSON_WORDS, way)


def yaml_file(pick: Pick, value: Any, words: Sequence[str] = YAML_WORDS) -> bytes:
    """A YAML file that is nearly `value`."""
    way = pick(4)
    if way < 2:
        value = changed_value(pick, value, words)
    return _last_change(pick, as_yaml(value), words, way)


def _last_change(pick: Pick, content: bytes, words: Sequence[str], way: int) -> bytes:
    if way in (1, 2):
        text = content.decode(errors="surrogateescape")
        content = changed_text(pick, text, words).encode(errors="surrogatepass")
    return changed_bytes(pick, content) if way == 3 else content


def zip_file(pick: Pick, members: dict[str, bytes], change: Callable[[Pick, bytes], bytes]) -> bytes:
    """A zip of `members`, perhaps within a zip, with something changed in a member, a name, a field or any byte."""
    ways = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    names = (
        "data_train.json",
        "train/../dev.json",
        "테스트_test.json",
        "a\\train.json",
        "x.zip",
        "\u202etrain.json",
        "._a.json",
    )
    out = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(out, "w", one_of(pick, ways)) as archive:
        for name, content in members.items():
            content = change(pick, content) if pick(3) == 0 else content
            archive.writestr(name if pick(4) else one_of(pick, names), content)
    content = out.getvalue()
    for _ in range(pick(3)):
        content = _changed_field(pick, content)
    if pick(5) == 0:
        outer = io.BytesIO()
        with zipfile.ZipFile(outer, "w", one_of(pick, ways)) as archive:
            archive.writestr(one_of(pick, ("inner.zip", "train.zip", "a.json")), content)
        content = outer.getvalue()
    return changed_bytes(pick, content) if pick(4) == 0 else content


def _changed_field(pick: Pick, content: bytes) -> bytes:
    """One field of a member's header, of the directory or of its end is another number."""
    mark = one_of(pick, (b"PK\1\2", b"PK\3\4", b"PK\5\6"))
    start = content.find(mark)
    if start < 0:
        return content
    place = start + 4 + 2 * pick(21)
    number = one_of(pick, (0, 1, 8, 12, 14, 20, 63, 99, 255, 0x800, 0x7FFF, 0xFFFF))
    return content[:place] + struct.pack("<H", number) + content[place + 2 :]
