"""The published recipes against the table of the competition entry, and what is made of files and folders."""

from pathlib import Path

import pytest
import yaml

from src.console.cli import UserError
from src.model.backbones import backbones
from src.model.recipe_files import RECIPES, load_recipe, load_recipes

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
    with pytest.raises(UserError, match="not UTF-8: found byte 0xc0 in line 1"):
        load_recipe(tmp_path / "korean.yaml")
    with pytest.raises(UserError, match="a recipe is a mapping of settings; found list"):
        load_recipe(write(tmp_path / "b.yaml", "- lr"))
    with pytest.raises(UserError, match=r"empty\.yaml is empty\. A recipe has one line at least: .*solarko"):
        load_recipe(write(tmp_path / "empty.yaml", "# nothing yet\n"))
    with pytest.raises(UserError, match=r"c\.yaml: unknown key 'learning_rate'\. Did you mean 'lr'\?"):
        load_recipe(write(tmp_path / "c.yaml", "backbone: polar\nlearning_rate: 1"))


def test_any_other_causal_lm_by_one_file(tmp_path: Path) -> None:
    text = "model_id: someone/New-3B\nmethod: lora\nlicence: mit\nchat_template: '{{ messages }}'\n"
    recipe = load_recipe(write(tmp_path / "new.yaml", text))
    assert (recipe.name, recipe.backbone, recipe.model_id) == ("new", "New-3B", "someone/New-3B")
    assert (recipe.licence, recipe.chat_template, recipe.revision) == ("mit", "{{ messages }}", None)


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
