import subprocess
import sys

import pytest

from src.console.cli import UserError
from src.data import Item, Utterance
from src.prompt.fewshot import Library
from src.prompt.prompts import Examples, load_prompt
from src.tree.prefix import build
from tests import toys
from tests.made_prompts import TASK

TRAIN = toys.items(60)


@pytest.mark.parametrize("choose", ["seed", "near"])
def test_examples_share_the_category_and_never_the_dialogue(choose: str) -> None:
    library = Library(TRAIN, Examples(2, choose))
    for item in TRAIN:
        chosen = library.choose(item)
        assert [one.category for one in chosen] == [item.category] * 2
        assert item.dialogue_key not in {one.dialogue_key for one in chosen}
        assert len({one.dialogue_key for one in chosen}) == 2
        assert all(one.label is not None for one in chosen)


def test_by_seed_a_category_shares_its_examples() -> None:
    asked = toys.items(15, start=1000)  # other dialogues than any of the library
    library = Library(TRAIN, Examples(3))
    chosen = {item.category: {tuple(one.id for one in library.choose(item))} for item in asked}
    for item in asked:
        chosen[item.category].add(tuple(one.id for one in library.choose(item)))
    assert set(chosen) == set(TASK.categories) and all(len(some) == 1 for some in chosen.values())
    other = Library(TRAIN, Examples(3, seed=1))
    assert any(library.choose(item) != other.choose(item) for item in asked)
    assert [library.choose(item) for item in asked] == [Library(TRAIN, Examples(3)).choose(item) for item in asked]


def test_by_nearness_the_most_alike_comes_last() -> None:
    def made(id: str, text: str) -> Item:
        dialogue = (Utterance("1", 1, f"{id}번째 이야기야."), Utterance("2", 2, "그랬구나."))
        return Item(id, dialogue, ("2",), "원인", (text, f"{text} 아니다.", f"{text} 모른다."), 0, {})

    texts = ("해가 뜨자 눈이 녹았다.", "기차가 늦어 버스를 탔다.", "고양이가 화분을 깼다.")
    library = Library([made(f"p{n}", text) for n, text in enumerate(texts)], Examples(2, "near"))
    for text, nearest in (("고양이가 또 화분을 깼다.", "p2"), ("오늘도 기차가 늦었다.", "p1"), (texts[0], "p0")):
        assert library.choose(made("q", text))[-1].id == nearest


def test_what_cannot_be_chosen() -> None:
    with pytest.raises(UserError, match=r"item made-0000: 90 examples of 원인 are asked for, .* has \d+ from other"):
        Library(TRAIN, Examples(90)).choose(TRAIN[0])
    with pytest.raises(UserError, match="no item of the training split has a label"):
        Library(toys.items(3, output=""), Examples(1))
    with pytest.raises(UserError, match="label and reasoning"):
        Library(TRAIN, Examples(1), reasoning=True)


@pytest.mark.parametrize("short", ["bllossom", "polar", "kogemma", "solarko", "eeve", "qwen2it", "spow12"])
def test_examples_stand_in_the_chat_of_every_backbone(short: str) -> None:
    prompt, asked = load_prompt("korean+2shots"), toys.items(5, start=1000)
    library = Library(TRAIN, Examples(2))
    encoder = toys.encoder(short, prompt, library=library)
    bare = toys.encoder(short, load_prompt("korean"))
    for item, example in zip(asked, encoder.for_scoring(asked), strict=True):
        text = encoder.prompt_text(item)
        for one in library.choose(item):
            question = prompt.render(one).messages[-1]["content"]
            answer = text[text.index(question) + len(question) :]
            assert text.count(question) == 1 and "ABC"[one.label or 0] in answer.split(item.options[0])[0]
        assert text.endswith(bare.prompt_text(item)[-20:])
        assert encoder.tokenizer.decode(list(example.ids)).endswith(
            text.removeprefix(encoder.tokenizer.bos_token or "")
        )
    bare.for_scoring(asked)
    assert encoder.letter_ids == bare.letter_ids


def test_items_of_a_category_share_the_examples_tokens() -> None:
    prompt, asked = load_prompt("korean+3shots"), toys.items(10, start=1000, category="동기")
    library = Library(TRAIN, Examples(3))
    encoder = toys.encoder("qwen2", prompt, library=library)
    ids = [one.ids for one in encoder.for_scoring(asked)]
    assert len(build(ids)) < 0.5 * sum(map(len, ids))


def test_only_nearness_takes_the_time_to_import_its_library() -> None:
    code = (
        "import src.prompt.fewshot, sys; print([m for m in ('torch', 'transformers', 'sklearn') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
