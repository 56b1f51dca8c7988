"""What is said before a run: fits, hours, disk; for GPUs and caches that need not be there."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from src.model import devices
from src.model.backbones import backbones
from src.model.memory import Workload, layer_activations
from src.model.recipe_files import load_recipe, load_recipes
from src.model.recipes import make_recipe
from src.model.shapes import GIB, Shape
from src.plan import estimates as plan
from src.plan import kinds, times
from src.plan.speeds import measured
from src.tree import layouts
from tests.small_hub import put_in_cache
from tests.toy_configs import toy_config

PUBLISHED = Path("resource/recipes/published")
BLLOSSOM = Shape.of_backbone(backbones()["bllossom"])
ITEMS = {"train": 758, "dev": 130, "test": 605}


pytestmark = pytest.mark.usefixtures("empty_hub_cache", "by_tokens_alone")


@pytest.fixture
def by_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of the table, without those that differ in more than the method and without a fixed part."""
    plain = {one.method: dataclasses.replace(one, fixed_seconds=None) for one in measured() if one.method != "qlora"}
    monkeypatch.setattr(times, "measured", lambda: tuple(plain.values()))


def test_planning_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, src.plan.estimates, src.plan.lengths, src.plan.ready, src.plan.table\n"
        "print({'torch', 'transformers', 'huggingface_hub', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# The plan


def test_plan_of_the_published_recipes_without_a_gpu() -> None:
    estimates = plan.estimate_runs(list(load_recipes(PUBLISHED).values()), ITEMS)
    by_run = {one.run: one for one in estimates}
    assert set(by_run) <= set(backbones())
    for one in estimates:
        assert list(one.cards) == ["24", "48", "80", "141", "2×80"]
        assert one.training == one.cards["141"] and one.training.fits
        fits = [way.fits for size, way in one.cards.items() if size != "2×80"]
        assert fits == sorted(fits)
        assert one.cards["24"].fits == (one.method == "qlora")
        assert one.download == backbones()[one.run].download_bytes
    assert [one.run for one in estimates if one.commercial is False] == ["spow12"]
    assert by_run["polar"].seconds == max(one.seconds for one in estimates if one.method == "qlora")
    assert by_run["qwen2"].disk > 100 * by_run["polar"].disk


def test_the_plan_for_the_gpu_at_hand() -> None:
    gpu = devices.Gpu("NVIDIA A100-SXM4-80GB", 80 * GIB, 79 * GIB)
    recipes = [load_recipe(PUBLISHED / f"{name}.yaml") for name in ("polar", "qwen2")]
    estimates = plan.estimate_runs(recipes, ITEMS, gpu=gpu)
    assert [one.training.optimizer for one in estimates] == ["fp32", "bf16-stochastic"]
    assert estimates[0].training == estimates[0].cards[gpu.name]
    on_h200 = plan.estimate_runs(recipes[:1], ITEMS)[0].seconds
    assert estimates[0].seconds == pytest.approx(on_h200 * 989 / 312)
    crowded = plan.estimate_runs(recipes, ITEMS, gpu=devices.Gpu(gpu.name, 80 * GIB, 2 * GIB))
    assert not any(one.training.fits for one in crowded)


def test_hours_and_memory_go_by_the_tokens_of_the_backbones_kind() -> None:
    # One shape with two tokenizers: SOLAR's spends 1,134 tokens where Llama 3's spends 699.
    polar = load_recipe(PUBLISHED / "polar.yaml")
    table = backbones()
    changed = {**table, "polar": dataclasses.replace(table["polar"], tokens_like="llama3")}
    (solar,) = plan.estimate_runs([polar], {"train": 758})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "backbones", lambda: changed)
        (llama3,) = plan.estimate_runs([polar], {"train": 758})
    assert solar.seconds / llama3.seconds == pytest.approx(1134 / 699)
    saved = solar.training.memory.activations - llama3.training.memory.activations
    shape = Shape.of_backbone(table["polar"])
    longer = layer_activations(shape, Workload("qlora", 6, 1944 - 1167, attention="tree"), "fp32") * shape.layers
    assert saved == pytest.approx(longer)


def test_weights_that_stay_packed_are_told_from_those_unpacked_once() -> None:
    assert plan.ROOM == layouts.ROOM
    (polar,) = plan.estimate_runs([load_recipe(PUBLISHED / "polar.yaml")], ITEMS)
    # In bf16 the weights take 28.4 GB, and 0.6 of 80 GiB have no room for the activations besides.
    assert {size: one.dequantised for size, one in polar.cards.items()} == {
        **{"24": False, "48": False, "80": False, "141": True, "2×80": False}
    }


def test_hours_elsewhere_are_of_the_cards_that_a_run_fits_on() -> None:
    polar, bllossom = plan.estimate_runs(
        [load_recipe(PUBLISHED / f"{name}.yaml") for name in ("polar", "bllossom")], ITEMS
    )
    assert list(polar.elsewhere) == list(plan.USUAL) and set(bllossom.elsewhere) == {"A100", "H100"}
    assert bllossom.elsewhere["A100"] == pytest.approx(bllossom.elsewhere["H100"] * 989 / 312)
    assert polar.elsewhere["RTX 3090"] / polar.elsewhere["RTX 4090"] == pytest.approx(165 / 71)
    assert all(devices.peak_tflops(name) for name in plan.USUAL)


def test_a_longer_prompt_takes_longer() -> None:
    polar = load_recipe(PUBLISHED / "polar.yaml")
    names = ("entry", "entry+1shots", "entry+3shots", "no such prompt")
    seconds = [
        one.seconds for one in plan.estimate_runs([polar.replace(prompt=name) for name in names], {"train": 758})
    ]
    assert seconds[1] / seconds[0] == pytest.approx((1134 + 871) / 1134)
    assert seconds[2] / seconds[0] == pytest.approx((1134 + 3 * 871) / 1134)
    assert seconds[3] == seconds[0], "what is wrong with a recipe is said by its run"


def test_a_larger_batch_needs_no_more_memory() -> None:
    # Its items come one after the other in rows, as long as there is room for.
    recipe = load_recipe(PUBLISHED / "polar.yaml")
    one, two = plan.estimate_runs([recipe, recipe.replace(batch_size=2)], ITEMS)
    assert one.training is not None and two.training is not None
    assert two.training.memory == one.training.memory


def test_what_cannot_be_known_yet_is_none(empty_hub_cache: Path) -> None:
    recipe = make_recipe({"name": "mine", "model_id": "someone/else"}, "here")
    (one,) = plan.estimate_runs([recipe], ITEMS)
    assert (one.download, one.training, one.weights, one.disk, one.seconds, one.commercial) == (None,) * 6
    # Once its config is on this machine, only the licence and the download are open.
    keys = toy_config("qwen2").to_dict()
    put_in_cache(empty_hub_cache, "someone/else", {"config.json": json.dumps(keys)})
    (one,) = plan.estimate_runs([recipe], ITEMS)
    assert one.training is not None and one.disk is not None and one.download is None
    # A backbone's short name with another hub id is another model.
    (one,) = plan.estimate_runs([make_recipe({"backbone": "polar", "model_id": "someone/polar"}, "here")], ITEMS)
    assert (one.download, one.training, one.licence) == (None, None, None)


def test_no_hours_without_items() -> None:
    (one,) = plan.estimate_runs([load_recipe(PUBLISHED / "polar.yaml")], {"test": 605})
    assert one.seconds is None and one.disk is not None


@pytest.mark.parametrize("settings", [{"backbone": "spow12"}, {}])
def test_a_miniature_lies_in_a_folder(settings: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "miniature"
    toy_config("qwen2").save_pretrained(folder)
    (one,) = plan.estimate_runs([make_recipe({"name": "mini", "model_id": str(folder), **settings}, "here")], ITEMS)
    assert (one.download, one.note, one.seconds, one.commercial) == (0, "miniature", None, None)
    assert one.weights < 10**6 and one.cards["24"].fits and one.tokens is None


def test_a_copy_of_a_backbone_keeps_its_licence(tmp_path: Path) -> None:
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", **sizes, **heads}))
    (one,) = plan.estimate_runs([make_recipe({"backbone": "spow12", "model_id": str(tmp_path)}, "here")], ITEMS)
    assert (one.download, one.licence, one.commercial) == (0, "cc-by-nc-4.0", False)
    assert one.note.startswith("local folder")
    (one,) = plan.estimate_runs([make_recipe({"model_id": str(tmp_path)}, "here")], ITEMS)
    assert (one.licence, one.note) == (None, "local folder")


@pytest.mark.parametrize("text", [None, "{", '{"model_type": "mamba"}'])
def test_a_folder_without_a_usable_config(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    (one,) = plan.estimate_runs([make_recipe({"model_id": str(tmp_path)}, "here")], ITEMS)
    assert (one.download, one.training, one.note) == (0, None, "local folder")
