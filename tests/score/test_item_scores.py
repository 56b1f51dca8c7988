import json
import math
import re
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src import task
from src.console.cli import UserError
from src.files.writing import write_jsonl
from src.score import item_scores
from src.score.item_scores import ItemScores, Logits, read_scores, write_scores

ORDERS = tuple("".join(order) for order in permutations("012"))


def softmax(logits: Logits) -> list[float]:
    total = sum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]


# Scores of an item


def test_one_order_is_a_log_softmax() -> None:
    scores = ItemScores("a", ("012",), ((1.0, 2.0, 4.0),))
    assert [math.exp(value) for value in scores.logprobs] == pytest.approx(softmax((1.0, 2.0, 4.0)))
    assert scores.prediction == 2
    assert scores.margin == pytest.approx(2.0)


@pytest.mark.parametrize("order", ORDERS)
def test_letters_are_mapped_back_to_the_options_they_showed(order: str) -> None:
    # Letter B has the highest logit, so the answer is the option that stood under B.
    scores = ItemScores("a", (order,), ((0.0, 5.0, 1.0),))
    assert scores.prediction == int(order[1])
    assert scores.logprobs[int(order[0])] == min(scores.logprobs)
    assert scores.margin == pytest.approx(4.0)


def test_orders_are_averaged_as_log_probabilities() -> None:
    scores = ItemScores("a", ("012", "201"), ((3.0, 0.0, 1.0), (0.5, 2.0, 0.0)))
    first, second = softmax((3.0, 0.0, 1.0)), softmax((0.5, 2.0, 0.0))
    # In order 201 letter A shows option 2, B option 0, C option 1.
    means = [math.sqrt(first[0] * second[1]), math.sqrt(first[1] * second[2]), math.sqrt(first[2] * second[0])]
    assert [math.exp(value) for value in scores.logprobs] == pytest.approx([mean / sum(means) for mean in means])


def test_a_constant_added_to_the_logits_of_an_order_changes_nothing() -> None:
    plain = ItemScores("a", ("012", "120"), ((3.0, 0.0, 1.0), (0.5, 2.0, 0.0)))
    moved = ItemScores("a", ("012", "120"), ((103.0, 100.0, 101.0), (-899.5, -898.0, -900.0)))
    assert moved.logprobs == pytest.approx(plain.logprobs)


@pytest.mark.parametrize(
    ("orders", "logits", "prediction"),
    [
        (("012",), ((2.0, 2.0, 2.0),), 0),
        (("012",), ((0.1, 0.7, 0.7),), 1),
        # Whatever stands where, a model that only likes letters has no opinion on options.
        (ORDERS, ((0.3, 0.1, 1.7),) * 6, 0),
        # Three numbers whose plain sum depends on their sequence.
        (("012", "120", "201"), ((0.1, 1.7, 1.7),) * 3, 0),
    ],
)
def test_exact_ties_give_the_first_option_and_margin_zero(
    orders: tuple[str, ...], logits: tuple[Logits, ...], prediction: int
) -> None:
    scores = ItemScores("a", orders, logits)
    assert scores.prediction == prediction
    assert scores.margin == 0.0


@pytest.mark.usefixtures("four_options")
def test_four_options_have_orders_of_four() -> None:
    # The option that stood under B of the one order stood under C of the other.
    scores = ItemScores("a", ("0213", "3120"), ((0.0, 5.0, 1.0, -1.0), (1.0, 0.5, 4.0, 2.0)))
    first, second = softmax(scores.logits[0]), softmax(scores.logits[1])
    means = [
        math.sqrt(one * other)
        for one, other in zip(
            (first[0], first[2], first[1], first[3]), (second[3], second[1], second[2], second[0]), strict=True
        )
    ]
    assert [math.exp(value) for value in scores.logprobs] == pytest.approx([mean / sum(means) for mean in means])
    assert scores.prediction == 2
    assert scores.margin == pytest.approx(math.log(means[2] / sorted(means)[-2]))
    for orders, words in (
        (("012",), "allowed: the digits 0123, each once"),
        (("0122",), "allowed: the digits 0123, each once"),
        (("0123",), "allowed: 4 finite numbers per order"),
    ):
        with pytest.raises(UserError, match=f"item made-1: .*{words}"):
            ItemScores("made-1", orders, ((1.0, 2.0, 3.0),))


@pytest.mark.parametrize(
    ("orders", "logits", "words"),
    [
        ((), (), "one or more different orders"),
        (("012", "012"), ((1.0, 2.0, 3.0),) * 2, "different orders"),
        (("012", "021"), ((1.0, 2.0, 3.0),), "logits of 1"),
        (("011",), ((1.0, 2.0, 3.0),), "allowed: 012"),
        (("01",), ((1.0, 2.0, 3.0),), "allowed: 012"),
        (("123",), ((1.0, 2.0, 3.0),), "allowed: 012"),
        (("012",), ((1.0, math.nan, 3.0),), "bfloat16"),
        (("012",), ((1.0, math.inf, 3.0),), "bfloat16"),
        (("012",), ((1.0, 2.0),), "3 finite numbers"),
    ],
)
def test_scores_that_cannot_be_are_refused(orders: tuple[str, ...], logits: tuple[Logits, ...], words: str) -> None:
    with pytest.raises(UserError, match=f"item made-1: .*{words}"):
        ItemScores("made-1", orders, logits)


# The scores file


def two_items() -> list[ItemScores]:
    return [
        ItemScores("made-1", ("012", "201"), ((3.0, 0.0, 1.0), (0.5, 2.0, 0.0))),
        ItemScores("문항-2", ("012", "201"), ((-1.25, 7.5, 0.1), (1e-9, 2e5, 0.0))),
    ]


def test_the_file_holds_what_the_reader_wants_to_see(tmp_path: Path) -> None:
    path = tmp_path / "mini" / "scores_dev.jsonl"
    write_scores(path, two_items())
    first, second = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    assert list(first) == ["id", "orders", "logits", "logprobs", "prediction", "margin"]
    assert first["id"] == "made-1"
    assert first["orders"] == ["012", "201"]
    assert first["logits"] == [[3.0, 0.0, 1.0], [0.5, 2.0, 0.0]]
    assert sum(map(math.exp, first["logprobs"])) == pytest.approx(1)
    assert first["prediction"] == "inference_1"
    assert first["margin"] == two_items()[0].margin
    assert "문항-2" in path.read_text("utf-8")
    assert second["id"] == "문항-2"
    assert read_scores(path) == two_items()


def test_the_file_of_another_task_names_its_options(tmp_path: Path, four_options: task.Task) -> None:
    path = tmp_path / "scores_dev.jsonl"
    scores = [ItemScores("a", ("0123", "3210"), ((0.0, 1.0, 2.0, 3.0), (3.5, 2.0, 1.0, 0.0)))]
    write_scores(path, scores)
    assert json.loads(path.read_text("utf-8"))["prediction"] == "choice_4"
    assert read_scores(path) == scores
    task.use(None)
    with pytest.raises(UserError, match=r"line 1: item a: found orders \('0123', '3210'\); allowed: 012 021"):
        read_scores(path)


finite = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="utf-8")), st.lists(st.sampled_from(ORDERS), min_size=1, unique=True)),
        min_size=1,
        max_size=3,
        unique_by=lambda one: one[0],
    ),
    st.data(),
)
def test_any_scores_survive_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, list[str]]], data: st.DataObject
) -> None:
    written = [
        ItemScores(item, tuple(orders), tuple(data.draw(st.tuples(finite, finite, finite)) for _ in orders))
        for item, orders in drawn
    ]
    path = tmp_path_factory.getbasetemp() / "scores_round.jsonl"
    write_scores(path, written)
    assert read_scores(path) == written


@pytest.mark.parametrize("scores", [[], two_items()[:1] * 2], ids=["none", "twice"])
def test_scores_are_written_of_at_least_one_item_each_once(tmp_path: Path, scores: list[ItemScores]) -> None:
    with pytest.raises(AssertionError):
        write_scores(tmp_path / "scores_dev.jsonl", scores)
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_at_any_byte_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "scores_dev.jsonl"
    write_scores(path, two_items())
    whole = path.read_bytes()
    last_line = whole.rindex(b"\n", 0, -1) + 1
    for end in [0, *range(last_line + 1, len(whole))]:
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="is damaged") as caught:
            read_scores(path)
    assert f"python -m run.test --model_id {tmp_path} --split dev" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"logits": [[3.0', '"logits": [[3.5', "do not follow"),
        ('"prediction": "inference_1"', '"prediction": "inference_2"', "prediction 'inference_2' does not follow"),
        ('"prediction": "inference_1"', '"prediction": 0', "prediction 0 does not follow"),
        ('"margin": ', '"margin": 1', "do not follow"),
        ('"logprobs": [', '"logprobs": [-0.1, ', "do not follow"),
        ('"orders": ["012", "201"]', '"orders": ["012", "210"]', "do not follow"),
        ('"orders": ["012", "201"]', '"orders": ["012"]', "logits of 2"),
        ('"orders": ["012", "201"]', '"orders": [12, 201]', "line 1"),
        ('"logits": [[3.0', '"logits": [[NaN', "finite"),
        ('"logits": [[3.0, ', '"logits": [[', "line 1"),
        ('"logits": ', '"letters": ', "no key 'logits'"),
        ('"id": "made-1"', '"id": 1', "line 1"),
        ('"id": "made-1"', '"id": "문항-2"', "line 2: item 문항-2 has a line already"),
        ('{"id": "made-1"', '\n{"id": "made-1"', "line 1"),
        ('{"id": "made-1"', '[1]\n{"id": "made-1"', "not the scores of an item"),
    ],
)
def test_a_file_that_was_changed_is_damaged(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "scores_dev.jsonl"
    write_scores(path, two_items())
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(UserError, match="is damaged") as caught:
        read_scores(path)
    assert words in str(caught.value)
    assert "Score it again" in str(caught.value)


def test_the_last_digits_may_differ_between_machines(tmp_path: Path) -> None:
    path = tmp_path / "scores_dev.jsonl"
    write_scores(path, two_items())
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for line in lines:
        line["logprobs"] = [value * (1 + 1e-12) for value in line["logprobs"]]
    write_jsonl(path, lines)
    assert read_scores(path) == two_items()


def test_missing_or_foreign_scores_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scores_test.jsonl: no such file. Score it again: python -m run.test"):
        read_scores(tmp_path / "scores_test.jsonl")
    (tmp_path / "scores_test.jsonl").write_bytes("점수".encode("cp949"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_scores(tmp_path / "scores_test.jsonl")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logits": [["1.0", 2.0, 3.0]]}, "logits is"),
        ({"logits": [[True, 2.0, 3.0]]}, "logits is"),
        ({"logits": [[1e308, -1e308, 0.0]] * 2}, "3 finite numbers"),
        ({"margin": [1]}, r"margin is \[1\]"),
        ({"logprobs": None}, "logprobs is None"),
        ({"orders": "012"}, "orders is '012'"),
        ({"orders": [["0"]]}, "orders is"),
        ({"samples": "3", "agreement": 1.0}, "samples is '3'"),
        ({"id": "\ud800"}, "half a character"),
    ],
)
def test_scores_of_other_types_are_damaged(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = tmp_path / "scores_dev.jsonl"
    write_scores(path, two_items())
    first, second = path.read_text(encoding="utf-8").splitlines()
    path.write_text(f"{first}\n{json.dumps(json.loads(second) | change)}\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"is damaged: line 2: .*{words}.*Score it again"):
        read_scores(path)


@pytest.mark.parametrize("number", ["1" * 400, "1e400", "1" * 5000, "NaN", "[" * 2000, "9007199254740993"])
def test_numbers_that_no_score_has(tmp_path: Path, number: str) -> None:
    path = tmp_path / "scores_dev.jsonl"
    write_scores(path, two_items())
    path.write_text(re.sub(r'"margin": [^,}]*', f'"margin": {number}', path.read_text(encoding="utf-8")), "utf-8")
    with pytest.raises(UserError, match="is damaged: line 1: "):
        read_scores(path)


def test_bytes_are_read_once_and_changed_ones_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    whole = item_scores._read_line
    monkeypatch.setattr(item_scores, "_read_line", lambda line: lines.append(line) or whole(line))
    path = tmp_path / "scores_dev.jsonl"
    one, other = (ItemScores(f"read-once-{name}", ("012",), ((1.0, 0.0, -1.0),)) for name in ("one", "other"))
    write_scores(path, [one])
    first = read_scores(path)
    first.clear()  # a caller's list is his own
    assert read_scores(path) == [one] and len(lines) == 1
    write_scores(path, [one, other])
    assert read_scores(path) == [one, other] and len(lines) == 3
    path.write_text(path.read_text(encoding="utf-8")[:-1], encoding="utf-8")
    for _ in range(2):
        with pytest.raises(UserError, match=r"its last line is cut off\. Score it again"):
            read_scores(path)
