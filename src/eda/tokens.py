"""The tokenizers that a prompt's tokens are counted with: those on this disk, or the miniature's."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.console.cli import UserError
from src.console.start import ours
from src.eda.corpus import SAMPLE, Corpus, of_shipped_kind

if TYPE_CHECKING:
    from src.model.recipes import Recipe
    from src.prompt.encode import Encoder
    from src.prompt.messages import Prompt

RECIPES = ours("resource/recipes/published")


def find_encoders(corpus: Corpus, recipes: Path = RECIPES) -> "dict[str, Encoder]":
    """Encoders of the recipes whose tokenizer is at hand: on this disk, or for the sample corpus in the miniature.

    Nothing is downloaded. The miniature's tokenizers are made here; they know the words of the sample alone. Recipes
    whose prompt has no sentence for a category of the current task are left out.
    """
    import transformers

    from src.model import trust
    from src.model.recipe_files import load_recipes
    from src.prompt.chat import Rendering
    from src.prompt.encode import Encoder

    transformers.utils.logging.set_verbosity_error()
    trust.never_ask()
    found: dict[str, Encoder] = {}
    for recipe in load_recipes(recipes).values():
        prompt = _prompt(recipe)
        tokenizer = _miniature_tokenizer(recipe.backbone) if corpus.kind == SAMPLE else _cached_tokenizer(recipe)
        if prompt is not None and tokenizer is not None:
            name = f"mini-{recipe.backbone}" if corpus.kind == SAMPLE else recipe.name
            rendering = Rendering(recipe.chat_template, recipe.overrides_template, recipe.system_turn)
            found[name] = Encoder(tokenizer, prompt, name, rendering)
    return found


def _prompt(recipe: "Recipe") -> "Prompt | None":
    """None if the current task is another one, whose categories the recipe's prompt does not know."""
    from src.prompt.prompts import load_prompt

    try:
        return load_prompt(recipe.prompt)
    except UserError:
        if of_shipped_kind():
            raise
        return None


@cache
def _miniature_tokenizer(short: str) -> Any:
    """None for a backbone that the miniature does not have."""
    from src.toy.miniature import load_values
    from src.toy.miniature_tokenizers import make_tokenizer

    values = load_values()
    if short not in values["backbones"]:
        return None
    return make_tokenizer(values["backbones"][short]["tokenizer"], _miniature_texts())


@cache
def _miniature_texts() -> list[str]:
    """What all tokenizers of the miniature learn from."""
    from src.toy.miniature import load_values
    from src.toy.miniature_tokenizers import tokenizer_texts

    return tokenizer_texts(load_values())


def _cached_tokenizer(recipe: "Recipe") -> Any:
    """None if the tokenizer is not on the disk, or is a slow one, which cannot tell where its tokens come from."""
    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoTokenizer

    source = recipe.tokenizer or recipe.model_id
    if not Path(source).is_dir():
        # Given a name, transformers asks the hub for other things, even with local_files_only. Given a folder, it does
        # not.
        file = try_to_load_from_cache(source, "tokenizer_config.json", revision=recipe.revision)
        if not isinstance(file, str):
            return None
        source = str(Path(file).parent)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):  # part of a download
        return None
    return tokenizer if tokenizer.is_fast else None
