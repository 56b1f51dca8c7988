import random

import pytest

from src.prompt.encode import Example
from src.tree.shares import computed_tokens, shares


def corpus(rng: random.Random, dialogues: int) -> list[Example]:
    """Dialogues of one to five items with a beginning in common, in random order; some items in several orders."""
    found = []
    for dialogue in range(dialogues):
        shared = tuple(rng.randrange(1000) for _ in range(rng.randrange(1, 300)))
        for item in range(rng.randrange(1, 6)):
            for order in ("012", "120")[: rng.randrange(1, 3)]:
                ids = (*shared, *(rng.randrange(1000) for _ in range(rng.randrange(1, 60))))
                found.append(Example(f"{dialogue}-{item}", order, ids, len(ids), 0, f"d{dialogue}"))
    rng.shuffle(found)
    return found


def cost(examples: list[Example]) -> int:
    return computed_tokens([one.ids for one in examples])


@pytest.mark.parametrize("seed", range(12))
def test_every_item_has_one_rank_and_a_dialogue_too(seed: int) -> None:
    rng = random.Random(seed)
    examples, count = corpus(rng, rng.randrange(8, 30)), rng.randrange(2, 9)
    found = shares(examples, count)
    assert sorted(number for share in found for number in share) == list(range(len(examples)))
    assert all(share == sorted(share) for share in found) and len(found) == count
    ranks = [{examples[number].dialogue for number in share} for share in found]
    assert sum(map(len, ranks)) == len(set.union(*ranks)), "a dialogue is on two ranks"
    assert found == shares(list(examples), count)


@pytest.mark.parametrize("seed", range(12))
def test_no_rank_has_much_more_than_another(seed: int) -> None:
    """Graham's bound for the longest first, against the mean and the largest dialogue, which no division can beat."""
    rng = random.Random(seed)
    examples, count = corpus(rng, 24), rng.randrange(2, 7)
    dialogues: dict[str, list[Example]] = {}
    for one in examples:
        dialogues.setdefault(one.dialogue, []).append(one)
    whole = [cost(items) for items in dialogues.values()]
    least = max(sum(whole) / count, *whole)
    ranks = [{examples[number].dialogue for number in share} for share in shares(examples, count)]
    loads = [sum(cost(dialogues[key]) for key in keys) for keys in ranks]
    assert max(loads) <= (4 / 3) * least + 1 and sum(loads) == sum(whole)


def test_a_dialogue_is_split_only_where_there_are_too_few() -> None:
    examples = [Example(f"{n}", order, (1, 2, n), 3, 0, "d") for n in range(3) for order in ("012", "120")]
    found = shares(examples, 2)
    assert [len(share) for share in found] in ([2, 4], [4, 2])
    for share in found:
        assert {examples[number].id for number in share}.isdisjoint(
            {examples[number].id for number in range(6) if number not in share}
        ), "the orders of an item stay together"
    assert sorted(map(len, shares(examples, 4))) == [0, 2, 2, 2], "no more ranks than items have something to do"
    assert shares([], 3) == [[], [], []] and shares(examples, 1) == [[0, 1, 2, 3, 4, 5]]


def test_tokens_in_common_count_once() -> None:
    assert computed_tokens([(1, 2, 3), (1, 2, 4), (1, 5)]) == 5
    assert computed_tokens([(1, 2), (1, 2)]) == 2 and computed_tokens([]) == 0
