"""Flags of settings, and what goes before what: defaults, file, flag."""

import argparse
from pathlib import Path

import pytest

from src.console.cli import Parser, UserError
from src.model.recipe_files import load_recipe
from src.model.recipe_flags import add_flags, read_recipe
from src.model.recipes import FIELDS

PUBLISHED = Path("resource/recipes/published")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def parsed(*flags: str) -> argparse.Namespace:
    parser = Parser("A command.", "run.made_up")
    add_flags(parser)
    return parser.parse_args(list(flags))


def test_defaults_then_file_then_flags(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.yaml", "backbone: polar\nlr: 1e-4\nepoch: 7\n")
    recipe = read_recipe(parsed("--recipe", str(file), "--epoch", "9"))
    assert (recipe.seed, recipe.lr, recipe.epoch, recipe.name) == (42, 1e-4, 9, "mine")
    assert load_recipe(file, {"epoch": 9}) == recipe


def test_defaults_of_a_command_count_without_a_file_only() -> None:
    bare = read_recipe(parsed("--backbone", "qwen2"), method="full", lr=3e-5)
    assert (bare.method, bare.lr, bare.name) == ("full", 3e-5, "qwen2")
    assert read_recipe(parsed("--backbone", "qwen2", "--method", "lora"), method="full").method == "lora"
    assert read_recipe(parsed("--recipe", str(PUBLISHED / "polar.yaml")), method="full").method == "qlora"


def test_a_command_without_a_model() -> None:
    with pytest.raises(UserError, match=r"give a --recipe .* or a --model_id"):
        read_recipe(parsed("--lr", "1e-5"))


def test_there_is_a_flag_for_every_setting() -> None:
    for name, field in FIELDS.items():
        assert field.metadata["help"]
        assert getattr(parsed(), name) is None, "a flag that is not given must not count"
    given = parsed("--lr", "2e-5", "--trust_remote_code", "--early_stopping_patience", "3", "--backbone", "polar")
    recipe = read_recipe(given)
    assert (recipe.lr, recipe.trust_remote_code, recipe.early_stopping_patience) == (2e-5, True, 3)
    assert read_recipe(parsed("--backbone", "polar", "--no-trust_remote_code")).trust_remote_code is False


def test_a_flag_with_a_wrong_value(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"command line: epoch: found 'many', allowed: a whole number"):
        read_recipe(parsed("--backbone", "polar", "--epoch", "many"))
    polar = str(PUBLISHED / "polar.yaml")
    with pytest.raises(UserError, match=r"^command line: batch_size: found 0"):
        read_recipe(parsed("--recipe", polar, "--batch_size", "0"))
    wrong = write(tmp_path / "wrong.yaml", "backbone: polar\nlr: -1\n")
    with pytest.raises(UserError, match=r"wrong\.yaml: lr: found"):
        read_recipe(parsed("--recipe", str(wrong), "--batch_size", "1"))
    with pytest.raises(SystemExit):
        parsed("--method", "qlorra")
