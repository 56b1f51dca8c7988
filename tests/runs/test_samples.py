import csv
import io
import json
from typing import Any

import pytest

from src.data import Item, parse_items
from src.runs.samples import as_csv, as_jsonl, letter_probabilities, sample
from src.score.item_scores import ItemScores
from tests.conftest import make_item

SCORES = ItemScores("made-0001", ("012", "201"), ((0.0, 1.0, 0.0), (3.0, 0.0, 0.0)))


def item(**changes: Any) -> Item:
    (found,), problems = parse_items(json.dumps([make_item(1, **changes)]).encode(), "made")
    assert not problems
    return found


def test_a_line_stands_for_itself() -> None:
    one = item()
    row = sample("polar", "dev", one, SCORES, SCORES.prediction, "abc")
    assert (row["run"], row["id"], row["split"], row["category"]) == ("polar", "made-0001", "dev", "후행사건")
    assert row["dialogue"].split("\n")[:2] == ["1: 우산도 없는데 비가 쏟아지네.", "2: 편의점에서 하나 사지 그래?"]
    assert row["target_utterances"] == ["2: 편의점에서 하나 사지 그래?"] and row["options"] == list(one.options)
    assert (row["label"], row["prediction"], row["right"], row["prompt_sha256"]) == (
        "inference_2",
        "inference_3",
        False,
        "abc",
    )
    assert row["margin"] == SCORES.margin and row["logprobs"] == list(SCORES.logprobs)


def test_letters_have_their_probabilities_in_each_order() -> None:
    found = letter_probabilities(SCORES)
    assert list(found) == ["012", "201"] and found["012"]["B"] > found["012"]["A"] == found["012"]["C"]
    assert all(sum(letters.values()) == pytest.approx(1) for letters in found.values())
    huge = ItemScores("x", ("012",), ((1e4, 0.0, 0.0),))
    assert letter_probabilities(huge)["012"] == {"A": 1.0, "B": 0.0, "C": 0.0}


def test_without_label_or_scores_nothing_is_made_up() -> None:
    row = sample("vote", "test", item(output=""), None, 2, None)
    assert (row["label"], row["right"], row["margin"], row["logprobs"], row["probabilities"]) == (None,) * 5
    (line,) = csv.DictReader(io.StringIO(as_csv([row]).removeprefix("\ufeff"), newline=""))
    assert (line["label"], line["right"], line["logprob_3"], line["probabilities"]) == ("",) * 4


def test_lines_end_where_they_should() -> None:
    odd = item(inference_1="하나\u2028둘\x85셋", inference_3="넷\n다섯")
    text = as_jsonl([sample("r", "dev", odd, SCORES, 0, None)] * 2)
    assert len(text.splitlines()) == 2 and json.loads(text.splitlines()[0])["options"] == list(odd.options)


def test_excel_reads_korean_and_takes_no_text_for_a_formula() -> None:
    odd = item(inference_1="=1+1", inference_2="-아니", inference_3='"네", 맞아\n그래')
    text = as_csv([sample("r", "dev", odd, SCORES, 1, None)])
    assert text.startswith("\ufeffrun,id,split,category,")
    (line,) = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    assert [line[f"option_{place}"] for place in (1, 2, 3)] == ["'=1+1", "'-아니", '"네", 맞아\n그래']
    assert line["right"] == "1" and float(line["logprob_1"]) == SCORES.logprobs[0] < 0
    assert line["probabilities"].startswith("012: A 0.2119 B 0.5761 C 0.2119; 201: A ")
