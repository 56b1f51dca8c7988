"""The plan as it is printed, for GPUs and caches that need not be there."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from src.model.devices import Gpu
from src.model.recipe_files import load_recipe, load_recipes
from src.model.recipes import make_recipe
from src.model.shapes import GIB
from src.plan.estimates import Estimate, estimate_runs
from src.plan.speeds import measured, measured_with
from src.plan.table import plan_table
from tests.toy_configs import toy_config

PUBLISHED = Path("resource/recipes/published")
ITEMS = {"train": 758, "dev": 130, "test": 605}
pytestmark = pytest.mark.usefixtures("empty_hub_cache")


def text_of(estimates: list[Estimate], width: int = 120) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(plan_table(estimates))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_says_it_all(width: int) -> None:
    estimates = estimate_runs(list(load_recipes(PUBLISHED).values()), ITEMS)
    text = text_of(estimates, width)
    lines, words = text.splitlines(), " ".join(text.split())
    for one in estimates:
        assert any(line.split()[:2] == [one.run, one.method_words] for line in lines), text
        assert f"{one.run}: {one.model_id}, licence {one.licence}" in words
    assert words.count("no commercial use") == 1
    assert words.count("about 1,134 tokens an item") == 2 and words.count("about 699 tokens an item") == 2
    assert "…" not in text and "?" not in text
    assert "no GPU here" in words and words.endswith("may not be used commercially")
    assert "RTX 4090 (24 GiB)" in words and "for 5 of 8 runs" in words and "A100 (80 GiB)" in words
    assert f"hours are scaled from steps measured on {measured_with(measured())}" in words
    downloads = sum(one.download or 0 for one in estimates) / 10**9
    assert next(line for line in lines if line.split()[:1] == ["all"]).split()[1] == f"{downloads:.1f}"


def test_the_table_for_the_gpu_at_hand() -> None:
    gpu = Gpu("NVIDIA A100-SXM4-80GB", 80 * GIB, 79 * GIB)
    recipes = [load_recipe(PUBLISHED / f"{name}.yaml") for name in ("polar", "qwen2")]
    text = text_of(estimate_runs(recipes, ITEMS, gpu=gpu))
    assert gpu.name in text and "no GPU here" not in text and "elsewhere" not in text
    assert "full by its optimizer: fp32, 8bit (fp32-8bit), bf16 (bf16-stochastic)" in text
    fits = [line.split()[7:] for line in text.splitlines() if line.split()[:1] in (["polar"], ["qwen2"])]
    assert fits == [["yes"], ["bf16"]]


def test_what_is_not_known_is_a_question_mark() -> None:
    (one,) = estimate_runs([make_recipe({"name": "mine", "model_id": "someone/else"}, "here")], ITEMS)
    assert text_of([one]).count("?") == 9  # five cells, the licence, and the three sums


def test_two_cards_that_share_a_run_have_a_column() -> None:
    recipe = load_recipe(PUBLISHED / "bllossom.yaml").replace(optimizer="fp32")
    adapters = load_recipe(PUBLISHED / "polar.yaml")
    full, other = estimate_runs([recipe, adapters], ITEMS)
    assert full.cards["2×80"].fits and not full.cards["80"].fits and not full.cards["141"].fits
    assert full.cards["2×80"].cards == 2 and other.cards["2×80"].cards == 1
    text = text_of([full, other])
    row = next(line.split() for line in text.splitlines() if line.split()[:1] == ["bllossom"])
    assert row[-2:] == ["fp32", f"{full.cards['2×80'].memory.total / GIB:.1f}"]
    assert next(line.split()[-1] for line in text.splitlines() if line.split()[:1] == ["polar"]) == "yes"
    # 8 bytes a parameter, half of which leave each of two cards, at 450 GB a second.
    assert full.communication["NVLink"][0] == pytest.approx(8 * 8.03e9 / 2 / 450e9, rel=1e-3)
    assert full.communication["PCIe"][2] == pytest.approx(8 * 8.03e9 * 7 / 8 / 64e9, rel=1e-3)
    words = " ".join(text.split())
    assert "full, sharded: a row communicates on 2/4/8 cards at least, by bytes (not measured): NVLink 0.071/" in words
    assert "adapters: a step communicates" in words


def test_a_download_for_two_runs_counts_once() -> None:
    recipe = load_recipe(PUBLISHED / "polar.yaml")
    text = text_of(estimate_runs([recipe, recipe.replace(name="again")], {}))
    assert next(line for line in text.splitlines() if line.split()[:1] == ["all"]).split()[1] == "28.5"


def test_miniatures_have_no_plan_of_a_gpu(tmp_path: Path) -> None:
    folder = tmp_path / "miniature"
    toy_config("qwen2").save_pretrained(folder)
    recipe = make_recipe({"name": "mini", "model_id": str(folder), "backbone": "spow12"}, "here")
    gpu = Gpu("NVIDIA A100-SXM4-80GB", 80 * GIB, 79 * GIB)
    for text in (text_of(estimate_runs([recipe], ITEMS)), text_of(estimate_runs([recipe], ITEMS, gpu=gpu))):
        assert not any(word in text for word in ("H200", "A100", "GiB", "hours", "licence", "?"))
        assert text.startswith("Plan for toy models, estimated") and "minute" in text
        assert any(line.split()[:2] == ["mini", "qlora"] for line in text.splitlines())
    # Beside a model of true size the plan is that of the usual cards, or of the GPU here.
    both = [recipe, load_recipe(PUBLISHED / "polar.yaml")]
    assert "H200" in text_of(estimate_runs(both, ITEMS))
    assert gpu.name in text_of(estimate_runs(both, ITEMS, gpu=gpu))


@pytest.mark.parametrize("width", [40, 60, 70, 80, 100])
def test_no_card_and_no_name_is_lost_on_a_narrow_terminal(width: int) -> None:
    estimates = estimate_runs(list(load_recipes(PUBLISHED).values()), ITEMS)
    text = text_of(estimates, width)
    words = text.split()
    assert "…" not in text and all(size in words for size in ("24", "48", "80", "141"))
    assert all(one.run in words for one in estimates)
