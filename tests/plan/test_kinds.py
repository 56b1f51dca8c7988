"""What is known of a tokenizer before it is here."""

from pathlib import Path
from typing import Any

import pytest

from src.model.backbones import backbones
from src.model.recipes import make_recipe
from src.model.shapes import Shape
from src.plan.kinds import Kind, item_tokens, kind_of, kinds


def shape(model_type: str, vocab: int) -> Shape:
    keys: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    found = Shape.of_json({**keys, "model_type": model_type, "vocab_size": vocab})
    assert found is not None
    return found


@pytest.mark.parametrize("kind", kinds().values(), ids=lambda kind: kind.name)
def test_the_counts_of_a_kind_agree_with_each_other(kind: Kind) -> None:
    assert kind.mean_tokens / kind.computed_tokens == pytest.approx(kind.training_ratio, rel=0.005)
    assert kind.shared_tokens < kind.mean_tokens < kind.longest_tokens < 2 * kind.mean_tokens
    assert kind.per_syllable < kind.per_sign and kind.per_word < kind.per_sign


def test_every_backbone_has_a_kind() -> None:
    assert {row.tokens_like for row in backbones().values()} == set(kinds())
    for short, row in backbones().items():
        assert kind_of(make_recipe({"backbone": short}, "here")).name == row.tokens_like


@pytest.mark.parametrize(
    ("model_type", "vocab", "kind"),
    [
        ("qwen3", 151936, "qwen2"),
        ("gemma3_text", 262144, "gemma2"),
        ("llama", 128256, "llama3"),
        ("llama", 32000, "solar"),
        ("mistral", 32768, "solar"),
    ],
)
def test_another_model_is_taken_by_its_family(model_type: str, vocab: int, kind: str) -> None:
    recipe = make_recipe({"model_id": "someone/else"}, "here")
    assert kind_of(recipe, shape(model_type, vocab)).name == kind


def test_of_a_model_that_nothing_is_known_of_most_is_expected(tmp_path: Path) -> None:
    assert kind_of(make_recipe({"model_id": "someone/else"}, "here")).name == "solar"
    # Another model under a backbone's name is another model, but a folder is its miniature or its copy.
    other = make_recipe({"backbone": "bllossom", "model_id": "someone/else"}, "here")
    assert kind_of(other).name == "solar" and kind_of(other.replace(model_id=str(tmp_path))).name == "llama3"


def test_an_estimate_counts_syllables_words_and_signs() -> None:
    kind = kinds()["llama3"]
    assert kind.estimate("") == kind.estimate(" \n ") == 0
    assert kind.estimate("비가 온다.") == pytest.approx(4 * 0.81 + 1.33)
    assert kind.estimate("Read two words, 3") == pytest.approx(3 * 1.16 + 2 * 1.33)


def test_an_estimate_of_our_prompt_is_near_what_was_counted() -> None:
    from src.prompt.prompts import load_prompt

    # All begin alike with the system text and, of the template and the user's turn, about 20 tokens more. Its careful
    # Korean costs less than talk.
    system = load_prompt("entry").system
    for kind in kinds().values():
        assert kind.estimate(system) + 20 == pytest.approx(kind.shared_tokens, rel=0.15), kind.name


def test_another_prompt_is_counted_from_entry_on() -> None:
    kind = kinds()["solar"]
    assert item_tokens(kind, "entry") == (1134, 1944)
    mean, longest = item_tokens(kind, "entry+2shots")
    assert (mean, longest) == (1134 + 2 * 871, 1944 + 2 * 871)
    assert item_tokens(kind, "korean")[0] < 1134 < item_tokens(kind, "korean+3shots")[0]
