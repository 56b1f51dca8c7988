import dataclasses
import itertools
import unicodedata

import pytest
import yaml

from src.console.cli import UserError
from src.prompt.prompts import Examples, load_prompt, parse_prompt, reasoning_of
from tests.made_prompts import COMBINED, GOOD, STRATEGIC, TASK, item_of, turns
from tests.made_task import FOUR, PROMPT, four_items, working_on


@pytest.mark.parametrize("name", ["entry", "plain", *COMBINED])
@pytest.mark.parametrize("category", TASK.categories)
def test_nothing_of_an_item_is_lost(name: str, category: str) -> None:
    prompt = load_prompt(name)
    item = item_of(category=category)
    for order in TASK.all_orders:
        rendered = prompt.render(item, order)
        assert [message["role"] for message in rendered.messages] == (["system"] if prompt.system else []) + ["user"]
        user = rendered.messages[-1]["content"]
        lines = user.splitlines()
        # In this order, and so with the longest common beginnings.
        who = "Speaker " if name.startswith("english") else "화자"
        places = [user.index(f"{who}{turn.speaker}: {turn.text}") for turn in item.dialogue]
        places.append(user.index(prompt.categories[category]))
        places += [user.index(item.options[int(index)]) for index in order]
        assert places == sorted(places)
        for letter, index in zip(TASK.letters, order, strict=True):
            assert f"{letter}. {item.options[int(index)]}" in lines
        (target,) = item.target_utterances
        mark = f"*{who}{target.speaker}: {target.text}"
        assert lines.count(mark) == 1 if name == "plain" else lines.count(mark[1:]) == 2
        if prompt.system:
            assert "{" not in rendered.messages[0]["content"]
        assert "{" not in user and user == user.strip()


@pytest.mark.parametrize("name", ["entry", "plain", *COMBINED])
def test_items_of_one_dialogue_begin_alike(name: str) -> None:
    prompt = load_prompt(name)
    one = item_of(category="원인", inference_1="다른 문장이다.")
    other = item_of(category="반응")
    assert prompt.render(one).messages[:-1] == prompt.render(other).messages[:-1]
    shared = "".join(
        a
        for a, b in itertools.takewhile(
            lambda pair: pair[0] == pair[1],
            zip(prompt.render(one).messages[-1]["content"], prompt.render(other).messages[-1]["content"], strict=False),
        )
    )
    assert all(turn.text in shared for turn in one.dialogue)


@pytest.mark.parametrize("name", ["entry", "korean", "plain"])
def test_what_the_official_files_surprise_with(name: str) -> None:
    traps = turns("", "  ", "첫 줄\n둘째 줄", "name1 왔어? {{ dialogue }} {% raw %}", "응.  ", 'A. "따옴표" \\ <s>')
    item = item_of(conversation=traps, reference_id=["t2", "t1"], inference_2="빈칸이 뒤에 있다.  ")
    user = load_prompt(name).render(item).messages[-1]["content"]
    assert "화자1: 첫 줄\n둘째 줄\n" in user
    assert "name1 왔어? {{ dialogue }} {% raw %}" in user, "what is in the data is no template"
    assert '화자2: A. "따옴표" \\ <s>' in user
    assert "B. 빈칸이 뒤에 있다.\n" in user
    # Blank turns keep their place, and both target utterances stand in the order of the dialogue.
    mark = "*" if name == "plain" else ""
    assert f"화자1: \n{mark}화자2:   \n{mark}화자1: 첫 줄" in user
    if name != "plain":
        assert "화자2:   \n화자1: 첫 줄\n둘째 줄\n\n" in user


def test_orders_map_options_to_letters() -> None:
    item = item_of(inference_1="가", inference_2="나", inference_3="다")
    rendered = load_prompt("entry").render(item, "201")
    assert rendered.answers == ("A. 다", "B. 가", "C. 나")
    assert rendered.messages[-1]["content"].endswith("A. 다\nB. 가\nC. 나")
    assert load_prompt("korean").render(item, "201").answers == ("A", "B", "C")


@pytest.mark.parametrize("name", STRATEGIC)
def test_guidance_is_of_the_items_category_alone(name: str) -> None:
    prompt = load_prompt(f"{name}+categorized")
    for category in TASK.categories:
        user = prompt.render(item_of(category=category)).messages[-1]["content"]
        assert [one for one in TASK.categories if prompt.guidance[one] in user] == [category]
        # What all items of a dialogue share stays in front of it.
        assert user.index(prompt.guidance[category]) > user.index(prompt.categories[category])


@pytest.mark.parametrize("name", COMBINED)
def test_with_reasoning_the_prompt_asks_for_grounds_and_not_for_the_letter(name: str) -> None:
    prompt = load_prompt(name)
    at_once, first = (prompt.render(item_of(), reasoning=flag).messages[-1]["content"] for flag in (False, True))
    assert (
        at_once.splitlines()[-1].split()[-1] in ("기호:", "answer:")
        and first.splitlines()[-1] != at_once.splitlines()[-1]
    )
    shared = at_once.rindex("C. ")
    assert first[:shared] == at_once[:shared]
    assert prompt.reasoned(" 근거.\n") == f"근거.\n\n{prompt.bridge}\n"
    assert prompt.reasoned("  ") == f"{prompt.bridge}\n"


def test_examples_are_earlier_turns() -> None:
    prompt = load_prompt("korean+2shots")
    assert (prompt.name, prompt.examples) == ("korean+2shots", Examples(2))
    assert load_prompt("korean+cot+3near").examples == Examples(3, "near")
    one, two, asked = item_of(output="inference_2"), item_of(category="전제"), item_of(category="동기")
    rendered = prompt.render(asked, "201", examples=(one, two))
    assert [message["role"] for message in rendered.messages] == ["system", *["user", "assistant"] * 2, "user"]
    bare = load_prompt("korean")
    assert rendered.messages[1] == bare.render(one).messages[1] and rendered.messages[2]["content"] == "B"
    assert rendered.messages[-1] == bare.render(asked, "201").messages[-1]
    with pytest.raises(AssertionError, match="no label"):
        prompt.render(asked, examples=(item_of(output=""),))


def test_reasoning_is_whole_and_composed_like_all_text() -> None:
    assert reasoning_of(item_of(reasoning=unicodedata.normalize("NFD", "까닭") + "\ud83d")) == "까닭\ufffd"


def test_a_template_that_fails_for_one_item_names_it() -> None:
    """The probes have two turns; what comes of a third is known when an item has one."""
    text = yaml.safe_dump(GOOD | {"user": GOOD["user"] + "{% if dialogue | length > 2 %}{{ nothing }}{% endif %}"})
    prompt = parse_prompt(text, "mine.yaml", "mine")
    with pytest.raises(UserError, match=r"prompt mine, item made-0004: the template cannot be filled \('nothing' is"):
        prompt.render(item_of())


# Another task


@pytest.mark.parametrize("order", ["0123", "3210", "1032"])
def test_an_item_of_four_options_under_any_order(order: str) -> None:
    with working_on(FOUR):
        prompt, items = parse_prompt(PROMPT, "four"), four_items(2)
        for item in items:
            rendered = prompt.render(item, order)
            shown = [f"{letter}. {item.options[int(place)]}" for letter, place in zip("ABCD", order, strict=True)]
            assert rendered.answers == tuple(shown)
            user = rendered.messages[-1]["content"]
            assert user.splitlines()[-4:] == shown
            assert prompt.categories[item.category] in user
        assert prompt.render(items[0]) == prompt.render(items[0], "0123")
        with pytest.raises(AssertionError):
            prompt.render(items[0], "012")


def test_two_options_and_letters_of_ones_own() -> None:
    with working_on(FOUR):
        item = dataclasses.replace(four_items(1)[0], options=("맞다.", "아니다."))
    with working_on(dataclasses.replace(FOUR, options=("yes", "no"), letters=("가", "나"))):
        assert parse_prompt(PROMPT, "two").render(item, "10").answers == ("가. 아니다.", "나. 맞다.")
