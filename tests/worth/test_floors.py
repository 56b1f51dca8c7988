from src.data import Item, Utterance
from src.worth.floors import floor_answers, overlap_answers


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


def test_overlap_is_the_share_of_an_option_that_is_said() -> None:
    dialogue = ("우산을 샀다.", "비가 온다.")
    item = made_item(("우산을 샀다.", "비가 온다.", "해가 떴고 우산을 샀다. 비가 온다."), turns=dialogue)
    found = overlap_answers([item])
    # The first turn is the target. The long option has all that is said, and more that is not.
    assert found == {"overlap with dialogue": [0], "overlap with targets": [0]}
    item = made_item(("우산이 있다.", "비가 온다.", "달이 진다."), turns=dialogue)
    assert overlap_answers([item]) == {"overlap with dialogue": [1], "overlap with targets": [0]}
    # None is of two turns: the end of one and the start of the next are no neighbours.
    item = made_item(("다라", "나다", "가나"), turns=("가나", "다라"))
    assert overlap_answers([item])["overlap with dialogue"] == [0]


def test_what_every_dialogue_says_counts_little() -> None:
    common = [made_item(("가가", "나나", "다다"), id=str(place), turns=("먹자", f"끝{place}")) for place in range(9)]
    # Each option shares one of its two pairs: 먹자 is in all ten dialogues, 물새 in this one.
    item = made_item(("먹자꾸", "물새랑", "해달별"), turns=("먹자", "물새"))
    assert overlap_answers([item])["overlap with dialogue"] == [0]
    assert overlap_answers([*common, item])["overlap with dialogue"][-1] == 1
