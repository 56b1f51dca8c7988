import copy
import json
from typing import Any

import pytest

from src.data import Item, dump_items, parse_items, predictions
from src.vote.submission import submission_problems
from tests.conftest import make_item


def made(count: int = 4) -> list[Item]:
    items, problems = parse_items(dump_items([make_item(n, output="") for n in range(count)]).encode(), "made")
    assert not problems
    return items


def problems(change: Any = lambda raw: None) -> list[str]:
    """Of a sound submission after `change`."""
    raw = predictions(made(), [0, 1, 2, 0])
    change(raw)
    return submission_problems(json.dumps(raw, ensure_ascii=False).encode(), made())


def test_what_the_commands_write_is_ready() -> None:
    assert problems() == []
    assert submission_problems(dump_items(predictions(made(), [2, 2, 2, 2])).encode(), made()) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda raw: raw.reverse(), "the order differs: item 1 is made-0003; allowed: made-0000"),
        (lambda raw: raw.pop(), "1 items of the data are missing: made-0003"),
        (lambda raw: raw.append(copy.deepcopy(raw[0])), "made-0000: found 2 times; allowed: once"),
        (lambda raw: raw[0].update(id="made-00O0"), "made-00O0: not an item of the data. Did you mean 'made-000"),
        (lambda raw: raw[1].pop("id"), "item 2: it has no id"),
        (lambda raw: raw[1].update(output=""), "item 2 (made-0001), output: found none; allowed: inference_1"),
        (lambda raw: raw[1].pop("output"), "item 2 (made-0001), output: found none"),
        (lambda raw: raw[1].update(output="inference_4"), 'output: found "inference_4"; allowed: inference_1'),
        (lambda raw: raw[1].update(output=" inference_1"), 'output: found " inference_1"'),
        (lambda raw: raw[1].update(output=1), "output: found 1;"),
        (lambda raw: raw[1].update(output=["inference_1"]), 'output: found ["inference_1"]'),
        (
            lambda raw: raw[1]["input"].update(inference_2="다른 말"),
            'item 2 (made-0001), input.inference_2: found "다른 말"',
        ),
        (lambda raw: raw[1]["input"].pop("category"), "input.category: missing"),
        (lambda raw: raw[1].update(score=0.5), "score: not in the data"),
        (
            lambda raw: raw[1]["input"]["conversation"][2].update(speaker=True),
            "input.conversation, 3.speaker: found true",
        ),
        (lambda raw: raw[1]["input"]["conversation"].pop(), "input.conversation: found ["),
        (lambda raw: raw.__setitem__(1, 7), "item 2: found 7; allowed: an object"),
        (lambda raw: raw.clear(), "the list is empty"),
    ],
)
def test_what_keeps_a_file_from_being_handed_in(change: Any, told: str) -> None:
    found = problems(change)
    assert [line for line in found if told in line], found


def test_all_problems_are_told_at_once() -> None:
    def change(raw: list[dict[str, Any]]) -> None:
        raw[0]["output"] = ""
        raw[2]["input"]["inference_1"] = "다른 말"
        raw.pop()

    assert len(problems(change)) == 4


def test_another_file_is_told_of_in_a_few_lines() -> None:
    raw = dump_items(
        predictions(parse_items(dump_items([make_item(n) for n in range(20, 40)]).encode(), "x")[0], [0] * 20)
    )
    found = submission_problems(raw.encode(), made())
    assert len(found) == 3 and "20 items are not of the data: made-0020" in found[1]


def test_a_file_that_is_no_json_is_named() -> None:
    sound = dump_items(predictions(made(), [0] * 4)).encode()
    assert "allowed: a list of items" in submission_problems(b'{"items": []}', made())[0]
    assert "cut off" in submission_problems(sound[:-20], made())[0]
    assert "not UTF-8" in submission_problems('["한글"]'.encode("euc-kr"), made())[0]
    assert submission_problems(b"\xef\xbb\xbf" + sound, made()) == [
        "the file begins with a byte order mark; allowed: UTF-8 without one"
    ]
    twice = sound.replace(b'"output": "inference_1"', b'"output": "inference_2", "output": "inference_1"', 1)
    assert "more than once" in submission_problems(twice, made())[0]
    same = sound.replace(b'"output": "inference_1"', b'"output": "inference_1", "output": "inference_1"', 1)
    assert submission_problems(same, made()) == ["the file: the key output more than once in an object"]
    (line,) = submission_problems(sound.decode().encode("utf-16"), made())
    assert line.startswith("the file: not saved as UTF-8 (UTF-16")
