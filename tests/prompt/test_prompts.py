import itertools
import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from src.console.cli import UserError
from src.data import CATEGORIES, Item, parse_items
from src.prompt.prompts import (
    LETTERS,
    ORDERS,
    PROMPTS,
    Examples,
    Prompt,
    available,
    combinations,
    load_prompt,
    parse_prompt,
    reasoning_of,
)
from tests.conftest import make_item

OLD = ("entry", "korean", "plain")
STRATEGIC = ("bilingual", "english", "korean")
NAMES = ("bilingual", "english", "entry", "korean", "plain")
COMBINED = [name for file in STRATEGIC for name in combinations(file)]
GOOD: dict[str, Any] = {
    "user": "{% for turn in dialogue %}{{ turn.target }}{{ turn.text }} {% endfor %}{{ question }} "
    "{% for option in options %}{{ option.letter }} {{ option.text }} {% endfor %}",
    "categories": dict(zip(CATEGORIES, "12345", strict=True)),
    "answer": "{{ letter }}",
}


def item_of(**changes: Any) -> Item:
    found, problems = parse_items(json.dumps([make_item(4, **changes)]).encode(), "made")
    assert not problems, problems
    return found[0]


def turns(*texts: str) -> list[dict[str, Any]]:
    return [
        {"speaker": 1 + index % 2, "utterance": text, "utterance_id": f"t{index}"} for index, text in enumerate(texts)
    ]


def problem_of(**changes: Any) -> str:
    """The message for the good prompt with these keys changed; `...` takes one out."""
    raw = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    with pytest.raises(UserError) as caught:
        parse_prompt(yaml.safe_dump(raw, allow_unicode=True), "mine.yaml")
    return str(caught.value)


# Rendering


def test_the_shipped_prompts() -> None:
    assert available() == sorted(NAMES)
    assert all(load_prompt(name).description for name in NAMES)


@pytest.mark.parametrize("name", ["entry", "plain", *COMBINED])
@pytest.mark.parametrize("category", CATEGORIES)
def test_nothing_of_an_item_is_lost(name: str, category: str) -> None:
    prompt = load_prompt(name)
    item = item_of(category=category)
    for order in ORDERS:
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
        for letter, index in zip(LETTERS, order, strict=True):
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


@pytest.mark.parametrize("name", OLD)
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
    assert sorted(ORDERS) == sorted("".join(order) for order in itertools.permutations("012"))
    assert ORDERS[0] == "012"
    item = item_of(inference_1="가", inference_2="나", inference_3="다")
    rendered = load_prompt("entry").render(item, "201")
    assert rendered.answers == ("A. 다", "B. 가", "C. 나")
    assert rendered.messages[-1]["content"].endswith("A. 다\nB. 가\nC. 나")
    assert load_prompt("korean").render(item, "201").answers == ("A", "B", "C")


# Strategies


def test_each_language_has_each_strategy() -> None:
    assert [len(combinations(name)) for name in NAMES] == [8, 8, 1, 8, 1]
    for name in STRATEGIC:
        base = load_prompt(name)
        persona, cot, categorized = (load_prompt(f"{name}+{one}") for one in ("persona", "cot", "categorized"))
        # Who reads comes first, how to think last, and guidance leaves what all items share alone.
        assert persona.system.endswith(base.system) and cot.system.startswith(base.system)
        assert len({persona.system, cot.system, base.system}) == 3
        assert categorized.system == base.system and set(categorized.guidance) == set(CATEGORIES)
        assert len({prompt.sha256 for prompt in (base, persona, cot, categorized)}) == 4
        both = load_prompt(f"{name}+cot+persona")
        assert both.name == f"{name}+persona+cot" and both == load_prompt(f"{name}+persona+cot")
        first, last = persona.system.removesuffix(base.system), cot.system.removeprefix(base.system)
        assert both.system == first + base.system + last


@pytest.mark.parametrize("name", STRATEGIC)
def test_guidance_is_of_the_items_category_alone(name: str) -> None:
    prompt = load_prompt(f"{name}+categorized")
    for category in CATEGORIES:
        user = prompt.render(item_of(category=category)).messages[-1]["content"]
        assert [one for one in CATEGORIES if prompt.guidance[one] in user] == [category]
        # What all items of a dialogue share stays in front of it.
        assert user.index(prompt.guidance[category]) > user.index(prompt.categories[category])


def test_the_languages() -> None:
    korean, english, both = (
        load_prompt(f"{name}+persona+cot+categorized") for name in ("korean", "english", "bilingual")
    )

    def hangul(prompt: Prompt) -> float:
        words = [prompt.system, prompt.bridge, *prompt.guidance.values(), *prompt.categories.values()]
        letters = [letter for letter in "".join(words) if letter.isalpha()]
        return sum("가" <= letter <= "힣" for letter in letters) / len(letters)

    assert hangul(korean) == 1 and hangul(english) == 0 and 0.2 < hangul(both) < 0.8


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


@pytest.mark.parametrize("name", ["entry", "plain", *COMBINED])
def test_the_parts_make_the_message(name: str) -> None:
    prompt = load_prompt(name)
    item = item_of(conversation=turns("첫 줄\n\n둘째 줄", "응", "A. 응?\n"), reference_id=["t0"])
    parts = prompt.parts(item, "120")
    assert "".join(text for _, text in parts) == prompt.render(item, "120").messages[-1]["content"]
    assert [part for part, _ in parts] == [
        part for part in ("dialogue", "targets", "question", "options") if part != "targets" or name != "plain"
    ]
    told = dict(parts)
    assert prompt.categories[item.category] in told["question"] and item.options[0] in told["options"]
    assert prompt.guidance.get(item.category, "") in told["question"] and "둘째 줄" in told["dialogue"]


@pytest.mark.parametrize("name", ["entry", "plain"])
def test_characters_for_private_use_are_text_like_any_other(name: str) -> None:
    prompt = load_prompt(name)
    item = item_of(conversation=turns("\ue000첫\ue004 줄\ue001", "\ue002응\ue003"), reference_id=["t0"])
    parts = prompt.parts(item)
    assert "".join(text for _, text in parts) == prompt.render(item).messages[-1]["content"]
    assert parts[0][0] == "dialogue" and "\ue000첫\ue004 줄\ue001" in parts[0][1]


def test_reasoning_is_whole_and_composed_like_all_text() -> None:
    assert reasoning_of(item_of(reasoning=unicodedata.normalize("NFD", "까닭") + "\ud83d")) == "까닭\ufffd"


def test_strategies_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    mine = {
        "louder": {"system": "크게", "description": "Louder."},
        "also": {"before": "먼저", "after": "끝"},
        "quiet": {"system": ""},
        "shown": {"examples": {"count": 2, "choose": "near"}},
    }
    path.write_text(yaml.safe_dump({**GOOD, "strategies": mine}, sort_keys=False), encoding="utf-8")
    assert load_prompt(path).system == ""
    both = load_prompt(f"{path}+also+louder")
    assert (both.name, both.system, both.description) == ("mine+louder+also", "먼저\n크게\n끝", "Louder.")
    assert load_prompt(f"{path}+shown").examples == Examples(2, "near")
    assert "strategies" not in yaml.safe_load(both.text)
    for words, said in (
        ("loudr", "strategy 'loudr' is not there. Known: louder, also.* Did you mean 'louder'"),
        ("also+also", "strategy 'also' is given twice"),
        ("louder+quiet", "replace the same key"),
        ("0shots", "N above 0"),
        ("1shots+2near", "allowed: one"),
    ):
        with pytest.raises(UserError, match=said):
            load_prompt(f"{path}+{words}")
    for wrong, said in (
        ({"louder": {"sytem": "x"}}, "unknown key 'sytem'.* Did you mean 'system'"),
        (["x"], "a mapping"),
    ):
        path.write_text(yaml.safe_dump({**GOOD, "strategies": wrong}, allow_unicode=True), encoding="utf-8")
        with pytest.raises(UserError, match=said):
            load_prompt(path)


@pytest.mark.parametrize("examples", [3, {"count": 0}, {"count": 1, "choose": "best"}, {"shots": 1}])
def test_examples_are_checked(examples: Any) -> None:
    assert "'examples' needs a count of 1 or more" in problem_of(examples=examples)


def test_prompts_without_strategies_keep_their_sums() -> None:
    """The sum of the entry's prompt, which recorded runs hold: new keys may not change it."""
    assert load_prompt("entry").sha256.startswith("af214a45d1d973fd")


# Files


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_comes_back_from_its_text(name: str) -> None:
    prompt = load_prompt(name)
    again = parse_prompt(prompt.text, "record")
    assert (again, again.sha256, again.name) == (prompt, prompt.sha256, name)


@given(
    st.text(st.characters(exclude_categories=["C"]), max_size=40),
    st.text("가 \n:'\"#-|>&*!%@`,[]", max_size=40),
)
def test_any_text_comes_back_from_yaml(system: str, sentence: str) -> None:
    system = "{% raw %}" + system.replace("{%", "") + "{% endraw %}"
    prompt = Prompt("이름", system, GOOD["user"], dict.fromkeys(CATEGORIES, ""), GOOD["answer"], sentence)  # type: ignore[arg-type]
    prompt.categories.update({category: f"{category}{sentence}" for category in CATEGORIES})
    assert parse_prompt(prompt.text, "record") == prompt


def test_the_sum_follows_the_text() -> None:
    prompt = load_prompt("korean")
    changed = yaml.safe_load(prompt.text) | {"system": prompt.system + "!"}
    assert parse_prompt(yaml.safe_dump(changed), "record").sha256 != prompt.sha256


def test_a_prompt_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD, allow_unicode=True), encoding="utf-8")
    prompt = load_prompt(path)
    assert (prompt.name, prompt.system) == ("mine", "")
    assert [message["role"] for message in prompt.render(item_of()).messages] == ["user"]


def test_a_prompt_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"no prompt 'koraen' .*Known: bilingual, english, entry, korean, plain\. Did you mean 'korean'\?",
    ):
        load_prompt("koraen")
    with pytest.raises(UserError, match=r"no prompt '.*x\.yaml'"):
        load_prompt(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_bytes("system: 한국어".encode("cp949"))
    with pytest.raises(UserError, match="not UTF-8"):
        load_prompt(tmp_path / "x.yaml")
    with pytest.raises(UserError, match="not YAML"):
        parse_prompt("user: [", "x")
    with pytest.raises(UserError, match=r"here is empty\. A prompt has user, categories and answer"):
        parse_prompt("", "here")
    with pytest.raises(UserError, match=r"a prompt is a mapping with .*; found list"):
        parse_prompt("- user", "x")


def test_every_key_is_checked() -> None:
    message = problem_of(sytem="x", answer=..., user=3)
    assert "mine.yaml: unknown key 'sytem'. Did you mean 'system'?" in message
    assert "'answer' is missing" in message and "'user' must be text, found int" in message
    assert "Allowed keys: name, system, user, categories, answer, description, guidance, bridge, examples." in message


@pytest.mark.parametrize(
    "categories",
    [
        ["원인"],
        {"원인": "1"},
        GOOD["categories"] | {"결과": "6"},
        GOOD["categories"] | {None: "6"},
        GOOD["categories"] | {"원인": 1},
        GOOD["categories"] | {"원인": None},
    ],
)
def test_a_sentence_for_every_category(categories: Any) -> None:
    assert "'categories' needs one sentence for each of 원인, 후행사건" in problem_of(categories=categories)


@pytest.mark.parametrize("answer", ["정답: {{ letter }}", "{{ option }}", "A", "({{ letter }})", ""])
def test_an_answer_starts_with_its_letter(answer: str) -> None:
    assert "the answer must start with the option's letter" in problem_of(answer=answer)


@pytest.mark.parametrize(
    ("user", "lost"),
    [
        (GOOD["user"].replace("turn.text", "turn.speaker"), "probe-first, probe-second"),
        (GOOD["user"].replace("option.text", "option.letter"), "probe-0, probe-1, probe-2"),
    ],
)
def test_a_prompt_that_leaves_something_out(user: str, lost: str) -> None:
    assert f"leaves out part of the item: {lost}" in problem_of(user=user)


@pytest.mark.parametrize("hidden", ["{{ turn.target }}", "{{ question }}"])
def test_a_prompt_that_asks_the_same_of_different_items(hidden: str) -> None:
    message = problem_of(user=GOOD["user"].replace(hidden, ""))
    assert "the prompt is the same for " in message and "targets" in message


@pytest.mark.parametrize(
    "user",
    [
        *("{{ dialog }}", "{{ turn", "{% if %}", "{{ dialogue.nothing }}"),
        *("{{ dialogue + 1 }}", "{{ 1 // 0 }}", "{{ ''.__class__.__mro__ }}"),
        *("{{ '{x}'.format() }}", "{{ cycler() }}", "{{ dialogue | xmlattr }}", "{{ 'abcdef' | truncate(2) }}"),
        *("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "{{ 'x' * 10 ** 10 }}"),
    ],
)
def test_a_template_that_cannot_be_filled(user: str) -> None:
    assert "the template cannot be filled (" in problem_of(user=GOOD["user"] + user)


def test_a_template_that_has_no_end_or_takes_all_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.prompt.prompts.SECONDS", 0.3)
    nested = "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}{% endfor %}"
    for user in (nested, "{{ lipsum(n=10 ** 7) }}"):
        assert "it has not ended after 0.3 s" in problem_of(user=GOOD["user"] + user)
    assert "it takes more than 1 GiB of memory" in problem_of(user=GOOD["user"] + "{{ 'a'.center(3 * 10 ** 9) }}")


def test_a_template_that_fails_for_one_item_names_it() -> None:
    """The probes have two turns; what comes of a third is known when an item has one."""
    text = yaml.safe_dump(GOOD | {"user": GOOD["user"] + "{% if dialogue | length > 2 %}{{ nothing }}{% endif %}"})
    prompt = parse_prompt(text, "mine.yaml", "mine")
    with pytest.raises(UserError, match=r"prompt mine, item made-0004: the template cannot be filled \('nothing' is"):
        prompt.render(item_of())


def test_no_heavy_imports() -> None:
    code = "import src.prompt.prompts, sys; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    assert PROMPTS.is_dir()
