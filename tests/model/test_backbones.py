"""What the table of backbones says of the competition's eight."""

from pathlib import Path

import pytest

from src.console.cli import UserError
from src.model.backbones import Backbone, backbones
from src.model.recipe_files import load_recipe

PUBLISHED = Path("resource/recipes/published")


def test_the_backbones_whose_licence_or_template_needs_care() -> None:
    table = backbones()
    assert [short for short, row in table.items() if not row.commercial] == ["spow12"]
    assert table["spow12"].licence == "cc-by-nc-4.0"
    assert {short for short, row in table.items() if row.chat_template} == {"polar", "solarko"}
    assert load_recipe(PUBLISHED / "polar.yaml").chat_template == table["polar"].chat_template
    assert table["kogemma"].expect["query_pre_attn_scalar"] == 256


def test_the_fallback_templates_render() -> None:
    import jinja2

    # The environment in which transformers renders chat templates.
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    answer = {"role": "assistant", "content": "A"}
    for short in ("polar", "solarko"):
        template = environment.from_string(backbones()[short].chat_template)
        prompt = template.render(messages=messages, bos_token="<s>", eos_token="</s>", add_generation_prompt=True)
        whole = template.render(
            messages=[*messages, answer], bos_token="<s>", eos_token="</s>", add_generation_prompt=False
        )
        assert prompt == "<s>### System:\nS\n\n### User:\nU\n\n### Assistant:\n"
        assert whole == f"{prompt}A</s>"


def test_a_config_must_say_what_is_checked_and_what_is_expected() -> None:
    table = backbones()
    expected = {"model_type": "gemma2", "num_hidden_layers": 42, "hidden_size": 3584, "head_dim": 256}
    assert table["kogemma"].expected_config == {**expected, "query_pre_attn_scalar": 256}
    assert table["solarko"].expected_config == {"model_type": "llama", "vocab_size": 64000}
    for short, facts in table.items():
        assert set(facts.checked) <= set(Backbone.__dataclass_fields__), short


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "a mapping of short names; found list"),
        ("a: 1", "an entry is a short name and a mapping"),
        ("1: {}", "an entry is a short name and a mapping"),
        ("a: {colour: red}", "unknown key 'colour'; 'parameters' is missing"),
        ("a: {parameters: 1.5}", "parameters: found 1.5"),
        ("a: {checked: [colour]}", "checked: unknown field 'colour'"),
        ("a: {gated: 3}", "gated: found 3"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "backbones.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        backbones(path)
