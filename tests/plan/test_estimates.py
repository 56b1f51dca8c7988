"""What is said before a run: fits, hours, disk; for GPUs and caches that need not be there."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from src.model import shapes
from src.model.backbones import backbones
from src.model.recipe_files import load_recipe, load_recipes
from src.model.recipes import make_recipe
from src.model.shapes import GIB, Shape
from src.plan import estimates as plan
from src.plan import kinds
from tests.small_hub import put_in_cache

PUBLISHED = Path("resource/recipes/published")
BLLOSSOM = Shape.of_backbone(backbones()["bllossom"])
ITEMS = {"train": 758, "dev": 130, "test": 605}


pytestmark = pytest.mark.usefixtures("empty_hub_cache")


def small_config() -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=300, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128
    )


def test_planning_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, src.plan.estimates; print({'torch', 'transformers', 'huggingface_hub', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Time


@pytest.mark.parametrize("timed", [timed for timed in plan.RATES if timed[0] != "scoring"])
def test_time_gives_back_what_was_measured(timed: tuple[str, bool]) -> None:
    method, checkpointing = timed
    recipe = load_recipe(PUBLISHED / "bllossom.yaml", {"method": method})
    seconds = plan.training_seconds(BLLOSSOM, recipe, 758, 700, "NVIDIA H200", checkpointing)
    assert seconds == pytest.approx(758 * 700 * 15 / plan.RATES[timed])


def test_time_of_scoring_goes_by_the_tokens_that_are_computed() -> None:
    seconds = plan.scoring_seconds(BLLOSSOM, 605, 240, "NVIDIA H200")
    assert seconds == pytest.approx(605 * 240 / plan.RATES["scoring", False])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_time_of_a_pair_that_was_not_measured(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(PUBLISHED / "bllossom.yaml", {"method": method, "epoch": 1})
    least = {"full": 6, "lora": 4}[method]
    for measured in (False, True):
        monkeypatch.setattr(plan, "RATES", {(method, measured): 1000})
        with_it, without = (
            plan.training_seconds(BLLOSSOM, recipe, 758, 700, "H200", switch) for switch in (True, False)
        )
        assert without == pytest.approx(with_it * least / (least + 2))
        assert (with_it if measured else without) == pytest.approx(758 * 700 / 1000)


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A40", 150),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA RTX A6000", 155),
        ("NVIDIA RTX 6000 Ada Generation", 364),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_are_found_by_name(device: str, peak: float | None) -> None:
    assert plan.peak_tflops(device) == peak
    recipe = load_recipe(PUBLISHED / "polar.yaml")
    seconds = plan.training_seconds(BLLOSSOM, recipe, 758, 1134, device, False)
    if peak is None:
        assert seconds is None and plan.scoring_seconds(BLLOSSOM, 605, 400, device) is None
    else:
        assert seconds == pytest.approx(758 * 1134 * 18 / plan.RATES["qlora", False] * 989 / peak)


FAKE_TORCH = """
import os, pathlib, types

def device_count():
    (pathlib.Path(__file__).parent / "asked_by").write_text(str(os.getpid()))
    return 2

cuda = types.SimpleNamespace(
    device_count=device_count,
    mem_get_info=lambda index: (index + 10, index + 20),  # free, total
    get_device_name=lambda index: f"NVIDIA L{index}",
)
"""


def test_gpus_are_asked_of_torch_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A started process looks for modules where this one does, and finds this torch first.
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    monkeypatch.syspath_prepend(tmp_path)
    assert plan.gpus() == [plan.Gpu("NVIDIA L0", 20, 10), plan.Gpu("NVIDIA L1", 21, 11)]
    assert int((tmp_path / "asked_by").read_text()) != os.getpid()


def test_a_machine_without_gpus_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text(FAKE_TORCH.replace("return 2", "return 0"))
    monkeypatch.syspath_prepend(tmp_path)
    assert plan.gpus() == []


# The table


def text_of(rows: list[plan.PlanRow], width: int = 120) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(plan.plan_table(rows))
    return console.file.getvalue()


def test_plan_of_the_published_recipes_without_a_gpu() -> None:
    rows = plan.plan_rows(list(load_recipes(PUBLISHED).values()), ITEMS)
    by_run = {row.run: row for row in rows}
    assert set(by_run) == set(backbones())
    for row in rows:
        assert list(row.cards) == ["24", "48", "80", "141"]
        assert row.settled == row.cards["141"] and row.settled.fits
        fits = [way.fits for way in row.cards.values()]
        assert fits == sorted(fits)
        assert row.cards["24"].fits == (row.method == "qlora")
        assert row.download == backbones()[row.run].download_bytes
    assert [row.run for row in rows if row.commercial is False] == ["spow12"]
    assert by_run["polar"].seconds == max(row.seconds for row in rows if row.method == "qlora")
    assert by_run["qwen2"].disk > 100 * by_run["polar"].disk


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_says_it_all(width: int) -> None:
    rows = plan.plan_rows(list(load_recipes(PUBLISHED).values()), ITEMS)
    text = text_of(rows, width)
    lines, words = text.splitlines(), " ".join(text.split())
    for row in rows:
        assert any(line.split()[:2] == [row.run, row.words] for line in lines), text
        assert f"{row.run}: {row.model_id}, licence {row.licence}" in words
    assert words.count("no commercial use") == 1
    assert words.count("about 1,134 tokens an item") == 2 and words.count("about 699 tokens an item") == 2
    assert "…" not in text and "?" not in text
    assert "no GPU here" in words and words.endswith("may not be used commercially")
    assert next(line for line in lines if line.split()[:1] == ["all"]).split()[1] == "152.3"


def test_the_table_for_the_gpu_at_hand() -> None:
    gpu = plan.Gpu("NVIDIA A100-SXM4-80GB", 80 * GIB, 79 * GIB)
    recipes = [load_recipe(PUBLISHED / f"{name}.yaml") for name in ("polar", "qwen2")]
    rows = plan.plan_rows(recipes, ITEMS, gpu=gpu)
    assert [row.settled.optimizer for row in rows] == ["fp32", "bf16-stochastic"]
    assert rows[0].settled == rows[0].cards[gpu.name]
    on_h200 = plan.plan_rows(recipes[:1], ITEMS)[0].seconds
    assert rows[0].seconds == pytest.approx(on_h200 * 989 / 312)
    text = text_of(rows)
    assert gpu.name in text and "no GPU here" not in text
    crowded = plan.plan_rows(recipes, ITEMS, gpu=plan.Gpu(gpu.name, 80 * GIB, 2 * GIB))
    assert not any(row.settled.fits for row in crowded)


def test_hours_and_memory_go_by_the_tokens_of_the_backbones_kind() -> None:
    # One shape with two tokenizers: SOLAR's spends 1,134 tokens where Llama 3's spends 699.
    polar = load_recipe(PUBLISHED / "polar.yaml")
    rows = backbones()
    changed = {**rows, "polar": dataclasses.replace(rows["polar"], tokens_like="llama3")}
    (solar,) = plan.plan_rows([polar], {"train": 758})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "backbones", lambda: changed)
        (llama3,) = plan.plan_rows([polar], {"train": 758})
    assert solar.seconds / llama3.seconds == pytest.approx(1134 / 699)
    saved = solar.settled.memory.activations - llama3.settled.memory.activations
    shape = Shape.of_backbone(rows["polar"])
    longer = shapes.layer_activations(shape, "qlora", "fp32", 1944 - 1167, "tree") * shape.layers
    assert saved == pytest.approx(longer)


def test_a_longer_prompt_takes_longer() -> None:
    polar = load_recipe(PUBLISHED / "polar.yaml")
    names = ("entry", "entry+1shots", "entry+3shots", "no such prompt")
    seconds = [row.seconds for row in plan.plan_rows([polar.replace(prompt=name) for name in names], {"train": 758})]
    assert seconds[1] / seconds[0] == pytest.approx((1134 + 871) / 1134)
    assert seconds[2] / seconds[0] == pytest.approx((1134 + 3 * 871) / 1134)
    assert seconds[3] == seconds[0], "what is wrong with a recipe is said by its run"


def test_a_larger_batch_needs_no_more_memory() -> None:
    # Its items come one after the other in rows, as long as there is room for.
    recipe = load_recipe(PUBLISHED / "polar.yaml")
    one, two = plan.plan_rows([recipe, recipe.replace(batch_size=2)], ITEMS)
    assert one.settled is not None and two.settled is not None
    assert two.settled.memory == one.settled.memory


def test_a_download_for_two_runs_counts_once() -> None:
    recipe = load_recipe(PUBLISHED / "polar.yaml")
    text = text_of(plan.plan_rows([recipe, recipe.replace(name="again")], {}))
    assert next(line for line in text.splitlines() if line.split()[:1] == ["all"]).split()[1] == "28.5"


def test_what_is_not_known_is_a_question_mark(empty_hub_cache: Path) -> None:
    recipe = make_recipe({"name": "mine", "model_id": "someone/else"}, "here")
    (row,) = plan.plan_rows([recipe], ITEMS)
    assert (row.download, row.settled, row.weights, row.disk, row.seconds, row.commercial) == (None,) * 6
    assert text_of([row]).count("?") == 9  # five cells, the licence, and the three sums
    # Once its config is on this machine, only the licence and the download are open.
    keys = small_config().to_dict()
    put_in_cache(empty_hub_cache, "someone/else", {"config.json": json.dumps(keys)})
    (row,) = plan.plan_rows([recipe], ITEMS)
    assert row.settled is not None and row.disk is not None and row.download is None
    # A backbone's short name with another hub id is another model.
    (row,) = plan.plan_rows([make_recipe({"backbone": "polar", "model_id": "someone/polar"}, "here")], ITEMS)
    assert (row.download, row.settled, row.licence) == (None, None, None)


def test_no_hours_without_items() -> None:
    (row,) = plan.plan_rows([load_recipe(PUBLISHED / "polar.yaml")], {"test": 605})
    assert row.seconds is None and row.disk is not None


@pytest.mark.parametrize("settings", [{"backbone": "spow12"}, {}])
def test_a_miniature_lies_in_a_folder(settings: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "miniature"
    small_config().save_pretrained(folder)
    (row,) = plan.plan_rows([make_recipe({"name": "mini", "model_id": str(folder), **settings}, "here")], ITEMS)
    assert (row.download, row.note, row.seconds, row.commercial) == (0, "miniature", None, None)
    assert row.weights < 10**6 and row.cards["24"].fits and row.tokens is None
    assert "mini: " in text_of([row])


def test_a_copy_of_a_backbone_keeps_its_licence(tmp_path: Path) -> None:
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", **sizes, **heads}))
    (row,) = plan.plan_rows([make_recipe({"backbone": "spow12", "model_id": str(tmp_path)}, "here")], ITEMS)
    assert (row.download, row.licence, row.commercial) == (0, "cc-by-nc-4.0", False)
    assert row.note.startswith("local folder")
    (row,) = plan.plan_rows([make_recipe({"model_id": str(tmp_path)}, "here")], ITEMS)
    assert (row.licence, row.note) == (None, "local folder")


@pytest.mark.parametrize("text", [None, "{", '{"model_type": "mamba"}'])
def test_a_folder_without_a_usable_config(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    (row,) = plan.plan_rows([make_recipe({"model_id": str(tmp_path)}, "here")], ITEMS)
    assert (row.download, row.settled, row.note) == (0, None, "local folder")


def test_miniatures_on_a_cpu_have_no_plan_of_a_gpu(tmp_path: Path) -> None:
    folder = tmp_path / "miniature"
    small_config().save_pretrained(folder)
    recipe = make_recipe({"name": "mini", "model_id": str(folder), "backbone": "spow12"}, "here")
    text = text_of(plan.plan_rows([recipe], ITEMS))
    assert "H200" not in text and "GiB" not in text and "licence" not in text
    assert text.startswith("Plan for a CPU, estimated") and "minutes on a CPU" in text
    assert any(line.split()[:2] == ["mini", "qlora"] for line in text.splitlines())
    # With a GPU here the plan is that GPU's; beside a model of true size that of the usual cards.
    gpu = plan.Gpu("NVIDIA A100-SXM4-80GB", 80 * GIB, 79 * GIB)
    assert gpu.name in text_of(plan.plan_rows([recipe], ITEMS, gpu=gpu))
    assert "H200" in text_of(plan.plan_rows([recipe, load_recipe(PUBLISHED / "polar.yaml")], ITEMS))


@pytest.mark.parametrize("width", [40, 60, 70, 80, 100])
def test_no_card_and_no_name_is_lost_on_a_narrow_terminal(width: int) -> None:
    text = text_of(plan.plan_rows(list(load_recipes(PUBLISHED).values()), ITEMS), width)
    words = text.split()
    assert "…" not in text and all(size in words for size in ("24", "48", "80", "141"))
    assert all(name in words for name in backbones())
