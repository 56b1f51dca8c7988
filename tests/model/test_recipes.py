"""Settings of a recipe: what is refused, what is filled in, and what it is dumped as."""

import argparse
import dataclasses
import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from src import task
from src.console.cli import Parser, UserError
from src.model.backbones import BACKBONES, backbones
from src.model.recipe_files import load_recipe, load_recipes
from src.model.recipe_flags import add_flags, read_recipe
from src.model.recipes import CHOICES, FIELDS, Recipe, make_recipe

PUBLISHED = Path("resource/recipes/published")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def problem_of(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        make_recipe(values, "mine.yaml")
    assert str(caught.value).startswith("mine.yaml: ")
    return str(caught.value)


def parsed(*flags: str) -> argparse.Namespace:
    parser = Parser("A command.", "run.made_up")
    add_flags(parser)
    return parser.parse_args(list(flags))


def test_the_last_weights_and_early_stopping_do_not_go_together() -> None:
    values = {"backbone": "polar", "keep": "last"}
    assert make_recipe(values, "mine.yaml").keep == "last" and make_recipe({"backbone": "polar"}, "").keep == "best"
    told = "early_stopping_patience: found 2, allowed with keep last: none"
    assert told in problem_of({**values, "early_stopping_patience": 2})


# Preference pairs


def test_the_method_orpo_is_two_settings(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.yaml", "backbone: qwen2\nmethod: orpo\n")
    recipe = load_recipe(file)
    assert (recipe.method, recipe.objective, recipe.method_words) == ("full", "orpo", "orpo")
    assert (recipe.orpo_beta, recipe.orpo_pairs, recipe.orpo_answer, recipe.orpo_nll) == (
        0.1,
        "both",
        "whole",
        "answer",
    )
    assert load_recipe(write(tmp_path / "again.yaml", recipe.dump())) == recipe
    # A flag changes one of the two.
    adapters = read_recipe(parsed("--recipe", str(file), "--method", "lora"))
    assert (adapters.method, adapters.objective, adapters.method_words) == ("lora", "orpo", "lora orpo")
    supervised = load_recipe(file, {"objective": "letter"})
    assert (supervised.method, supervised.objective, supervised.method_words) == ("full", "letter", "full")
    flag = read_recipe(parsed("--backbone", "qwen2", "--method", "orpo"), method="qlora")
    assert (flag.method, flag.objective) == ("full", "orpo")
    assert "method: orpo means objective orpo; found objective 'letter'" in problem_of(
        {"backbone": "qwen2", "method": "orpo", "objective": "letter"}
    )
    assert "orpo_beta: found -1.0, allowed: 0 or more" in problem_of({"backbone": "qwen2", "orpo_beta": -1})
    assert "Did you mean 'both'?" in problem_of({"backbone": "qwen2", "orpo_pairs": "bot"})


# Mistakes


def test_an_unknown_key_is_named_with_the_nearest() -> None:
    assert problem_of({"backbone": "polar", "lora_rank": 6}) == (
        "mine.yaml: unknown key 'lora_rank'. Did you mean 'lora_r'?"
    )
    assert problem_of({"backbone": "polar", "zzz": 6}) == "mine.yaml: unknown key 'zzz'."


@pytest.mark.parametrize(("key", "wrong"), [("method", "qlorra"), ("objective", "leter"), ("optimizer", "fp23")])
def test_a_mistyped_choice_is_named_with_the_nearest(key: str, wrong: str) -> None:
    message = problem_of({"backbone": "polar", key: wrong})
    assert f"{key}: found {wrong!r}, allowed: {', '.join(CHOICES[key])}. Did you mean " in message


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("lr", "fast", "a number"),
        ("lr", [2e-5], "a number"),
        ("lr", float("nan"), "a number"),
        ("epoch", 1.5, "a whole number"),
        ("epoch", "many", "a whole number"),
        ("epoch", True, "a whole number"),
        ("epoch", None, "a whole number"),
        ("name", None, "str"),
        ("trust_remote_code", "no", "bool"),
        ("lr", 0.0, "above 0"),
        ("batch_size", -1, "above 0"),
        ("eval_steps", 0, "above 0"),
        ("lora_dropout", -0.1, "0 or more"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(key: str, value: Any, allowed: str) -> None:
    message = problem_of({"backbone": "polar", key: value})
    assert f"{key}: found {value!r}, allowed: {allowed}" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", float("inf")),
        ("lr", float("inf")),
        ("lr", "inf"),
        ("lr", datetime.date(2024, 7, 1)),
        ("lora_dropout", 5),
    ],
)
def test_a_value_that_would_fail_later_is_refused(key: str, value: Any) -> None:
    assert f"{key}: found" in problem_of({"backbone": "polar", key: value})


def test_the_categories_are_those_of_the_task() -> None:
    assert "only_category: found '이유', allowed: 원인, 후행사건, 전제, 동기, 반응" in problem_of(
        {"backbone": "polar", "only_category": "이유"}
    )
    flags = parsed("--backbone", "polar", "--only_category", "이유")  # the command line may name its task later
    with pytest.raises(UserError, match="command line: only_category: found '이유'"):
        read_recipe(flags)
    other = dataclasses.replace(task.current(), categories=("이유", "결과"))
    try:
        task.use(other)
        assert read_recipe(flags).only_category == "이유"
        assert "allowed: 이유, 결과." in problem_of({"backbone": "polar", "only_category": "원인"})
    finally:
        task.use(None)


def test_all_problems_are_in_one_message() -> None:
    message = problem_of({"backbone": "polar", "lora_rank": 6, "method": "qlorra", "lr": "fast", "epoch": 0})
    for part in ("'lora_rank'", "'qlorra'", "lr: found 'fast'", "epoch: found 0"):
        assert part in message
    assert "\n" not in message


def test_an_unknown_backbone_is_named_with_the_nearest() -> None:
    message = problem_of({"backbone": "polr"})
    assert "'polr' is not in" in message and "Did you mean 'polar'?" in message and "model_id" in message
    assert str(BACKBONES) in message


def test_neither_backbone_nor_model() -> None:
    assert "model_id" in problem_of({"lr": 1e-5})


@pytest.mark.parametrize("name", ["a/b", "..", "/tmp/x"])
def test_a_name_is_one_folder(name: str) -> None:
    assert f"name: found {name!r}" in problem_of({"backbone": "polar", "name": name})


def test_a_model_in_the_folder_at_hand_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbones()  # the table is found from the repository's root
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path / "tiny")
    assert make_recipe({"model_id": "."}, "here").name == "tiny"


# Values


@pytest.mark.parametrize("text", ["2e-5", "2E-5", "0.00002", "2.0e-5", "'2e-5'"])
def test_numbers_as_people_write_them(text: str, tmp_path: Path) -> None:
    # YAML 1.1 reads 2e-5 as text.
    recipe = load_recipe(write(tmp_path / "mine.yaml", f"backbone: polar\nlr: {text}\nepoch: '3'\nwarmup_steps: 1e2"))
    assert (recipe.lr, recipe.epoch, recipe.warmup_steps) == (2e-5, 3, 100.0)
    assert (type(recipe.epoch), type(recipe.warmup_steps)) == (int, float)


def test_every_default_is_a_value_that_is_allowed() -> None:
    values = {name: field.default for name, field in FIELDS.items()}
    assert make_recipe({**values, "backbone": "polar"}, "defaults") == make_recipe({"backbone": "polar"}, "nothing")


def test_a_dumped_recipe_loads_as_the_same(tmp_path: Path) -> None:
    for recipe in load_recipes(PUBLISHED).values():
        again = load_recipe(write(tmp_path / "another_name.yaml", recipe.dump()))
        assert again == recipe
        assert list(yaml.safe_load(recipe.dump())) == [field.name for field in dataclasses.fields(Recipe)]
    odd = make_recipe(
        {
            "model_id": "a/b",
            "lr": 1e-7,
            "eval_steps": 5,
            "trust_remote_code": True,
            "name": "이름: 1",
            "warmup_steps": 0.1,
        },
        "here",
    )
    assert load_recipe(write(tmp_path / "odd.yaml", odd.dump())) == odd


# Other models


def test_a_known_hub_id_is_its_backbone() -> None:
    recipe = make_recipe({"model_id": "x2bee/POLAR-14B-v0.2"}, "here")
    assert (recipe.name, recipe.backbone, recipe.licence) == ("polar", "polar", "apache-2.0")
    assert recipe == make_recipe({"backbone": "polar"}, "here")


def test_a_backbone_from_another_place_keeps_its_template_not_its_licence() -> None:
    recipe = make_recipe({"backbone": "polar", "model_id": "/models/polar"}, "here")
    assert (recipe.model_id, recipe.licence, recipe.revision) == ("/models/polar", None, None)
    assert recipe.chat_template == backbones()["polar"].chat_template
    own = make_recipe({"backbone": "polar", "chat_template": "{{ mine }}"}, "here")
    assert own.chat_template == "{{ mine }}"


def test_a_chat_template_is_a_text_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}\n", encoding="utf-8")
    from_file = make_recipe({"backbone": "polar", "chat_template": str(tmp_path / "mine.jinja")}, "here")
    assert from_file.chat_template == "{{ messages[0].content }}\n" and from_file.overrides_template
    table = make_recipe({"backbone": "polar"}, "here")
    assert table.chat_template and not table.overrides_template
    with pytest.raises(UserError, match=r"here: chat_template 'mine.jinja': this is no Jinja2 text, and there is no"):
        make_recipe({"backbone": "polar", "chat_template": "mine.jinja"}, "here")
    (tmp_path / "empty.jinja").write_text(" \n", encoding="utf-8")
    with pytest.raises(UserError, match=r"the file .*empty.jinja is empty"):
        make_recipe({"backbone": "polar", "chat_template": str(tmp_path / "empty.jinja")}, "here")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lr": datetime.date(2020, 1, 2)}, r"lr: found datetime.date\(2020, 1, 2\), allowed: a number"),
        ({"lr": "1e400"}, "lr: found '1e400', allowed: a number"),
        ({"weight_decay": "1e-400"}, "weight_decay: found '1e-400'"),
        ({"weight_decay": 2**53 + 1}, "weight_decay: found 9007199254740993, allowed: a number"),
        ({"epoch": 9007199254740993.0}, "epoch: found 9007199254740992.0, allowed: a whole number"),
        ({"epoch": "1" * 5000}, "epoch: found '1111"),
        ({"seed": "9007199254740993"}, "seed: found 9007199254740993, allowed: 0 to"),
        ({"seed": "-1"}, "seed: found -1, allowed: 0 to"),
        ({"model_id": "a" * 5000}, "model_id: found 'aaa.* of 5,000 characters; allowed: 4,000, and 200 between"),
        ({"model_id": b"x"}, "model_id: found b'x', allowed: str"),
        ({"name": "../evil"}, "name: found '../evil', allowed: the name of one folder"),
        ({"name": "가" * 70}, "allowed: the name of one folder, without slashes, up to 200 bytes"),
        ({"name": "a\u202eb"}, r"name: found the character U\+202E in 'a\\u202eb'"),
        ({"name": "a\x1b[31mb"}, r"name: found the character U\+001B"),
        ({"name": "a\nb"}, r"name: found the character U\+000A"),
        ({"prompt": "\udcff"}, r"prompt: found the character U\+DCFF"),
        ({"chat_template": "a" * 5000}, "this is no Jinja2 text, and there is no such file"),
    ],
)
def test_values_that_no_recipe_can_have(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_recipe({"backbone": "polar", **values}, "mine.yaml")
