"""The table of backbones, `resource/backbones.yaml`: what is known of a base model before it is downloaded."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from src.console.cli import UserError
from src.console.start import ours
from src.files.kinds import fits
from src.files.yaml_files import read_yaml
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
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a table of backbones is a mapping of short names; found {type(raw).__name__}.")
    return {short: _entry(short, values, f"{path}: {short}") for short, values in raw.items()}


def _entry(short: Any, values: Any, where: str) -> Backbone:
    hints = get_type_hints(Backbone)
    if not isinstance(short, str) or not isinstance(values, dict):
        raise UserError(f"{where}: an entry is a short name and a mapping of what is known of the model.")
    needed = [one.name for one in dataclasses.fields(Backbone) if one.default is one.default_factory]
    problems = [f"unknown key {key!r}" for key in values if key not in hints or key == "short"]
    problems += [f"{key!r} is missing" for key in needed if key != "short" and key not in values]
    if isinstance(values.get("parameters"), float) and values["parameters"].is_integer():
        values = {**values, "parameters": int(values["parameters"])}
    kept = {key: value for key, value in values.items() if key in hints and key != "checked"}
    problems += [f"{key}: found {value!r}" for key, value in kept.items() if not fits(value, hints[key])]
    if not fits(values.get("checked", []), list[str]):
        problems.append(f"checked: found {values['checked']!r}")
    else:
        problems += [f"checked: unknown field {one!r}" for one in values.get("checked", ()) if one not in hints]
    if problems:
        raise UserError(f"{where}: {'; '.join(problems)}.")
    return Backbone(short=short, **{**values, "checked": tuple(values.get("checked", ()))})
