"""The order of an epoch, and its steps."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.model.recipes import make_recipe
from src.prompt.encode import Example
from src.train.order import by_dialogue, epoch_steps
from tests.made_sequences import corpus

CORPUS = corpus()


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=30), st.integers(0, 5))
def test_dialogues_stay_whole(names: list[str], seed: int) -> None:
    examples = [Example(str(number), "012", (1,), 1, 0, name) for number, name in enumerate(names)]
    order = by_dialogue(examples, f"{seed}-0")
    assert sorted(order) == list(range(len(names)))
    changes = sum(names[one] != names[other] for one, other in itertools.pairwise(order))
    assert changes == len(set(names)) - 1
    assert order == by_dialogue(examples, f"{seed}-0")


def test_another_order_each_epoch() -> None:
    orders = [tuple(by_dialogue(CORPUS, f"{seed}-{epoch}")) for seed in (1, 2) for epoch in range(3)]
    assert len(set(orders)) == 6
    within = {tuple(number for number in order if CORPUS[number].dialogue == "3") for order in orders}
    assert len(within) > 1, "the items of a dialogue, too"
    dialogues = {tuple(dict.fromkeys(CORPUS[number].dialogue for number in order)) for order in orders}
    assert len(dialogues) == 6


@pytest.mark.parametrize("order", ["shuffled", "dialogue"])
def test_an_epoch_by_steps(order: str) -> None:
    values = {"backbone": "bllossom", "batch_size": 8, "gradient_accumulation_steps": 3, "order": order}
    one = make_recipe(values, "here")
    steps = epoch_steps(CORPUS, one)
    assert [len(step) for step in steps] == [24] * (len(CORPUS) // 24) + [len(CORPUS) % 24]
    assert sorted(number for step in steps for number in step) == list(range(len(CORPUS)))
    assert steps == epoch_steps(CORPUS, one) != epoch_steps(CORPUS, one.replace(seed=1))
    flat = [number for step in steps for number in step]
    assert (flat == by_dialogue(CORPUS, f"{one.seed}-0")) == (order == "dialogue") and flat != sorted(flat)
    assert [len(step) for step in epoch_steps(CORPUS[:1], one)] == [1]
