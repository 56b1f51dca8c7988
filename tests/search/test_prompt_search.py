import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from src import task
from src.console.cli import UserError
from src.data import Item
from src.prompt.prompts import Prompt, load_prompt, make_prompt
from src.score.item_scores import ItemScores
from src.search.calls import Calls
from src.search.folder import Step, read_steps
from src.search.prompt_search import run_search, split
from src.search.settings import Search, SearchSettings
from src.search.textgrad import SYSTEM, describe
from tests import toys

ITEMS = toys.items(60)
SETTINGS = SearchSettings(steps=3, max_calls=100)
LEARN, HELD = split(ITEMS, SETTINGS)
START = dataclasses.replace(load_prompt("korean"), system="대화를 읽고 기호로 답하세요.")
WORSE, BETTER, BLIND = "아무렇게나 고르세요.", "앞뒤의 말을 견주어 고르세요.", "배운 것만 외우세요."
HELD_IDS = {item.id for item in HELD}
RIGHT_OF_TEN = {WORSE: 1, START.system: 4, BETTER: 9}


def scorer(prompt: Prompt, items: Sequence[Item]) -> list[ItemScores]:
    """A model under test whose share of right answers depends on the system text alone; BLIND helps on what the critic
    reads, not on what is held out.
    """
    scores = []
    for item in items:
        of_ten = RIGHT_OF_TEN.get(prompt.system, 4)
        if prompt.system == BLIND:
            of_ten = 4 if item.id in HELD_IDS else 10
        hit = sum(item.id.encode()) % 10 < of_ten
        answer = ((item.label or 0) + (0 if hit else 1)) % 3
        scores.append(ItemScores(item.id, ("012",), (tuple(float(place == answer) for place in range(3)),)))  # type: ignore[arg-type]
    return scores


class Scripted:
    """A critic that gives the same feedback to everything, and these new texts one after the other."""

    def __init__(self, *texts: str, tags: bool = True) -> None:
        self.texts, self.tags, self.heard = list(texts), tags, list[tuple[str, str]]()

    def __call__(self, message: str, system: str) -> str:
        self.heard.append((message, system))
        if "gradient" in system:
            return f"피드백 {len(self.heard)}: 앞뒤를 보라고 하세요."
        text = self.texts.pop(0)
        return f"<IMPROVED_VARIABLE>{text}</IMPROVED_VARIABLE>" if self.tags else text


def searched(
    folder: Path, critic: Callable[[str, str], str], start: Prompt = START, **changes: Any
) -> tuple[list[Step], str]:
    settings = dataclasses.replace(SETTINGS, **changes)
    calls = Calls(critic, folder / "calls.jsonl", settings.max_calls)
    return run_search(Search(settings, start, LEARN, HELD, scorer, calls, len, folder))


def test_the_two_parts_share_no_dialogue() -> None:
    assert len(LEARN) + len(HELD) == 60 and len(HELD) == 30
    assert not {item.dialogue_key for item in LEARN} & {item.dialogue_key for item in HELD}
    assert split(ITEMS, SETTINGS) == (LEARN, HELD) != split(ITEMS, dataclasses.replace(SETTINGS, seed=1))
    with pytest.raises(UserError, match="each part needs a dialogue"):
        split(toys.items(3), SETTINGS)


def test_a_better_prompt_is_found_and_a_worse_one_refused(tmp_path: Path) -> None:
    steps, ended = searched(tmp_path, Scripted(WORSE, BETTER, WORSE))
    assert [(step.number, step.kept) for step in steps] == [(0, True), (1, False), (2, True), (3, False)]
    assert steps[1].reason.startswith("worse on the items it learns from, +0 −") and steps[1].right["held"] is None
    assert yaml.safe_load(steps[2].prompt)["system"] == BETTER
    assert steps[2].reason.startswith("+") and "p 0.0" in steps[2].reason and steps[2].calls == 2
    assert steps[0].accuracy and steps[2].accuracy and steps[2].accuracy[0] > steps[0].accuracy[0] + 0.3
    assert ended == "3 steps are done"
    # Everything is on disk, and is read as it was.
    assert read_steps(tmp_path) == steps
    told = json.loads((tmp_path / "steps/002/step.json").read_text(encoding="utf-8"))
    assert told["kept"] and told["held_out"]["accuracy"] == steps[2].accuracy[0]
    assert "피드백" in (tmp_path / "steps/002/gradient.txt").read_text(encoding="utf-8")
    assert (
        make_prompt(yaml.safe_load((tmp_path / "steps/002/prompt.yaml").read_text(encoding="utf-8")), "x").system
        == BETTER
    )


def test_what_wins_only_where_it_learned_is_refused(tmp_path: Path) -> None:
    (_, step), _ = searched(tmp_path, Scripted(BLIND), steps=1)
    assert not step.kept and step.reason == "+0 −0 of 30 held-out items: p 1.000, asked for: up to 0.05"
    assert sum(step.right["learn"] or []) == len(LEARN)


def test_a_margin_in_place_of_the_test(tmp_path: Path) -> None:
    for number, (margin, kept) in enumerate([(0.2, True), (0.9, False)]):
        (_, step), _ = searched(tmp_path / f"{number}", Scripted(BETTER), steps=1, margin=margin)
        assert step.kept is kept and f"asked for: +{margin:.3f}" in step.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("문장을 고르세요.", "lost the placeholder category"),
        ("{{ category }}, {{ question }}", "a new placeholder question"),
        ("{{ category", "the template cannot be filled"),
        ("{% if category %}", "the template cannot be filled"),
        ("{{ category }} {{ anything }}", "the template cannot be filled"),
        ("{{ category }}" + "길게 " * 300, "the system text has 913 tokens, allowed 768"),
        ("{{ category }}에 답하세요.", "the same as in step 0"),
    ],
)
def test_a_step_that_breaks_the_contract_is_refused_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    start = dataclasses.replace(START, system="{{ category }}에 답하세요.")
    (_, step), _ = searched(tmp_path, Scripted(text), start, steps=1)
    assert not step.kept and reason in step.reason and step.right == {"learn": None, "held": None}


def test_an_answer_without_a_text_is_refused(tmp_path: Path) -> None:
    (_, step), _ = searched(tmp_path, Scripted(BETTER, tags=False), steps=1)
    assert (step.kept, step.prompt) == (False, "") and "no new text between its tags" in step.reason
    (_, step), _ = searched(tmp_path / "empty", Scripted(""), steps=1)
    assert step.reason == "the system text is empty"


def test_a_prompt_that_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    def short(prompt: Prompt, items: Sequence[Item]) -> list[ItemScores]:
        if prompt.system == BETTER:
            raise UserError("longer than the model's context")
        return scorer(prompt, items)

    calls = Calls(Scripted(BETTER), tmp_path / "calls.jsonl", 9)
    settings = dataclasses.replace(SETTINGS, steps=1)
    (_, step), _ = run_search(Search(settings, START, LEARN, HELD, short, calls, len, tmp_path))
    assert not step.kept and step.reason == "longer than the model's context"
    with pytest.raises(UserError, match="allowed: --max_tokens, now 3"):
        searched(tmp_path / "long", Scripted(), max_tokens=3)


class ByRole(Scripted):
    """Gives a text for each variable, whichever is asked for first."""

    def __call__(self, message: str, system: str) -> str:
        self.heard.append((message, system))
        if "gradient" in system:
            return "피드백"
        text = self.texts[0] if SYSTEM in message.split("</ROLE>")[0] else self.texts[1]
        return f"<IMPROVED_VARIABLE>{text}</IMPROVED_VARIABLE>"


def test_the_sentences_of_the_categories(tmp_path: Path) -> None:
    new = {category: f"{category}을 물어요: 무엇입니까?" for category in task.current().categories}
    lines = yaml.safe_dump(new, allow_unicode=True)
    critic = ByRole(BETTER, lines)
    (_, step), _ = searched(tmp_path, critic, steps=1, categories=True)
    assert step.kept and yaml.safe_load(step.prompt)["categories"] == new and step.calls == 4
    assert any(START.categories["전제"] in message for message, _ in critic.heard)
    for number, (text, reason) in enumerate(
        [("원인: [", "no YAML"), ("원인: 하나", "needs one sentence for each"), ("둘", "needs one sentence")]
    ):
        (_, step), _ = searched(tmp_path / f"{number}", ByRole(BETTER, text), steps=1, categories=True)
        assert not step.kept and reason in step.reason


def test_the_critic_is_told_what_the_task_is(tmp_path: Path) -> None:
    critic = ByRole(BETTER, "없음")
    searched(tmp_path, critic, steps=1, categories=True)
    heard = "\n".join(message for message, _ in critic.heard)
    assert "a question and three options" in heard and "each of the five categories" in heard
    assert "keep their five keys in Korean" in heard and "right letter: C" in heard


def test_the_critic_reads_the_whole_text_and_the_items(tmp_path: Path) -> None:
    critic = Scripted(BETTER)
    long = " ".join(f"{number}번 규칙." for number in range(60))
    searched(tmp_path, critic, dataclasses.replace(START, system=long), steps=1)
    assert all(long in message for message, _ in critic.heard)
    shown = [item for item in LEARN if all(option in critic.heard[0][0] for option in item.options)]
    assert len(shown) >= SETTINGS.batch_size
    text = describe(LEARN[:2], scorer(START, LEARN[:2]))
    assert "right letter: " in text and "Of these 2 questions" in text
    assert all(item.options[item.label or 0] in text for item in LEARN[:2])
    # What is held out is never shown.
    lines = {line for item in HELD for line in (f"A. {item.options[0]}", item.dialogue[-1].text)}
    ours = {line for item in LEARN for line in (f"A. {item.options[0]}", item.dialogue[-1].text)}
    assert not any(line in message for line in lines - ours for message, _ in critic.heard)


# Calls, and going on


def test_calls_are_counted_capped_and_cached(tmp_path: Path) -> None:
    critic = Scripted(WORSE, BETTER, WORSE)
    steps, ended = searched(tmp_path, critic, max_calls=3)
    assert [step.number for step in steps] == [0, 1] and ended == "the cap of 3 calls is reached (--max_calls)"
    assert len(critic.heard) == 3 == len((tmp_path / "calls.jsonl").read_text(encoding="utf-8").splitlines())
    # With more calls the same search goes on; the gradient of step 2 is not asked for again.
    steps, ended = searched(tmp_path, critic, max_calls=6)
    assert [step.kept for step in steps] == [True, False, True, False] and len(critic.heard) == 6


def test_a_search_that_was_stopped_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole, _ = searched(tmp_path / "whole", Scripted(WORSE, BETTER, BLIND))

    class Stopped(Scripted):
        def __call__(self, message: str, system: str) -> str:
            if len(self.heard) == 3:
                raise KeyboardInterrupt
            return super().__call__(message, system)

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "parts", Stopped(WORSE, BETTER, BLIND))
    assert len(read_steps(tmp_path / "parts")) == 2
    with (tmp_path / "parts" / "calls.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"key": "cut off')
    (tmp_path / "parts" / "calls.jsonl").write_text(
        (tmp_path / "parts" / "calls.jsonl").read_text(encoding="utf-8") + "\n", encoding="utf-8"
    )
    rest = Scripted(BETTER, BLIND)
    again, _ = searched(tmp_path / "parts", rest)
    assert len(rest.heard) == 3, "the gradient of step 2 was there"
    assert [(step.kept, step.reason, step.prompt) for step in again] == [
        (step.kept, step.reason, step.prompt) for step in whole
    ]


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"alpha": 0.0}, {"margin": 1.5}, {"held_out": 1.0}, {"max_calls": 0}, {"batch_size": 0}]
)
def test_settings_are_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(changes))}: found"):
        SearchSettings(**changes)


def test_answers_with_thoughts_and_odd_line_ends(tmp_path: Path) -> None:
    """A thought that names the tags is no new text, and a text with U+2028, U+0085 or a form feed is read as it was."""
    odd = "앞뒤의 말을\u2028견주어\u2029 고르\x85세요."

    class Thinking(Scripted):
        def __call__(self, message: str, system: str) -> str:
            return f"<think>The text must stand in <IMPROVED_VARIABLE>.</think>\n{super().__call__(message, system)}"

    critic = Thinking(odd)
    (_, step), _ = searched(tmp_path, critic, steps=1)
    assert "items" in step.reason and make_prompt(yaml.safe_load(step.prompt), "x").system == odd
    assert read_steps(tmp_path)[1] == step
    again = Thinking()
    for file in (tmp_path / "steps/001").iterdir():
        file.unlink()
    (_, same), _ = searched(tmp_path, again, steps=1)
    assert not again.heard and same.prompt == step.prompt
