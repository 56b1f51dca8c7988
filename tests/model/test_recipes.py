"""The published recipes against the table of the competition entry, and what recipes make of files and flags."""

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
from src.model.recipe_files import RECIPES, load_recipe, load_recipes
from src.model.recipe_flags import add_flags, read_recipe
from src.model.recipes import CHOICES, FIELDS, Recipe, make_recipe

PUBLISHED = Path("resource/recipes/published")

# Short name, hub id, method, learning rate, batch size, epochs: the whole of the published table, where the two that
# have no PEFT method are those of the entry's orpo/.
ENTRY = (
    ("bllossom", "MLP-KTLim/llama-3-Korean-Bllossom-8B", "full", 2e-5, 1, 15),
    ("polar", "x2bee/POLAR-14B-v0.2", "qlora", 2e-5, 1, 18),
    ("kogemma", "rtzr/ko-gemma-2-9b-it", "qlora", 2e-5, 2, 23),
    ("solarko", "beomi/Solar-Ko-Recovery-11B", "qlora", 2e-5, 1, 11),
    ("eeve", "yanolja/EEVE-Korean-Instruct-10.8B-v1.0", "qlora", 2e-5, 1, 14),
    ("qwen2", "Qwen/Qwen2-7B", "orpo", 2e-5, 1, 6),
    ("qwen2it", "Qwen/Qwen2-7B-Instruct", "orpo", 2e-5, 1, 8),
    ("spow12", "spow12/Qwen2-7B-ko-Instruct-orpo-ver_2.0_wo_chat", "qlora", 2e-5, 1, 5),
)


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


# The published recipes


def test_the_published_recipes_are_the_eight_of_the_entry() -> None:
    names = sorted(short for short, *_ in ENTRY)
    assert sorted(path.name for path in PUBLISHED.iterdir()) == [f"{name}.yaml" for name in names]
    assert sorted(recipe.name for recipe in load_recipes(PUBLISHED).values()) == names
    assert set(names) <= set(backbones())


@pytest.mark.parametrize(("short", "model_id", "method", "lr", "batch_size", "epoch"), ENTRY)
def test_a_published_recipe_holds_its_row_of_the_table(
    short: str, model_id: str, method: str, lr: float, batch_size: int, epoch: int
) -> None:
    recipe = load_recipe(PUBLISHED / f"{short}.yaml")
    assert (recipe.name, recipe.backbone, recipe.model_id) == (short, short, model_id)
    assert (recipe.method_words, recipe.lr, recipe.batch_size, recipe.epoch) == (method, lr, batch_size, epoch)
    assert (recipe.method, recipe.objective) == (("full", "orpo") if method == "orpo" else (method, "answer"))
    assert (recipe.lora_r, recipe.lora_alpha, recipe.lora_dropout, recipe.lora_targets) == (6, 8, 0.05, "all-linear")
    assert recipe.licence == backbones()[short].licence
    # The table says no more, so neither does the file: what else is chosen is a default, in one place.
    written = yaml.safe_load((PUBLISHED / f"{short}.yaml").read_text(encoding="utf-8"))
    assert set(written) == {"backbone", "method", "lr", "batch_size", "epoch"}


def test_beside_the_published_recipes_lie_their_variants() -> None:
    supervised = {recipe.name: recipe for recipe in load_recipes(RECIPES / "supervised").values()}
    assert set(supervised) == {"qwen2-sft", "qwen2it-sft"}
    for name, recipe in supervised.items():
        published = load_recipe(PUBLISHED / f"{name.removesuffix('-sft')}.yaml")
        assert published.replace(objective="answer", name=name) == recipe
    (spow12,) = load_recipes(RECIPES / "orpo").values()
    assert load_recipe(PUBLISHED / "spow12.yaml").replace(objective="orpo", name="spow12-orpo") == spow12


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


def test_recipes_of_several_folders_and_of_one_objective() -> None:
    folders = [PUBLISHED, RECIPES / "orpo"]
    names = [recipe.name for recipe in load_recipes(folders, objective="orpo").values()]
    assert sorted(names) == ["qwen2", "qwen2it", "spow12-orpo"]
    assert [path.stem for path in load_recipes(folders, ["polar", "spow12-orpo"])] == ["polar", "spow12-orpo"]
    with pytest.raises(UserError, match=r"no recipe with objective orpo 'polar' in .*published and .*orpo"):
        load_recipes(folders, ["polar"], "orpo")
    with pytest.raises(UserError, match=r"no recipe with objective letters"):
        load_recipes(folders, objective="letters")
    with pytest.raises(UserError, match=r"no recipe \(\*\.yaml\) in nowhere"):
        load_recipes([PUBLISHED, Path("nowhere")])


def test_the_backbones_whose_licence_or_template_needs_care() -> None:
    table = backbones()
    assert [short for short, row in table.items() if not row.commercial] == ["spow12"]
    assert table["spow12"].licence == "cc-by-nc-4.0"
    assert {short for short, row in table.items() if row.chat_template} == {"polar", "solarko"}
    assert load_recipe(PUBLISHED / "polar.yaml").chat_template == table["polar"].chat_template
    assert table["kogemma"].expect["query_pre_attn_scalar"] == 256


def test_the_fallback_templates_render() -> None:
    import jinja2

    # The environment in which transformers renders chat templates.
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    answer = {"role": "assistant", "content": "A"}
    for short in ("polar", "solarko"):
        template = environment.from_string(backbones()[short].chat_template)
        prompt = template.render(messages=messages, bos_token="<s>", eos_token="</s>", add_generation_prompt=True)
        whole = template.render(
            messages=[*messages, answer], bos_token="<s>", eos_token="</s>", add_generation_prompt=False
        )
        assert prompt == "<s>### System:\nS\n\n### User:\nU\n\n### Assistant:\n"
        assert whole == f"{prompt}A</s>"


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


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe resource/recipes/published/pola\.yaml.*Did you mean .*polar\.yaml"):
        load_recipe(PUBLISHED / "pola.yaml")
    with pytest.raises(UserError, match=r"published is a folder, not a recipe\. Known: .*published/polar\.yaml"):
        load_recipe(PUBLISHED)
    write(tmp_path / "mini-polar.yaml", "backbone: polar")
    with pytest.raises(UserError, match=r"Did you mean '.*/mini-polar\.yaml'\? Known: [^,]*$"):
        load_recipe(tmp_path / "polar.yaml")
    with pytest.raises(UserError, match="this is not YAML"):
        load_recipe(write(tmp_path / "a.yaml", "lr: [1"))
    (tmp_path / "korean.yaml").write_bytes("name: 이름".encode("cp949"))
    with pytest.raises(UserError, match="this is not YAML in UTF-8"):
        load_recipe(tmp_path / "korean.yaml")
    with pytest.raises(UserError, match="a recipe is a mapping of settings; found list"):
        load_recipe(write(tmp_path / "b.yaml", "- lr"))
    with pytest.raises(UserError, match=r"empty\.yaml is empty\. A recipe has one line at least: .*solarko"):
        load_recipe(write(tmp_path / "empty.yaml", "# nothing yet\n"))
    with pytest.raises(UserError, match=r"c\.yaml: unknown key 'learning_rate'\. Did you mean 'lr'\?"):
        load_recipe(write(tmp_path / "c.yaml", "backbone: polar\nlearning_rate: 1"))


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


# Precedence


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


# Other models


def test_any_other_causal_lm_by_one_file(tmp_path: Path) -> None:
    text = "model_id: someone/New-3B\nmethod: lora\nlicence: mit\nchat_template: '{{ messages }}'\n"
    recipe = load_recipe(write(tmp_path / "new.yaml", text))
    assert (recipe.name, recipe.backbone, recipe.model_id) == ("new", "New-3B", "someone/New-3B")
    assert (recipe.licence, recipe.chat_template, recipe.revision) == ("mit", "{{ messages }}", None)


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


# Folders


def test_recipes_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "backbone: polar\nname: first")
    write(tmp_path / "b.yaml", "backbone: qwen2")
    write(tmp_path / "c.yaml", "backbone: polar")
    write(tmp_path / "README.md", "no recipe")
    found = load_recipes(tmp_path)
    # Those of one base model follow each other.
    assert [(path.name, recipe.name) for path, recipe in found.items()] == [
        ("a.yaml", "first"),
        ("c.yaml", "c"),
        ("b.yaml", "b"),
    ]
    assert [path.stem for path in load_recipes(tmp_path, ["b", "a"])] == ["a", "b"]
    with pytest.raises(UserError, match=r"no recipe 'polr' in .*Did you mean 'polar'\?"):
        load_recipes(PUBLISHED, ["polr"])
    write(tmp_path / "d.yaml", "backbone: eeve\nname: first")
    with pytest.raises(UserError, match=r"two recipes make the same run: first"):
        load_recipes(tmp_path)


def test_a_folder_without_recipes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe"):
        load_recipes(tmp_path)


def test_a_recipe_may_be_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_recipe("polar") == load_recipe("polar.yaml") == load_recipe(PUBLISHED / "polar.yaml")
    assert load_recipe("spow12-orpo").name == "spow12-orpo"
    with pytest.raises(UserError, match=r"no recipe plar\. Did you mean 'resource/recipes/published/polar\.yaml'\?"):
        load_recipe("plar")
    monkeypatch.setattr("src.model.recipe_files.RECIPES", tmp_path)
    for folder in ("published", "a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "polar.yaml", f"backbone: polar\nname: {folder}\n")
    assert load_recipe("polar").name == "published"
    (tmp_path / "published" / "polar.yaml").unlink()
    with pytest.raises(
        UserError, match=r"several have this name: \S+/a/polar\.yaml, \S+/b/polar\.yaml\. Give one whole"
    ):
        load_recipe("polar")
    # The user's own file goes first.
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "polar.yaml", "backbone: eeve\n")
    assert load_recipe("polar.yaml").backbone == "eeve"
