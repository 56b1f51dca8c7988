"""Both READMEs: their commands parse, their tables equal the files, and their two texts hold the same."""

import importlib
import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from src.data import CATEGORIES, Item, Utterance
from src.model.backbones import backbones
from src.model.recipe_files import RECIPES, load_recipes
from src.model.recipe_flags import read_recipe
from src.model.recipes import FIELDS, make_recipe
from src.plan import estimates as plan
from src.plan.table import plan_table
from src.prompt.prompts import parse_prompt
from src.worth.metrics import wilson

KOREAN, ENGLISH = Path("README.md"), Path("README.en.md")
READMES = (KOREAN, ENGLISH)
PUBLISHED = RECIPES / "published"
OFFICIAL_ITEMS = {"train": 758, "dev": 151, "test": 605}
YES, NO = ("예", "yes"), ("아니요", "no")

each = pytest.mark.parametrize("readme", READMES, ids=str)


def text_of(readme: Path) -> str:
    return readme.read_text(encoding="utf-8")


def blocks(readme: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(readme), re.MULTILINE | re.DOTALL)


def prose(readme: Path) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(readme), flags=re.MULTILINE | re.DOTALL)


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def shell_lines(readme: Path) -> list[str]:
    """Every command line, of blocks and of the text, in the order of the kinds."""
    lines = [line for block in blocks(readme, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines + code_spans(prose(readme)) if line.strip() and not line.startswith("#")]


def commands(readme: Path) -> list[list[str]]:
    """The words of each command of ours, without the variables in front: `python -m run.X …`, `bash run/…`; or orpo."""
    found = []
    for line in shell_lines(readme):
        words = shlex.split(line, comments=True) if re.search(r"python -m (run|orpo)\.|bash (run|orpo)/", line) else []
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


def tables(readme: Path) -> list[list[list[str]]]:
    """Cells of every Markdown table: [table][row][column], the header first and without the rule below it."""
    found = re.findall(r"(?:^\|.*\|\n)+", prose(readme), re.MULTILINE)
    rows = [[[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()] for table in found]
    return [[table[0], *table[2:]] for table in rows]


def tree(readme: Path) -> dict[str, str]:
    """Path → clause of the tree."""
    (drawn,) = [block for block in blocks(readme, "text") if block.startswith("README.md ")]
    found, folder = {}, ""
    for line in drawn.splitlines():
        name, clause = line.split(maxsplit=1)
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            found[name] = clause
        else:
            found[folder + name] = clause
    return found


def official_plan() -> list[str]:
    """Lines of the plan's table for the official corpus on a machine without a GPU, up to the sums."""
    rows = plan.estimate_runs(list(load_recipes(PUBLISHED).values()), OFFICIAL_ITEMS)
    console = Console(file=io.StringIO(), width=120)
    console.print(plan_table(rows))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    return lines[: next(place for place, line in enumerate(lines) if line.startswith("all")) + 1]


# Commands


@each
def test_every_command_parses(readme: Path) -> None:
    found = commands(readme)
    assert len(found) > 20
    by_name = {path.stem for path in RECIPES.rglob("*.yaml")}
    named_here = [block.splitlines()[0].removeprefix("# ") for block in blocks(readme, "yaml")]
    for words in found:
        if words[0] == "bash":
            subprocess.run(["bash", "-n", words[1]], check=True)
            options = set(re.findall(r"--[a-z_]+", Path(words[1]).read_text(encoding="utf-8")))
            assert set(words[2:]) <= options | by_name, words
            continue
        assert words[:2] == ["python", "-m"], words
        parser = importlib.import_module(words[2]).make_parser()
        if "--help" in words:
            assert words[3:] == ["--help"]
            continue
        arguments = parser.parse_args(words[3:])
        file = getattr(arguments, "recipe", None)
        if file is not None and not file.is_file() and str(file) not in by_name:
            assert str(file) in named_here, f"{words}: no such recipe, neither here nor in the README"
        elif words[2] in ("run.train", "run.train_base", "orpo.orpo_train", "orpo.orpo_data"):
            read_recipe(arguments, method="qlora")  # the settings, too
        if getattr(arguments, "only", None):
            load_recipes(arguments.recipes, arguments.only)


@each
def test_every_named_file_of_other_commands_exists(readme: Path) -> None:
    lines = "\n".join(shell_lines(readme))
    named = re.findall(r"(?:-r|-f) (\S+)", lines)
    assert set(named) == {"requirements.txt", "requirements-eda.txt", "environment.yml"}
    assert all(Path(name).is_file() for name in named)
    downloads = re.findall(r"hf download (\S+)", lines)
    assert downloads
    assert set(downloads) <= {row.model_id for row in backbones().values()}


@each
def test_every_named_module_exists(readme: Path) -> None:
    for folder, module in re.findall(r"(?<![\w-])(run|orpo)\.([a-z_]+)", text_of(readme)):
        assert Path(f"{folder}/{module}.py").is_file(), module


def test_conda_installs_the_same_packages() -> None:
    environment = yaml.safe_load(Path("environment.yml").read_text(encoding="utf-8"))
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": ["-r requirements.txt"]}]
    assert all(f"conda activate {environment['name']}" in text_of(readme) for readme in READMES)


# The two texts


def test_both_hold_the_same_commands() -> None:
    assert commands(KOREAN) == commands(ENGLISH)
    assert [line for line in shell_lines(KOREAN) if " " in line] == [
        line for line in shell_lines(ENGLISH) if " " in line
    ]


def test_both_hold_the_same_tables() -> None:
    korean, english = tables(KOREAN), tables(ENGLISH)
    assert len(korean) == len(english) > 5
    for ours, theirs in zip(korean, english, strict=True):
        assert [len(row) for row in ours] == [len(row) for row in theirs], ours[0]
        assert len({len(row) for row in ours}) == 1, ours[0]
        for one, other in zip(ours[1:], theirs[1:], strict=True):
            assert facts(one) == facts(other), one


def facts(row: list[str]) -> tuple[list[str], list[str]]:
    """What no translation changes: the code and the numbers of a row, sorted, as languages order words differently."""
    line = " ".join(row)
    return sorted(code_spans(line)), sorted(re.findall(r"\d[\d.,]*\d|\d|TODO-MEASURED", line))


def test_both_hold_the_same_sections_numbers_and_links() -> None:
    korean, english = text_of(KOREAN), text_of(ENGLISH)
    levels = [re.findall(r"^#+ ", prose(readme), re.MULTILINE) for readme in READMES]
    assert levels[0] == levels[1]
    numbers = [
        sorted(re.findall(r"\d[\d.,–×]*\d|TODO-MEASURED", re.sub(r"```bash.*?```", "", text, flags=re.DOTALL)))
        for text in (korean, english)
    ]
    assert numbers[0] == numbers[1]
    links = [re.findall(r"\]\((http[^)]+)\)", text) for text in (korean, english)]
    assert links[0] == links[1]
    bullets = [len(re.findall(r"^- ", text, re.MULTILINE)) for text in (korean, english)]
    assert bullets[0] == bullets[1]


def test_both_hold_the_same_files() -> None:
    korean, english = (
        [yaml.safe_load(block) | {"file": block.splitlines()[0]} for block in blocks(readme, "yaml")]
        for readme in READMES
    )
    assert korean == english
    assert list(tree(KOREAN)) == list(tree(ENGLISH))


# The tables


@each
def test_the_table_of_eight_equals_the_files(readme: Path) -> None:
    (table,) = [table for table in tables(readme) if len(table[0]) == 10]
    recipes = {recipe.name: recipe for recipe in load_recipes(PUBLISHED).values()}
    assert sorted(row[0] for row in table[1:]) == sorted(recipes)
    assert len(recipes) == 8
    language = READMES.index(readme)
    for name, link, method, lr, batch, epochs, licence, commercial, gated, note in table[1:]:
        recipe, facts = recipes[name], backbones()[recipes[name].backbone]
        assert link == f"[{recipe.model_id}](https://huggingface.co/{recipe.model_id})"
        assert (method, float(lr), int(batch), int(epochs)) == (
            recipe.method_words,
            recipe.lr,
            recipe.batch_size,
            recipe.epoch,
        )
        assert licence == recipe.licence == facts.licence
        assert commercial == (YES if facts.commercial else NO)[language]
        assert gated == (YES if facts.gated else NO)[language]
        assert bool(note) == bool(facts.note)
        assert readme != ENGLISH or note == facts.note


@each
def test_adapters_are_as_said(readme: Path) -> None:
    said = re.findall(r"r (\d+), alpha (\d+), dropout ([\d.]+\d)", text_of(readme))
    shapes = {(one.lora_r, one.lora_alpha, one.lora_dropout) for one in load_recipes(PUBLISHED).values()}
    assert {(int(r), int(alpha), float(dropout)) for r, alpha, dropout in said} == shapes


@each
def test_the_chosen_values_are_those_of_the_recipes(readme: Path) -> None:
    said = [span.split(": ") for span in code_spans(prose(readme)) if span.split(": ")[0] in FIELDS and ": " in span]
    assert {key for key, _ in said} == {"gradient_accumulation_steps", "warmup_steps", "prompt"}
    for key, value in said:
        for recipe in load_recipes(PUBLISHED).values():
            assert getattr(recipe, key) == yaml.safe_load(value), f"{recipe.name}: {key}"


@each
def test_the_plan_is_what_the_command_prints(readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.model.disk.is_cached", lambda *_: False)
    printed = "\n".join(official_plan())
    (shown,) = [block.rstrip("\n") for block in blocks(readme, "text") if block.startswith("Plan for ")]
    assert shown == printed, f"the plan changed; the READMEs should show\n{printed}"


@each
def test_the_published_accuracy_and_its_interval(readme: Path) -> None:
    low, high = wilson(594, 605)
    assert f"{594 / 605:.2%}" == "98.18%"
    for number in ("98.18 %", "594", "605", f"{100 * low:.1f}–{100 * high:.1f}"):
        assert number in prose(readme), number


# The files to write


@each
def test_the_recipe_and_the_prompt_work(readme: Path) -> None:
    recipe_text, prompt_text = blocks(readme, "yaml")
    recipe = make_recipe(yaml.safe_load(recipe_text), "README")
    assert (recipe.model_id, recipe.method, recipe.lr) == ("Qwen/Qwen2.5-7B-Instruct", "qlora", 1e-4)
    make_recipe({"model_id": recipe.model_id}, "README")  # "everything else can be left out"
    assert Path(f"resource/prompts/{recipe.prompt}.yaml").is_file()

    prompt = parse_prompt(prompt_text, "README", "mine")
    utterances = (Utterance("1", 1, "비가 와."), Utterance("2", 2, "우산이 없어."))
    item = Item("1", utterances, ("2",), CATEGORIES[0], ("하나", "둘", "셋"), 0, {})
    shown = prompt.render(item, "201")
    assert shown.answers == ("A", "B", "C")
    assert shown.messages[1]["content"].splitlines() == [
        "화자1: 비가 와.",
        "→ 화자2: 우산이 없어.",
        "",
        f"→ 표시한 말에 대한 물음: {prompt.categories[CATEGORIES[0]]}",
        "A. 셋",
        "B. 하나",
        "C. 둘",
    ]


@each
def test_every_setting_that_is_named_exists(readme: Path) -> None:
    for setting in ("objective", "chat_template", "model_id"):
        assert setting in FIELDS
        assert f"`{setting}`" in prose(readme)


# The tree and the links


@each
def test_the_tree_names_what_is_there(readme: Path) -> None:
    named = tree(readme)
    missing = [name for name in named if not Path(name).exists()]
    assert not missing
    wrong = [name for name in named if name.endswith("/") != Path(name).is_dir()]
    assert not wrong


@each
def test_what_is_there_is_in_the_tree(readme: Path) -> None:
    named = tree(readme)
    there = [
        path.as_posix()
        for folder in ("run", "src", "orpo", "eda")
        for path in sorted(Path(folder).rglob("*"))
        if path.suffix in (".py", ".bash", ".yaml", ".ipynb")
        and not any(part.startswith((".", "__pycache__")) for part in path.parts)
    ]
    assert "run/train.py" in there
    assert [path for path in there if path not in named] == []


@each
def test_relative_links_exist(readme: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text_of(readme))
    relative = [link for link in links if not link.startswith("http")]
    assert relative
    assert [link for link in relative if not Path(link).exists()] == []


@each
def test_paths_in_the_text_exist(readme: Path) -> None:
    """Paths in code spans that begin with a folder of ours, but for what users make themselves."""
    made = ("resource/results/", "resource/data/data_", "resource/recipes/mine", "resource/prompts/mine")
    spans = [span for span in code_spans(prose(readme)) if re.match(r"(run|src|orpo|resource|tests)/\S*$", span)]
    assert spans
    assert [span for span in spans if not span.startswith(made) and not Path(span).exists()] == []


@each
def test_nothing_is_left_to_be_measured(readme: Path) -> None:
    assert "TODO-MEASURED" not in text_of(readme)
