"""The flags of a recipe's settings, and the recipe that a command line asks for."""

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from src.console.cli import UserError
from src.model import trust
from src.model.recipe_files import load_recipe
from src.model.recipes import CHOICES, FIELDS, KINDS, Recipe, make_recipe, spelled_out


def add_recipe_flag(parser: argparse._ActionsContainer) -> None:
    named = "a recipe's file, or its name: polar is resource/recipes/published/polar.yaml"
    parser.add_argument("--recipe", type=Path, metavar="FILE", help=named)


def add_flags(parser: argparse._ActionsContainer, only: Collection[str] = ()) -> None:
    """Adds `--recipe`, and in a group of their own a flag for every setting of a recipe. only: these settings' flags
    and nothing else.
    """
    group = parser
    if not only:
        add_recipe_flag(parser)
        group = parser.add_argument_group("settings of the recipe")
    for name in FIELDS:
        if not only or name in only:
            _add_flag(group, name)


def _add_flag(group: argparse._ActionsContainer, name: str) -> None:
    if name == trust.NAME:
        trust.add_flag(group)
        return
    field, choices = FIELDS[name], CHOICES.get(name)
    shown = "" if field.default in (None, "") else f" (default: {field.default})"
    words: dict[str, Any] = {"default": None, "help": (field.metadata["help"] + shown).replace("%", "%%")}
    if KINDS[name] is bool:
        group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, **words)
    elif isinstance(choices, tuple):
        group.add_argument(f"--{name}", choices=choices, **words)
    else:
        # The task's categories are checked with the whole recipe: `--task` may come later on the command line.
        group.add_argument(f"--{name}", metavar=f"{{{','.join(choices)}}}" if choices else "X", **words)


def read_recipe(arguments: argparse.Namespace, **defaults: Any) -> Recipe:
    """The recipe that the command line names: `defaults` of the command, then the file, then the flags. With a file,
    the command's defaults do not count. UserError when the file asks for code that the flags do not allow.
    """
    flags = {name: value for name in FIELDS if (value := getattr(arguments, name, None)) is not None}
    if arguments.recipe:
        recipe = load_recipe(arguments.recipe, flags)
        trust.check(recipe)
        return recipe
    if not flags.get("model_id") and not flags.get("backbone"):
        raise UserError("give a --recipe (for example resource/recipes/published/polar.yaml) or a --model_id.")
    return make_recipe({**spelled_out(defaults), **spelled_out(flags)}, "command line")
