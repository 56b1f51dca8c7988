"""Whether Python code that comes with a model may run: only if the command line of this very call says so.

A recipe or a record may say that its model needs such code (`trust_remote_code: true`). It was perhaps written by
somebody else, so its word alone runs nothing. Checking needs neither torch nor transformers.
"""

import argparse
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from src.console.cli import UserError
from src.model.recipes import FIELDS, Recipe

NAME = "trust_remote_code"
FLAG = f"--{NAME}"
CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json")
"""Files of a model whose `auto_map` names classes in Python files, its own or those of another repository."""

_allowed = False


def allowed() -> bool:
    """Whether the flag stands on the command line that was read last."""
    return _allowed


def allow(yes: bool) -> None:
    global _allowed
    _allowed = yes


class _Flag(argparse.BooleanOptionalAction):
    """Takes effect as soon as it is read."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        super().__call__(parser, namespace, values, option_string)
        allow(getattr(namespace, self.dest))


def add_flag(parser: argparse._ActionsContainer) -> None:
    """`--trust_remote_code`. A command line begins without it, whatever an earlier one in this process said."""
    allow(False)
    parser.add_argument(FLAG, action=_Flag, default=None, help=FIELDS[NAME].metadata["help"])


def flags(recipe: Recipe) -> list[str]:
    """What a command for this recipe's model needs, so that it may do what this one may."""
    return [FLAG] if recipe.trust_remote_code and _allowed else []


def words(recipe: Recipe) -> str:
    """`flags` as the end of a command that is suggested to the user."""
    return "".join(f" {flag}" for flag in flags(recipe))


def check(*recipes: Recipe) -> None:
    """UserError when a recipe, or the one in a record, asks for code that the command line does not allow."""
    asking = dict.fromkeys(recipe.tokenizer or recipe.model_id for recipe in recipes if recipe.trust_remote_code)
    asking |= dict.fromkeys(recipe.model_id for recipe in recipes if recipe.trust_remote_code)
    if asking and not _allowed:
        names, whose = [recipe.name for recipe in recipes if recipe.trust_remote_code], ", ".join(asking)
        raise UserError(
            f"{', '.join(dict.fromkeys(names))}: a file asks to run Python code that comes with {whose} "
            f"({NAME}: true). A file's word does not suffice, as the code may do anything that you may do here. "
            f"Read it; if you trust it, add {FLAG} to this command."
        )


def remote_code(recipe: Recipe) -> bool:
    """Whether the code of the recipe's model runs. UserError as in `check`."""
    check(recipe)
    return recipe.trust_remote_code


def never_ask() -> None:
    """Has transformers refuse code where it would ask at the terminal, as it does for classes that a file names."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


def announce(source: str, configs: Iterable[Path]) -> None:
    """Says once for each owner that the Python code of `source` runs. configs: the files of CONFIGS that are there."""
    for owner in dict.fromkeys([source, *(one for path in configs for one in _other_owners(path))]):
        _say_once(owner)


@functools.cache
def _say_once(owner: str) -> None:
    print(f"{FLAG}: Python code that comes with {owner} runs in this process", flush=True)


def _other_owners(path: Path) -> list[str]:
    """The other repositories that an `auto_map` names, as in `owner/name--file.Class`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        named = found.get("auto_map", {})
    except (OSError, ValueError, AttributeError):  # loading will say what is wrong
        return []
    values = named.values() if isinstance(named, dict) else named if isinstance(named, list) else [named]
    words = [word for value in values for word in (value if isinstance(value, list) else [value])]
    return [word.split("--")[0] for word in words if isinstance(word, str) and "--" in word]
