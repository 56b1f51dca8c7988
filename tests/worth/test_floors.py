from src.data import Item, Utterance
from src.worth.floors import floor_answers


def made_item(options: tuple[str, ...], id: str = "made", label: int = 0, turns: tuple[str, ...] = ("응.",)) -> Item:
    """The first turn is the target."""
    dialogue = tuple(Utterance(str(place), 1 + place % 2, text) for place, text in enumerate(turns))
    return Item(id, dialogue, ("0",), "원인", options, label, {})


def test_floor_answers() -> None:
    item = made_item(("비가 온다.", "그는 우산을 들고 집을 나섰다.", "그는 우산을 샀다."))
    assert floor_answers([item]) == {"longest option": [1], "shortest option": [0], "most alike option": [2]}
    # Of equal options the first.
    item = made_item(("가나", "다라", "마바"))
    assert floor_answers([item]) == {"longest option": [0], "shortest option": [0], "most alike option": [0]}
    # A single character has no pair of neighbours.
    assert floor_answers([made_item(("가", "나", "나다"))])["shortest option"] == [0]
    # Another task has another number of options.
    item = made_item(("비가 온다.", "그는 우산을 들고 집을 나섰다.", "그는 우산을 샀다.", "해"))
    assert floor_answers([item]) == {"longest option": [1], "shortest option": [3], "most alike option": [2]}
