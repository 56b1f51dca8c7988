import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from src.data import Item, parse_items
from src.task import Task
from src.worth.metrics import Share, chance_range, evaluate, holm, wilson
from tests.conftest import make_item


def made_items(*changes: dict[str, str]) -> list[Item]:
    items, problems = parse_items(
        json.dumps([make_item(number, **change) for number, change in enumerate(changes)]).encode(), "made"
    )
    assert not problems
    return items


# Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_published_values(correct: int, total: int, low: float, high: float) -> None:
    assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson(total - correct, total) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_is_scipy_s() -> None:
    for correct, total in ((0, 1), (1, 1), (0, 605), (605, 605), (594, 605), (3, 7), (100, 151)):
        for confidence in (0.9, 0.95, 0.99):
            theirs = binomtest(correct, total).proportion_ci(confidence_level=confidence, method="wilson")
            assert wilson(correct, total, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert wilson(0, 9)[0] == 0 and wilson(9, 9)[1] == 1


def test_wilson_confidence_widens() -> None:
    low, high = wilson(30, 40)
    lower, higher = wilson(30, 40, confidence=0.99)
    assert 0 < lower < low < 0.75 < high < higher < 1


def test_chance_range_covers_95_percent_of_guessers() -> None:
    for total in (9, 150, 605):
        low, high = (round(share * total) for share in chance_range(total))
        probability = [math.comb(total, k) * 2 ** (total - k) / 3**total for k in range(total + 1)]
        assert sum(probability[low : high + 1]) >= 0.95
        assert sum(probability[:low]) <= 0.025 < sum(probability[: low + 1])
        assert sum(probability[high + 1 :]) <= 0.025 < sum(probability[high:])


def test_evaluate_by_hand() -> None:
    # Labels go 0 1 2 0 1 2.
    items = made_items(*[{"category": category} for category in ("원인", "원인", "원인", "원인", "반응", "반응")])
    result = evaluate(items, [0, 1, 2, 1, 1, 0])

    assert (result.items, result.correct, result.accuracy) == (6, 4, 4 / 6)
    assert result.interval == wilson(4, 6)
    assert result.per_category == {"원인": Share(3, 4, 0.75, wilson(3, 4)), "반응": Share(1, 2, 0.5, wilson(1, 2))}
    assert result.category_balanced == 0.625
    assert result.confusion == ((1, 1, 0), (0, 2, 0), (1, 0, 1))
    assert {label: share[:2] for label, share in result.per_label.items()} == {0: (1, 2), 1: (2, 2), 2: (1, 2)}
    assert result.missed == [items[3].id, items[5].id]


ITEM = made_items({})[0]


def with_four(options: tuple[str, ...], label: int, category: str) -> Item:
    return replace(ITEM, options=options, label=label, category=category)


def test_four_options(four_options: Task) -> None:
    options = ("비가 온다.", "그는 우산을 들고 집을 나섰다.", "그는 우산을 샀다.", "해")
    items = [with_four(options, label, four_options.categories[label % 2]) for label in (0, 3, 3)]
    result = evaluate(items, [2, 3, 1])
    assert result.confusion == ((0, 0, 1, 0), (0, 0, 0, 0), (0, 0, 0, 0), (0, 1, 0, 1))
    assert {category: share[:2] for category, share in result.per_category.items()} == {"까닭": (0, 1), "결과": (1, 2)}
    assert list(result.as_json()["per_label"]) == ["choice_1", "choice_4"]
    low, high = (round(share * 100) for share in chance_range(100))
    probability = [math.comb(100, k) * 3 ** (100 - k) / 4**100 for k in range(101)]
    assert sum(probability[:low]) <= 0.025 < sum(probability[: low + 1])
    assert sum(probability[high + 1 :]) <= 0.025 < sum(probability[high:])


def test_evaluate_leaves_out_what_does_not_occur() -> None:
    items = made_items({"output": "inference_2"}, {"output": "inference_2", "category": "동기"})
    result = evaluate(items, [1, 0])
    assert list(result.per_label) == [1]
    assert list(result.per_category) == ["원인", "동기"]
    assert result.confusion == ((0, 0, 0), (1, 1, 0), (0, 0, 0))


def test_evaluate_wants_labels_and_equal_lengths() -> None:
    with pytest.raises(AssertionError, match="label"):
        evaluate(made_items({}, {"output": ""}), [0, 0])
    with pytest.raises(AssertionError):
        evaluate(made_items({}, {}), [0])
    with pytest.raises(AssertionError):
        evaluate([], [])


def test_as_json_survives_json() -> None:
    result = evaluate(made_items({}, {}, {}), [0, 0, 2]).as_json()
    again = json.loads(json.dumps(result))
    assert again["per_label"]["inference_2"] == {"correct": 0, "total": 1, "accuracy": 0.0, "interval": [*wilson(0, 1)]}
    assert again["per_category"]["원인"]["accuracy"] == 1.0
    assert again["confusion"] == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]


def test_imports_are_light() -> None:
    heavy = "import sys, src.worth.metrics, src.worth.floors, src.vote.voting, src.vote.ballots; "
    heavy += "print({'torch', 'transformers', 'scipy', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_holm_corrects_the_smallest_most() -> None:
    # Holm, Scandinavian Journal of Statistics 6 (1979): p times the tests left, never below an earlier one.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == [] and holm([0.02]) == [0.02]
