import subprocess
import sys

import pytest

from src.eda.corpus import sample_corpus
from src.eda.tokens import find_encoders
from src.prompt.fewshot import Library
from src.prompt.messages import Examples
from src.prompt.parts import PROMPT_PARTS, message_parts, pieces, prompt_parts, token_parts
from src.prompt.prompts import load_prompt, parse_prompt
from tests import toys
from tests.made_prompts import COMBINED, item_of, turns
from tests.made_task import FOUR, PROMPT, four_items, working_on


@pytest.mark.slow
def test_tokens_of_the_parts_add_up() -> None:
    corpus = sample_corpus()
    encoders = find_encoders(corpus)
    assert len(encoders) == 8
    items = corpus.splits["train"][:3]
    for name, encoder in encoders.items():
        for one, parts, example in zip(items, prompt_parts(encoder, items), encoder.for_scoring(items), strict=True):
            assert parts.total() == len(example.ids), name
            assert set(parts) == set(PROMPT_PARTS), name
            said = encoder.tokenizer(" ".join(turn.text for turn in one.dialogue), add_special_tokens=False)[
                "input_ids"
            ]
            assert parts["대화"] == pytest.approx(len(said), rel=0.3), name
            assert parts["대상 발화"] < parts["대화"], name


@pytest.mark.parametrize("name", ["entry", "plain", *COMBINED])
def test_the_parts_make_the_message(name: str) -> None:
    prompt = load_prompt(name)
    item = item_of(conversation=turns("첫 줄\n\n둘째 줄", "응", "A. 응?\n"), reference_id=["t0"])
    parts = message_parts(prompt, item, "120")
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
    parts = message_parts(prompt, item)
    assert "".join(text for _, text in parts) == prompt.render(item).messages[-1]["content"]
    assert parts[0][0] == "dialogue" and "\ue000첫\ue004 줄\ue001" in parts[0][1]


@pytest.mark.parametrize("short", ["polar", "qwen2it", "kogemma", "eeve"])
@pytest.mark.parametrize("name", ["korean+persona", "english+categorized", "plain"])
def test_every_token_belongs_to_a_part(short: str, name: str) -> None:
    prompt, (item,) = load_prompt(name), toys.items(1)
    encoder = toys.encoder(short, prompt)
    (counts,) = token_parts(encoder, [item])
    assert sum(counts.values()) == len(encoder.for_scoring([item])[0].ids)
    assert ("system" in counts) == (name != "plain") and counts["chat template"] > 0
    # What a part's own text makes of tokens, but for those that lie across its edges.
    for part, text in message_parts(prompt, item):
        own = len(encoder.tokenizer(text.strip(), add_special_tokens=False)["input_ids"])
        assert abs(counts[part] - own) <= 3, part


@pytest.mark.parametrize("name", ["entry", "plain", "korean+categorized"])
def test_pieces_are_the_texts_of_the_item_and_what_is_between_them(name: str) -> None:
    prompt, item = load_prompt(name), item_of()
    found = pieces(prompt, item, "201")
    assert "".join(text for _, text in found) == prompt.render(item, "201").messages[-1]["content"]
    assert [text for part, text in found if part == "dialogue"] == [turn.text for turn in item.dialogue]
    assert [text for part, text in found if part == "options"] == [item.options[place] for place in (2, 0, 1)]
    asked = [prompt.categories[item.category], *filter(None, [prompt.guidance.get(item.category)])]
    assert [text for part, text in found if part == "question"] == asked


def test_headings_are_the_templates_where_they_are_not_asked_for() -> None:
    encoder, (item,) = toys.encoder("polar", load_prompt("korean+persona")), toys.items(1)
    with_headings, without = (token_parts(encoder, [item], headings)[0] for headings in (True, False))
    assert with_headings.total() == without.total()
    for part in ("dialogue", "targets", "question", "options"):
        assert without[part] < with_headings[part], part
    assert without["system"] == with_headings["system"]


def test_parts_of_examples_and_of_the_bridge() -> None:
    shots = load_prompt("korean+1shots")
    encoder = toys.encoder("qwen2it", shots, library=Library(toys.items(9, start=900), shots.examples or Examples(1)))
    bare = toys.encoder("qwen2it", load_prompt("korean"))
    (item,) = toys.items(1)
    (counts,), (alone,) = token_parts(encoder, [item]), token_parts(bare, [item])
    assert counts["examples"] > alone["dialogue"]
    for part in ("system", "dialogue", "targets", "question", "options"):
        assert counts[part] == alone[part], part
    reasoning = toys.encoder("qwen2it", load_prompt("korean"), reasoning=True)
    (counts,) = token_parts(reasoning, [item])
    assert counts["bridge"] > 3 and "bridge" not in alone
    assert counts.total() == len(reasoning.for_scoring([item])[0].ids)


def test_parts_of_another_task() -> None:
    with working_on(FOUR):
        prompt, (item,) = parse_prompt(PROMPT, "four"), four_items(1)
        encoder = toys.encoder("polar", prompt)
        (counts,) = token_parts(encoder, [item])
        assert counts.total() == len(encoder.for_scoring([item])[0].ids)
        assert [text for part, text in pieces(prompt, item, "3012") if part == "options"] == [
            item.options[place] for place in (3, 0, 1, 2)
        ]


def test_no_heavy_imports() -> None:
    code = "import src.prompt.parts, sys; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
