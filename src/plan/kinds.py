"""Kinds of tokenizers: how many tokens each makes of an item, known before the tokenizer is on this machine.

The numbers are in resource/tokenizers.yaml: counts on the official corpus, and rates by which any other text is
estimated.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from src.console.cli import UserError
from src.console.start import ours
from src.files.yaml_files import read_yaml
from src.model.backbones import backbones
from src.model.recipes import Recipe
from src.model.shapes import Shape
from src.prompt.prompts import load_prompt

KINDS = ours("resource/tokenizers.yaml")
PROMPT = "entry"
"""The prompt with which the counts of the file were made."""
TURN_TOKENS = 8
"""About what a chat template writes around one turn."""
UNKNOWN = "solar"
"""The kind of an unknown tokenizer is taken to be the one that makes the most tokens."""

_SYLLABLE = re.compile("[가-힣]")
_WORD = re.compile("[A-Za-z]+")
_SIGN = re.compile(r"[^A-Za-z가-힣\s]")


class TextCounts(NamedTuple):
    """Counts of a text: Hangul syllables, words in Latin letters, and other characters except blanks."""

    syllables: int
    words: int
    signs: int


@dataclass(frozen=True)
class Kind:
    """One entry of `resource/tokenizers.yaml`, where the numbers are explained."""

    name: str
    what: str
    """Whose tokenizer it is, in words."""
    mean_tokens: int
    longest_tokens: int
    shared_tokens: int
    computed_tokens: int
    training_ratio: float
    scoring_ratio: float
    per_syllable: float
    per_word: float
    per_sign: float

    def estimate(self, text: str) -> float:
        """About how many tokens `text` has."""
        return self.tokens(count_text(text))

    def tokens(self, counts: TextCounts) -> float:
        """About how many tokens a text with these counts has."""
        return self.per_syllable * counts.syllables + self.per_word * counts.words + self.per_sign * counts.signs


def count_text(text: str) -> TextCounts:
    return TextCounts(*(len(pattern.findall(text)) for pattern in (_SYLLABLE, _WORD, _SIGN)))


@functools.cache
def kinds(path: Path = KINDS) -> dict[str, Kind]:
    raw = read_yaml(path)
    return {name: Kind(name=name, **values) for name, values in raw.items()}


def kind_of(recipe: Recipe, shape: Shape | None = None) -> Kind:
    """The kind of the recipe's tokenizer: that of its backbone, or else a guess by the model's `shape`. A miniature
    counts as its backbone.
    """
    facts = backbones().get(recipe.backbone)
    if facts is not None and (recipe.model_id == facts.model_id or Path(recipe.model_id).is_dir()):
        return kinds()[facts.tokens_like]
    if shape is None:
        return kinds()[UNKNOWN]
    if shape.model_type.startswith(("qwen", "gemma")):
        return kinds()["qwen2" if shape.model_type.startswith("qwen") else "gemma2"]
    # From 100,000 on, a vocabulary has room for Korean.
    return kinds()["llama3" if shape.vocab >= 100_000 else UNKNOWN]


def item_tokens(kind: Kind, prompt_name: str) -> tuple[int, int]:
    """(mean, longest) tokens of a training item of the official corpus with a prompt.

    They were counted for the prompt `entry`. For any other one, the difference is estimated by its system text and its
    examples.
    """
    try:
        prompt, counted = load_prompt(prompt_name), load_prompt(PROMPT)
    except UserError:  # the run itself will say what is wrong with it
        return kind.mean_tokens, kind.longest_tokens
    more = kind.estimate(prompt.system) - kind.estimate(counted.system)
    shots = prompt.examples.count if prompt.examples else 0
    each = kind.mean_tokens - kind.shared_tokens
    return round(kind.mean_tokens + more + shots * each), round(kind.longest_tokens + more + shots * each)
