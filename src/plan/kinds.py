"""Kinds of tokenizers: how many tokens each makes of an item, known before the tokenizer is on this machine.

What is known is in resource/tokenizers.yaml: counts on the official corpus, and rates to estimate any other text with.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from src.console.cli import UserError
from src.console.start import ours
from src.model.backbones import backbones
from src.model.recipes import Recipe
from src.model.shapes import Shape
from src.prompt.prompts import load_prompt

KINDS = ours("resource/tokenizers.yaml")
PROMPT = "entry"
"""The prompt with which the counts of the file were made."""
TURN_TOKENS = 8
"""What a chat template writes around one turn, about."""
MOST = "solar"
"""The kind of a tokenizer that nothing is known of: the one with the most tokens."""

_SYLLABLE = re.compile("[가-힣]")
_WORD = re.compile("[A-Za-z]+")
_SIGN = re.compile(r"[^A-Za-z가-힣\s]")


@dataclass(frozen=True)
class Kind:
    """One row of `resource/tokenizers.yaml`, where the numbers are explained. `what`: whose, in words."""

    name: str
    what: str
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
        """Tokens of `text`, about."""
        return self.tokens(count_signs(text))

    def tokens(self, counts: tuple[int, int, int]) -> float:
        """Tokens, about, of a text with these `count_signs`."""
        syllables, words, signs = counts
        return self.per_syllable * syllables + self.per_word * words + self.per_sign * signs


def count_signs(text: str) -> tuple[int, int, int]:
    """(Hangul syllables, words in Latin letters, other signs but blanks) of a text."""
    syllables, words, signs = (len(pattern.findall(text)) for pattern in (_SYLLABLE, _WORD, _SIGN))
    return syllables, words, signs


@functools.cache
def kinds(path: Path = KINDS) -> dict[str, Kind]:
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: Kind(name=name, **values) for name, values in raw.items()}


def kind_of(recipe: Recipe, shape: Shape | None = None) -> Kind:
    """The kind of the recipe's tokenizer: its backbone's, else by the model's `shape`, else the one with the most
    tokens. A miniature counts as its backbone.
    """
    facts = backbones().get(recipe.backbone)
    if facts is not None and (recipe.model_id == facts.model_id or Path(recipe.model_id).is_dir()):
        return kinds()[facts.tokens_like]
    if shape is None:
        return kinds()[MOST]
    if shape.model_type.startswith(("qwen", "gemma")):
        return kinds()["qwen2" if shape.model_type.startswith("qwen") else "gemma2"]
    # From 100,000 on, a vocabulary has room for Korean.
    return kinds()["llama3" if shape.vocab >= 100_000 else MOST]


def item_tokens(kind: Kind, prompt_name: str) -> tuple[int, int]:
    """(mean, longest) tokens of a training item of the official corpus with a prompt: counted for `entry`, and for any
    other one from there on estimated by its system text and its examples.
    """
    try:
        prompt, counted = load_prompt(prompt_name), load_prompt(PROMPT)
    except UserError:  # the run itself will say what is wrong with it
        return kind.mean_tokens, kind.longest_tokens
    more = kind.estimate(prompt.system) - kind.estimate(counted.system)
    shots = prompt.examples.count if prompt.examples else 0
    each = kind.mean_tokens - kind.shared_tokens
    return round(kind.mean_tokens + more + shots * each), round(kind.longest_tokens + more + shots * each)
