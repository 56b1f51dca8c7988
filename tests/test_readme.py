"""The README pages: their commands parse, their links and flags exist, their tables equal the files, and the two
languages of each page hold the same.
"""

import argparse
import functools
import importlib
import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from src import task
from src.console.cli import Parser
from src.items.item import Item, Utterance
from src.model.backbones import backbones
from src.model.recipe_files import RECIPES, load_recipes
from src.model.recipe_flags import read_recipe
from src.model.recipes import CHOICES, FIELDS, make_recipe
from src.plan import estimates as plan
from src.plan.speeds import measured as measured_steps
from src.plan.table import plan_table
from src.prompt.prompts import parse_prompt
from src.toy.bench_table import SHOWN_VERSIONS
from src.worth.metrics import wilson

LANGUAGES = ("README.md", "README.en.md")
FOLDERS = sorted(
    {
        path.parent
        for folder in (".", "eda", "orpo", "resource", "resource/*", "run", "src", "tests")
        for path in Path().glob(f"{folder}/README*.md")
    }
)
"""Folders that have a page; the first is the repository's own."""
GUIDE, SECURITY = SINGLE = Path("CONTRIBUTING.md"), Path("SECURITY.md")
"""Pages beside the first one, which are no folder's."""
PAGES = [*(folder / name for folder in FOLDERS for name in LANGUAGES)]
PAGES += [page for one in SINGLE for page in (one, one.with_suffix(".en.md"))]
TOP, RUN, SRC = (tuple(Path(folder) / name for name in LANGUAGES) for folder in (".", "run", "src"))
RECIPE_PAGES, PROMPT_PAGES, RESULT_PAGES, DATA_PAGES = (
    tuple(Path("resource", folder, name) for name in LANGUAGES) for folder in ("recipes", "prompts", "results", "data")
)
LONGEST_TOP = 170
"""Lines of the first page: it is read in one go."""
LONGEST_SECURITY = 40
LONG_SENTENCE = 40
"""Characters from which a sentence may stand on one page only."""
PUBLISHED = RECIPES / "published"
YES, NO = ("예", "yes"), ("아니요", "no")

each = pytest.mark.parametrize("page", PAGES, ids=str)
each_pair = pytest.mark.parametrize("folder", [*FOLDERS, *SINGLE], ids=str)


def in_both(pages: tuple[Path, Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=str)


def pair(folder: Path) -> tuple[Path, Path]:
    if folder in SINGLE:
        return folder, folder.with_suffix(".en.md")
    return folder / LANGUAGES[0], folder / LANGUAGES[1]


@functools.cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def block_lines(page: Path) -> list[str]:
    """The command lines of the blocks."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def shell_lines(page: Path) -> list[str]:
    """Every command line: those of the blocks, then those of the text."""
    return block_lines(page) + code_spans(prose(page))


def commands(page: Path) -> list[list[str]]:
    """The words of each command of ours, without the variables in front: `python -m run.X …`, `bash run/…`; or orpo."""
    found = []
    for line in shell_lines(page):
        words = shlex.split(line, comments=True) if re.search(r"python -m (run|orpo)\.|bash (run|orpo)/", line) else []
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


def tables(page: Path) -> list[list[list[str]]]:
    """Cells of every Markdown table: [table][line][column], the header first and without the rule below it."""
    found = re.findall(r"(?:^\|.*\|\n)+", prose(page), re.MULTILINE)
    lines = [[[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()] for table in found]
    return [[table[0], *table[2:]] for table in lines]


def table_of(page: Path, columns: int, head: str) -> list[list[str]]:
    """The lines below the header of the one table with so many columns whose first header is `head`."""
    (found,) = [table for table in tables(page) if len(table[0]) == columns and table[0][0] == head]
    return found[1:]


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: Path) -> list[str]:
    """What a link to each heading ends with, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def sentences(page: Path) -> Iterator[str]:
    """The sentences of the text, of table cells too, without links and marks."""
    for paragraph in re.split(r"\n\s*\n|\n(?=[-|]|\d+\. )", prose(page)):
        for cell in re.split(r"\s\|\s|^\||\|$", re.sub(r"\]\([^)]*\)|[\[`*]", "", " ".join(paragraph.split()))):
            yield from re.split(r"(?<=[.?!]) ", cell.strip(" -"))


def folder_tree(page: Path) -> dict[str, str]:
    """Folder → clause of the first page's tree."""
    (drawn,) = [block for block in blocks(page, "text") if block.startswith("run/ ")]
    return dict(line.split(maxsplit=1) for line in drawn.splitlines())


def official_plan() -> list[str]:
    """Lines of the plan's table for the official corpus on a machine without a GPU, up to the sums."""
    rows = plan.estimate_runs(list(load_recipes(PUBLISHED).values()), task.current().official.items)
    console = Console(file=io.StringIO(), width=120)
    console.print(plan_table(rows))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    return lines[: next(place for place, line in enumerate(lines) if line.startswith("all")) + 1]


@pytest.fixture
def nothing_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has downloaded no model."""
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


@functools.cache
def parser_of(module: str) -> Parser:
    parser = importlib.import_module(module).make_parser()
    assert isinstance(parser, Parser)
    return parser


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return set(re.findall(r"--[A-Za-z_-]+", parser.format_help()))


def rooms() -> set[str]:
    """What the folder src holds, as its page names it."""
    names = {path.parent.name for path in Path("src").glob("*/*.py")}
    return names | {path.name for path in Path("src").glob("*.py")} - {"__init__.py"}


# Pages


def test_every_page_has_both_languages() -> None:
    assert len(FOLDERS) > 5 and FOLDERS[0] == Path()
    assert [page for page in PAGES if not page.is_file()] == []


@in_both(TOP)
def test_the_first_page_is_one_page(page: Path) -> None:
    assert len(text_of(page).splitlines()) <= LONGEST_TOP


@in_both(TOP)
def test_the_first_page_leads_to_all_others(page: Path) -> None:
    others = {str(folder / page.name) for folder in FOLDERS if folder != Path()}
    assert others <= set(links(page))


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_stands_on_two_pages(language: str) -> None:
    seen: dict[str, Path] = {}
    for page in [folder / language for folder in FOLDERS]:
        here = {one for one in [*sentences(page), *block_lines(page)] if len(one) >= LONG_SENTENCE}
        twice = [(one, str(seen[one])) for one in here if one in seen]
        assert not twice, page
        seen |= dict.fromkeys(here, page)


@pytest.mark.parametrize("page", pair(SECURITY), ids=str)
def test_the_page_on_trust_is_short_and_found(page: Path) -> None:
    assert len(text_of(page).splitlines()) <= LONGEST_SECURITY
    language = LANGUAGES[pair(SECURITY).index(page)]
    assert {page.name} <= set(links(Path(language))) & set(links(pair(GUIDE)[LANGUAGES.index(language)]))


# The guide for whoever changes the code


@pytest.mark.parametrize("page", [GUIDE, GUIDE.with_suffix(".en.md")], ids=str)
def test_the_guide_names_files_and_names_that_are_there(page: Path) -> None:
    (table,) = tables(page)
    assert len(table) == 14, "a header and thirteen changes"
    for _, where in table[1:]:
        paths = [Path(span) for span in code_spans(where) if "/" in span]
        assert paths and all(path.exists() for path in paths), where
        for name in [span for span in code_spans(where) if re.fullmatch(r"\w+", span)]:
            assert any(re.search(rf"\b(class|def) {name}\b", path.read_text("utf-8")) for path in paths), (name, where)


# Commands


@each
def test_every_command_parses(page: Path) -> None:
    by_name = {path.stem for path in RECIPES.rglob("*.yaml")}
    named_here = [block.splitlines()[0].removeprefix("# ") for block in blocks(page, "yaml")]
    for words in commands(page):
        if words[0] == "bash":
            subprocess.run(["bash", "-n", words[1]], check=True)
            options = set(re.findall(r"--[a-z_]+", Path(words[1]).read_text(encoding="utf-8")))
            assert set(words[2:]) <= options | by_name, words
            continue
        assert words[:2] == ["python", "-m"], words
        if "--help" in words:
            assert words[3:] == ["--help"] and parser_of(words[2])
            continue
        arguments = parser_of(words[2]).parse_args(words[3:])
        file = getattr(arguments, "recipe", None)
        if file is not None and not file.is_file() and str(file) not in by_name:
            assert str(file) in named_here, f"{words}: no such recipe, neither here nor on the page"
        elif words[2] in ("run.train", "run.train_base", "orpo.orpo_train", "orpo.orpo_data"):
            read_recipe(arguments, method="qlora")  # the settings, too
        if getattr(arguments, "only", None):
            load_recipes(arguments.recipes, arguments.only)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_pages_show_every_command(language: str) -> None:
    shown = {
        words[2] if words[0] == "python" else words[1] for folder in FOLDERS for words in commands(folder / language)
    }
    there = {f"run.{path.stem}" for path in Path("run").glob("*.py")} | {"orpo.orpo_train", "orpo.orpo_data"}
    assert there - shown == {"run.make_miniature"}, "which the quickstart starts"
    assert {"run/quickstart.bash", "run/check.bash", "orpo/run_orpo.bash"} <= shown


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_named_file_of_other_commands_exists(language: str) -> None:
    lines = "\n".join(line for folder in FOLDERS for line in shell_lines(folder / language))
    named = re.findall(r"(?:-r|-f) (\S+)", lines)
    assert set(named) == {
        *("requirements.txt", "requirements.lock", "requirements-gpu.txt", "requirements-eda.txt", "environment.yml")
    }
    assert all(Path(name).is_file() for name in named)
    downloads = re.findall(r"hf download (\S+)", lines)
    assert downloads
    assert set(downloads) <= {row.model_id for row in backbones().values()}


@each
def test_every_named_module_exists(page: Path) -> None:
    for folder, module in re.findall(r"(?<![\w-])(run|orpo)\.([a-z_]+)", text_of(page)):
        assert Path(f"{folder}/{module}.py").is_file(), module


@each
def test_every_named_flag_exists(page: Path) -> None:
    modules = [f"{path.parent}.{path.stem}" for folder in ("run", "orpo") for path in Path(folder).glob("*.py")]
    of_tasks = Parser(None, "")
    task.add_flag(of_tasks)
    known = set.union(flags_of(of_tasks), *(flags_of(parser_of(module)) for module in modules))
    named = {span.split()[0] for span in code_spans(prose(page)) if span.startswith("--")}
    assert named - known == set()


def test_conda_installs_the_same_packages() -> None:
    environment = yaml.safe_load(Path("environment.yml").read_text(encoding="utf-8"))
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": ["-r requirements.txt"]}]
    assert all(f"conda activate {environment['name']}" in text_of(page) for page in RUN)


# The two languages


@each_pair
def test_both_hold_the_same_commands(folder: Path) -> None:
    korean, english = pair(folder)
    assert block_lines(korean) == block_lines(english)
    spans = [sorted(span for span in code_spans(prose(page)) if " " in span) for page in (korean, english)]
    assert spans[0] == spans[1]


@each_pair
def test_both_hold_the_same_tables(folder: Path) -> None:
    korean, english = map(tables, pair(folder))
    assert len(korean) == len(english)
    for ours, theirs in zip(korean, english, strict=True):
        assert [len(line) for line in ours] == [len(line) for line in theirs], ours[0]
        assert len({len(line) for line in ours}) == 1, ours[0]
        for one, other in zip(ours[1:], theirs[1:], strict=True):
            assert facts(one) == facts(other), one


def facts(line: list[str]) -> tuple[list[str], list[str]]:
    """What no translation changes: the code and the numbers of a line, sorted, as languages order words differently."""
    text = re.sub(r"\]\([^)]*\)|README(\.en)?\.md", "", " ".join(line))
    return sorted(code_spans(text)), sorted(re.findall(r"\d[\d.,]*\d|\d|TODO-MEASURED", text))


@each_pair
def test_both_hold_the_same_sections_numbers_and_points(folder: Path) -> None:
    korean, english = pair(folder)
    levels = [re.findall(r"^#+ ", prose(page), re.MULTILINE) for page in (korean, english)]
    assert levels[0] == levels[1]
    numbers = [
        sorted(re.findall(r"\d[\d.,–×]*\d|TODO-MEASURED", re.sub(r"```bash.*?```", "", text, flags=re.DOTALL)))
        for text in (text_of(korean), text_of(english))
    ]
    assert numbers[0] == numbers[1]
    points = [re.findall(r"^(?:-|\d+\.) ", text_of(page), re.MULTILINE) for page in (korean, english)]
    assert points[0] == points[1]


@each_pair
def test_both_hold_the_same_links(folder: Path) -> None:
    korean, english = pair(folder)
    there = [[target(page, link) for link in links(page)[1:]] for page in (korean, english)]
    assert sorted(there[0]) == sorted(there[1])
    assert links(korean)[0] == english.name and links(english)[0] == korean.name


def target(page: Path, link: str) -> tuple[str, int]:
    """Where a link leads, the same for both languages: the file or address, and the number of the heading."""
    if link.startswith("http"):
        return link, -1
    path, _, anchor = link.partition("#")
    file = (page.parent / path).resolve() if path else page.resolve()
    place = anchors(file).index(anchor) if anchor else -1
    return file.as_posix().replace(".en.md", ".md"), place


@each_pair
def test_both_hold_the_same_files(folder: Path) -> None:
    korean, english = (
        [yaml.safe_load(block) | {"file": block.splitlines()[0]} for block in blocks(page, "yaml")]
        for page in pair(folder)
    )
    assert korean == english


# Links and paths


@each
def test_links_lead_somewhere(page: Path) -> None:
    for link in [link for link in links(page) if not link.startswith("http")]:
        path, _, anchor = link.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), f"{link}: no such heading"
        # A reader stays in their language.
        same = file.name.endswith(".en.md") == page.name.endswith(".en.md")
        assert file.suffix != ".md" or same or link == links(page)[0], link


@each
def test_headings_of_a_page_differ(page: Path) -> None:
    assert len(set(anchors(page))) == len(anchors(page)), "a link to the second would end in -1"


@each
def test_paths_in_the_text_exist(page: Path) -> None:
    """Paths in code spans that begin with a folder of ours, but for what users make themselves."""
    made = ("resource/results/", "resource/data/data_", "resource/recipes/mine", "resource/prompts/mine")
    spans = [span for span in code_spans(prose(page)) if re.match(r"(run|src|orpo|eda|resource|tests)/\S*$", span)]
    assert [span for span in spans if not span.startswith(made) and not Path(span).exists()] == []


@each
def test_nothing_is_left_to_be_measured(page: Path) -> None:
    assert "TODO-MEASURED" not in text_of(page)


# The tables


@in_both(TOP)
def test_the_table_of_eight_equals_the_files(page: Path) -> None:
    (table,) = [table for table in tables(page) if len(table[0]) == 10]
    recipes = {recipe.name: recipe for recipe in load_recipes(PUBLISHED).values()}
    assert sorted(line[0] for line in table[1:]) == sorted(recipes)
    assert len(recipes) == 8
    language = TOP.index(page)
    for name, link, method, lr, batch, epochs, licence, commercial, gated, note in table[1:]:
        recipe, known = recipes[name], backbones()[recipes[name].backbone]
        assert link == f"[{recipe.model_id}](https://huggingface.co/{recipe.model_id})"
        assert (method, float(lr), int(batch), int(epochs)) == (
            recipe.method_words,
            recipe.lr,
            recipe.batch_size,
            recipe.epoch,
        )
        assert licence == recipe.licence == known.licence
        assert commercial == (YES if known.commercial else NO)[language]
        assert gated == (YES if known.gated else NO)[language]
        assert bool(note) == bool(known.note)
        assert language == 0 or note == known.note


@in_both(TOP)
def test_adapters_are_as_said(page: Path) -> None:
    said = re.findall(r"r (\d+), alpha (\d+), dropout ([\d.]+\d)", text_of(page))
    shapes = {(one.lora_r, one.lora_alpha, one.lora_dropout) for one in load_recipes(PUBLISHED).values()}
    assert {(int(r), int(alpha), float(dropout)) for r, alpha, dropout in said} == shapes


@in_both(RECIPE_PAGES)
def test_the_chosen_values_are_those_of_the_recipes(page: Path) -> None:
    said = [span.split(": ") for span in code_spans(prose(page)) if span.split(": ")[0] in FIELDS and ": " in span]
    assert {key for key, _ in said} == {"gradient_accumulation_steps", "warmup_steps", "prompt"}
    for key, value in said:
        for recipe in load_recipes(PUBLISHED).values():
            assert getattr(recipe, key) == yaml.safe_load(value), f"{recipe.name}: {key}"


@in_both(RUN)
def test_the_plan_is_what_the_command_prints(page: Path, nothing_cached: None) -> None:
    printed = "\n".join(official_plan())
    (shown,) = [block.rstrip("\n") for block in blocks(page, "text") if block.startswith("Plan for ")]
    assert shown == printed, f"the plan changed; the page should show\n{printed}"


@in_both(TOP)
def test_the_first_page_sums_the_plan_up(page: Path, nothing_cached: None) -> None:
    lines = [re.split(r"\s{2,}", line) for line in official_plan()]
    _, fetched, _, hours = lines[-1]
    assert re.search(rf"{fetched} GB.*\b{hours}(?: hours|시간)", prose(page))
    sizes = (24, 48, 80, 141)
    least = {
        line[0]: sizes[[cell != "no" for cell in line[-5:-1]].index(True)] for line in lines if line[0] in backbones()
    }
    assert sorted(name for name, size in least.items() if size == 24) == sorted(
        name
        for name, recipe in ((one.name, one) for one in load_recipes(PUBLISHED).values())
        if recipe.method == "qlora"
    )
    assert {name: size for name, size in least.items() if size > 24} == {"qwen2": 48, "qwen2it": 48, "bllossom": 80}
    said = re.findall(r"(24|48|80|141) GiB", next(line for line in prose(page).splitlines() if fetched in line))
    assert said == ["24", "48", "80"]


@in_both(TOP)
def test_the_first_pages_speed_is_that_of_the_bench(page: Path) -> None:
    language = TOP.index(page)
    measured = {line[0]: line for line in table_of(RUN[language], 9, ("줄", "Line")[language])}
    (shown,) = [table[1:] for table in tables(page) if "605" in table[2][0]]
    for line, (theirs, ours) in zip(
        shown, (("entry", "lora-64"), ("entry-score", "score-1"), ("entry-score", "score-6")), strict=True
    ):
        assert line[1:] == [measured[theirs][2], *measured[ours][2:4]], line
    assert measured["lora-1"][3] in prose(page), "the ratio with one item a step"
    for step in measured_steps():
        versions = ", ".join(f"{name} {step.versions[name].split('+')[0]}" for name in SHOWN_VERSIONS)
        assert f"({versions})" in prose(page), "the versions that gave it"


@in_both(RECIPE_PAGES)
def test_the_published_accuracy_and_its_interval(page: Path) -> None:
    low, high = wilson(594, 605)
    assert f"{594 / 605:.2%}" == "98.18%"
    for number in ("98.18 %", "594", "605", f"{100 * low:.1f}–{100 * high:.1f}"):
        assert number in prose(page), number


@in_both(RECIPE_PAGES)
def test_every_objective_is_there(page: Path) -> None:
    named = [code_spans(line[0])[0] for line in table_of(page, 2, "`objective`")]
    assert set(CHOICES["objective"]) == set(named)


@each
def test_every_setting_in_a_table_exists(page: Path) -> None:
    for table in [table for table in tables(page) if table[0][0] in ("설정", "Setting")]:
        for line in table[1:]:
            assert code_spans(line[0])[0] in FIELDS, line[0]


@in_both(RUN)
def test_the_table_of_commands_lists_just_the_files(page: Path) -> None:
    listed = {code_spans(file)[0]: cells for file, *cells in table_of(page, 3, ("파일", "File")[RUN.index(page)])}
    assert sorted(listed) == sorted(path.name for path in Path("run").iterdir() if path.suffix in (".py", ".bash"))
    for name, (_, flags) in listed.items():
        named = {span for span in code_spans(flags) if span.startswith("--")}
        known = flags_of(parser_of(f"run.{Path(name).stem}")) if name.endswith(".py") else set()
        assert named <= known, name


@in_both(RESULT_PAGES)
def test_every_named_key_of_a_record_is_written_somewhere(page: Path) -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in Path("src").rglob("*.py"))
    named = [
        span for line in table_of(page, 2, ("키", "Key")[RESULT_PAGES.index(page)]) for span in code_spans(line[0])
    ]
    assert len(named) > 10
    assert [key for key in named if key != "splits_6orders" and not re.search(rf"\b{key}\b", code)] == []


# The code


@in_both(SRC)
def test_the_table_of_folders_lists_what_src_holds(page: Path) -> None:
    assert {code_spans(line[0])[0] for line in table_of(page, 2, ("이름", "Name")[SRC.index(page)])} == rooms()
    (drawn,) = [block for block in blocks(page, "text") if block.startswith("eda, search")]
    assert sorted(re.findall(r"[a-z]+", drawn)) == sorted(name.removesuffix(".py") for name in rooms())


@in_both(SRC)
def test_an_item_travels_through_ten_rooms(page: Path) -> None:
    stations = re.findall(r"^\d+\. \[`(\w+)`\]\((\w+)\)", prose(page), re.MULTILINE)
    assert len(set(stations)) == 10
    assert all(named == folder and folder in rooms() for named, folder in stations)


def test_every_file_says_in_its_first_line_what_it_does() -> None:
    assert [path for path in Path("src").glob("*/*.py") if not path.read_text(encoding="utf-8").startswith('"""')] == []


@in_both(TOP)
def test_the_tree_names_the_folders(page: Path) -> None:
    named = folder_tree(page)
    assert [name for name in named if not (name.endswith("/") and Path(name).is_dir())] == []
    assert {f"{folder}/" for folder in FOLDERS if folder != Path()} <= set(named)
    assert len(named) <= 12
    assert list(named) == list(folder_tree(TOP[0]))


# The files to write


@in_both(RECIPE_PAGES)
def test_the_recipe_works(page: Path) -> None:
    (written,) = blocks(page, "yaml")
    recipe = make_recipe(yaml.safe_load(written), "README")
    assert (recipe.model_id, recipe.method, recipe.lr) == ("Qwen/Qwen2.5-7B-Instruct", "qlora", 1e-4)
    make_recipe({"model_id": recipe.model_id}, "README")  # "everything else can be left out"
    assert Path(f"resource/prompts/{recipe.prompt}.yaml").is_file()


@in_both(PROMPT_PAGES)
def test_the_prompt_works(page: Path) -> None:
    (written,) = blocks(page, "yaml")
    prompt = parse_prompt(written, "README", "mine")
    utterances = (Utterance("1", 1, "비가 와."), Utterance("2", 2, "우산이 없어."))
    category = task.current().categories[0]
    item = Item("1", utterances, ("2",), category, ("하나", "둘", "셋"), 0, {})
    shown = prompt.render(item, "201")
    assert shown.answers == ("A", "B", "C")
    assert shown.messages[1]["content"].splitlines() == [
        "화자1: 비가 와.",
        "→ 화자2: 우산이 없어.",
        "",
        f"→ 표시한 말에 대한 물음: {prompt.categories[category]}",
        "A. 셋",
        "B. 하나",
        "C. 둘",
    ]


@in_both(DATA_PAGES)
def test_the_task_works(page: Path, tmp_path: Path) -> None:
    (written,) = blocks(page, "yaml")
    (tmp_path / "task.yaml").write_text(written, encoding="utf-8")
    made = task.load_task(tmp_path / "task.yaml")
    assert len(made.options) == len(made.letters) == 4
