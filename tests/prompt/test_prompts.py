import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from src.console.cli import UserError
from src.prompt.prompts import (
    PROMPTS,
    Examples,
    Prompt,
    available,
    combinations,
    load_prompt,
    parse_prompt,
)
from tests.made_prompts import GOOD, NAMES, STRATEGIC, TASK, item_of
from tests.made_task import FOUR, PROMPT, working_on


def problem_of(**changes: Any) -> str:
    """The message for the good prompt with these keys changed; `...` takes one out."""
    raw = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    with pytest.raises(UserError) as caught:
        parse_prompt(yaml.safe_dump(raw, allow_unicode=True), "mine.yaml")
    return str(caught.value)


def test_the_shipped_prompts() -> None:
    assert available() == sorted(NAMES)
    assert all(load_prompt(name).description for name in NAMES)


# Strategies


def test_each_language_has_each_strategy() -> None:
    assert [len(combinations(name)) for name in NAMES] == [8, 8, 1, 8, 1]
    for name in STRATEGIC:
        base = load_prompt(name)
        persona, cot, categorized = (load_prompt(f"{name}+{one}") for one in ("persona", "cot", "categorized"))
        # Who reads comes first, how to think last, and guidance leaves what all items share alone.
        assert persona.system.endswith(base.system) and cot.system.startswith(base.system)
        assert len({persona.system, cot.system, base.system}) == 3
        assert categorized.system == base.system and set(categorized.guidance) == set(TASK.categories)
        assert len({prompt.sha256 for prompt in (base, persona, cot, categorized)}) == 4
        both = load_prompt(f"{name}+cot+persona")
        assert both.name == f"{name}+persona+cot" and both == load_prompt(f"{name}+persona+cot")
        first, last = persona.system.removesuffix(base.system), cot.system.removeprefix(base.system)
        assert both.system == first + base.system + last


def test_the_languages() -> None:
    korean, english, both = (
        load_prompt(f"{name}+persona+cot+categorized") for name in ("korean", "english", "bilingual")
    )

    def hangul(prompt: Prompt) -> float:
        words = [prompt.system, prompt.bridge, *prompt.guidance.values(), *prompt.categories.values()]
        letters = [letter for letter in "".join(words) if letter.isalpha()]
        return sum("가" <= letter <= "힣" for letter in letters) / len(letters)

    assert hangul(korean) == 1 and hangul(english) == 0 and 0.2 < hangul(both) < 0.8


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
    prompt = Prompt("이름", system, GOOD["user"], dict.fromkeys(TASK.categories, ""), GOOD["answer"], sentence)  # type: ignore[arg-type]
    prompt.categories.update({category: f"{category}{sentence}" for category in TASK.categories})
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
        None,
    ],
)
def test_a_sentence_for_every_category(categories: Any) -> None:
    assert "'categories' needs one sentence for each of 원인, 후행사건" in problem_of(categories=categories)


@pytest.mark.parametrize("name", ["korean", "entry"])
def test_a_prompt_of_another_task_is_refused_with_what_to_do(name: str) -> None:
    with working_on(FOUR):
        with pytest.raises(UserError) as caught:
            load_prompt(name)
        assert str(caught.value) == (
            f"{PROMPTS / name}.yaml: 'categories' needs one sentence for each of Cause, What follows, "
            "the categories of the task weather talk; found 원인, 후행사건, 전제, 동기, 반응. "
            "If this prompt is for another task, write one for this task: "
            "copy the file, and put a sentence for each of the task's categories under 'categories'."
        )
        assert set(parse_prompt(PROMPT, "four").categories) == set(FOUR.categories)
    with pytest.raises(UserError, match=r"needs one sentence for each of 원인, .*; found Cause, What follows"):
        parse_prompt(PROMPT, "four")


def test_answers_of_four_options_start_with_their_letters() -> None:
    with working_on(FOUR), pytest.raises(UserError, match=r"for A it is '1\. A'"):
        parse_prompt(PROMPT.replace('"{{ letter }}. {{ option }}"', '"1. {{ letter }}"'), "four")


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
    monkeypatch.setattr("src.files.templates.SECONDS", 0.3)
    nested = "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}{% endfor %}"
    for user in (nested, "{{ lipsum(n=10 ** 7) }}"):
        assert "it has not ended after 0.3 s" in problem_of(user=GOOD["user"] + user)
    assert "it takes more than 256 MiB of memory" in problem_of(user=GOOD["user"] + "{{ 'a'.center(3 * 10 ** 9) }}")


def test_no_heavy_imports() -> None:
    code = "import src.prompt.prompts, sys; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    assert PROMPTS.is_dir()


def test_strategies_are_texts_and_not_too_many(tmp_path: Path) -> None:
    many = {f"s{number}": {"before": "x"} for number in range(11)}
    for strategies, told in (
        (many, "found 11 strategies; allowed: 10"),
        ({"a": {"before": {"b": 1}}}, "strategy 'a': 'before' must be text, found dict"),
        ({1: {}}, "is a mapping of names"),
    ):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({**GOOD, "strategies": strategies}, allow_unicode=True), encoding="utf-8")
        with pytest.raises(UserError, match=told):
            load_prompt(path)


@pytest.mark.parametrize("name", ["korean+" + "9" * 5000 + "shots", "a" * 5000, "korean+\0", "a\0b"])
def test_a_name_that_no_prompt_has(name: str) -> None:
    with pytest.raises(UserError, match=r"strategy|there is no prompt"):
        load_prompt(name)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{{ '{x}'.format() }}", "KeyError"),
        ("{{ cycler() }}", "RuntimeError"),
        ("{{ {'a b': 1}|xmlattr }}", "ValueError"),
        ("{{ 'ab'|truncate(-5) }}", "AssertionError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself without an end"),
        ("{{ 10 ** (10 ** 9) }}", r"\*\* makes a number of more than 10,000 bits"),
        ("{{ 'a' * 10 ** 9 }}", r"\* makes something longer than 10,000,000"),
        ("{{ 1.5|round(10 ** 9, 'ceil') }}", "round: found 1000000000 places, allowed: up to 300"),
        ("{{ '\\ud800' }}", "half a character"),
    ],
)
def test_whatever_a_template_raises_is_told(text: str, told: str) -> None:
    assert re.search(f"mine.yaml: the template cannot be filled.*{told}", problem_of(user=GOOD["user"] + text))


def test_guidance_may_be_empty_and_is_else_for_each_category() -> None:
    assert parse_prompt(yaml.safe_dump({**GOOD, "guidance": None}, allow_unicode=True), "f").guidance == {}
    for guidance in ([], 0, "", [1]):
        assert "'guidance' needs one sentence for each of" in problem_of(guidance=guidance)


def test_a_prompt_is_read_anew_where_its_file_or_the_task_changed(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "system": "고르세요."}), encoding="utf-8")
    first = load_prompt(path)
    first.categories.clear()
    assert load_prompt(path).categories, "what one does with a prompt is not seen in the next"
    path.write_text(yaml.safe_dump({**GOOD, "system": "고르시오."}), encoding="utf-8")
    assert load_prompt(path).system == "고르시오."
    with working_on(FOUR), pytest.raises(UserError, match="the categories of the task"):
        load_prompt(path)
