"""The table of backbones, `resource/backbones.yaml`: what is known of a base model before it is downloaded."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from src.console.start import ours
from src.model.shapes import Shape

BACKBONES = ours("resource/backbones.yaml")
CONFIG_KEYS = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "vocab": "vocab_size",
    "tied": "tie_word_embeddings",
    "context": "max_position_embeddings",
}
"""Our names of sizes that a model's config.json calls otherwise."""


@dataclasses.dataclass(frozen=True)
class Backbone(Shape):
    """One entry of the table: the sizes of the base model, and what else is known of it."""

    short: str
    model_id: str
    licence: str
    commercial: bool
    """False when the licence forbids commercial use."""
    gated: bool
    download_bytes: float
    context: int
    tokens_like: str
    """The kind of its tokenizer, an entry of `resource/tokenizers.yaml`."""
    revision: str | None = None
    chat_template: str | None = None
    note: str = ""
    checked: tuple[str, ...] = ()
    """Fields of the entry that the model's config must agree with, since copies with other values exist."""
    expect: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further entries of the model's config that must hold."""

    @property
    def expected_config(self) -> dict[str, Any]:
        """Values that the model's config must have, by the config's names."""
        return {CONFIG_KEYS.get(name, name): getattr(self, name) for name in self.checked} | dict(self.expect)


@functools.cache
def backbones(path: Path = BACKBONES) -> dict[str, Backbone]:
    """The table by short name."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {short: _entry(short, values) for short, values in raw.items()}


def _entry(short: str, values: Mapping[str, Any]) -> Backbone:
    typed = {"parameters": int(values["parameters"]), "checked": tuple(values.get("checked", ()))}
    return Backbone(short=short, **{**values, **typed})
