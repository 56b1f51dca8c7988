"""Which items are too long, counted and estimated; the hub's cache is the test's own, and empty."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.console.cli import UserError
from src.data import Item
from src.model.recipes import Recipe, make_recipe
from src.plan import lengths
from src.plan.kinds import kinds
from src.prompt.encode import Encoder
from src.prompt.prompts import load_prompt
from tests import toys

pytestmark = pytest.mark.usefixtures("empty_hub_cache")


def longer(count: int, start: int, syllables: Callable[[int], int]) -> list[Item]:
    """Invented items, so many syllables added to the first utterance of each."""
    found = []
    for number in range(start, start + count):
        (item,) = toys.items(1, number)
        first = item.dialogue[0]
        said = first.text + " 물 비" * (syllables(number) // 2)
        found.append(
            type(item)(**{**vars(item), "dialogue": (type(first)(first.id, first.speaker, said), *item.dialogue[1:])})
        )
    return found  # fmt: skip


@pytest.fixture
def splits() -> dict[str, list[Item]]:
    return {
        "train": longer(40, 0, lambda number: 20 * number),
        "dev": longer(20, 60, lambda number: 30 * (number - 50)),
    }


def recipe_for(folder: Path, place: Path, context: int, **changes: Any) -> Recipe:
    """A recipe whose model is a copy of `folder` with a context of its own."""
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    (place / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}), encoding="utf-8")
    return make_recipe({"name": "mine", "model_id": str(place), "prompt": "plain", **changes}, "here")


def encoder_for(short: str, context: int | None = None) -> Encoder:
    return toys.encoder(short, load_prompt("plain"), context=context)


def test_counted_are_those_that_a_run_refuses(
    splits: dict[str, list[Item]], tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    free = encoder_for("qwen2it")
    trained = sorted(len(one.ids) for one in free.for_training(splits["train"]))
    scored = sorted(len(one.ids) for one in free.for_scoring(splits["dev"]))
    context = trained[29]
    train = sum(one > context for one in trained)
    dev = sum(one > context for one in scored)
    assert 0 < train < 20 and 0 < dev < 20
    found, advice = lengths.too_long([recipe_for(backbone_folder("qwen2it"), tmp_path / "model", context)], splits)
    assert found == (
        f"mine: items too long for its context of {context:,} tokens with prompt plain: train {train} of 40, dev {dev} "
        f"of 20; the longest has {max(trained[-1], scored[-1]):,} (counted)"
    )
    assert "a shorter prompt" in advice
    narrow = encoder_for("qwen2it", context)
    with pytest.raises(UserError, match=rf"{train} items are longer"):
        narrow.for_training(splits["train"])
    with pytest.raises(UserError, match=rf"{dev} items are longer"):
        narrow.for_scoring(splits["dev"])


def test_the_item_as_long_as_the_context_fits(
    splits: dict[str, list[Item]], tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    longest = max(len(one.ids) for one in encoder_for("qwen2it").for_training(splits["train"]))
    for context, lines in ((longest, 0), (longest - 1, 2)):
        recipe = recipe_for(backbone_folder("qwen2it"), tmp_path / str(context), context)
        assert len(lengths.too_long([recipe], {"train": splits["train"]})) == lines


def test_what_is_near_is_as_if_all_had_been_counted(
    splits: dict[str, list[Item]],
    tmp_path: Path,
    backbone_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = sorted(len(one.ids) for one in encoder_for("qwen2it").for_training(splits["train"]))
    counted: list[int] = []
    count = lengths.count
    monkeypatch.setattr(
        lengths, "count", lambda encoder, items, *how: counted.append(len(items)) or count(encoder, items, *how)
    )
    for context in (tokens[3], tokens[20], tokens[-2]):
        recipe = recipe_for(backbone_folder("qwen2it"), tmp_path / str(context), context)
        gauge = lengths.Gauge(recipe, lengths.Texts(splits))
        assert gauge.near_limit("train") == gauge.whole_split("train")
    # Of the last, those that are far from the context were not.
    assert counted[-3] == lengths.PROBES and counted[-3] + counted[-2] < counted[-1] == 40


def test_without_a_tokenizer_it_is_estimated(splits: dict[str, list[Item]]) -> None:
    splits["dev"] = longer(4, 0, lambda number: (0, 1000, 4000, 9000)[number])
    recipes = [make_recipe({"backbone": short}, "here") for short in ("polar", "bllossom", "qwen2")]
    polar, bllossom, advice = lengths.too_long(recipes, {"dev": splits["dev"]})
    assert polar.startswith("polar: items too long for its context of 4,096 tokens with prompt entry: dev 2 of 4; ")
    assert polar.endswith("(estimated, for a tokenizer like SOLAR's)")
    assert "bllossom: " in bllossom and "context of 8,192 tokens" in bllossom and "dev 1 of 4" in bllossom
    assert advice == lengths.ADVICE


def test_estimates_are_near_what_is_counted_of_the_sample_corpus() -> None:
    from src.data import parse_items
    from src.toy import bench_inputs

    train = parse_items(json.dumps(bench_inputs.make_corpus()["train"]).encode(), "made")[0]
    texts = lengths.Texts({"train": train})
    for kind in kinds().values():
        tokens = texts.estimates(make_recipe({"backbone": "polar"}, "here"), kind, "train")
        assert sum(tokens) / len(tokens) == pytest.approx(kind.mean_tokens, rel=0.06), kind.name
        assert max(tokens) == pytest.approx(kind.longest_tokens, rel=0.08), kind.name


def test_nothing_is_said_and_no_torch_loaded_where_all_fit() -> None:
    code = (
        "import sys, json; from pathlib import Path; from src.plan import lengths; from src.data import parse_items\n"
        "from src.model.recipe_files import load_recipes; from tests.conftest import make_item\n"
        "items = parse_items(json.dumps([make_item(n) for n in range(6)]).encode(), 'made')[0]\n"
        "recipes = list(load_recipes(Path('resource/recipes/published')).values())\n"
        "print(lengths.too_long(recipes, {'train': items, 'dev': items}), {'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] set()"


def test_training_counts_the_answer_and_orpo_the_longest_option(splits: dict[str, list[Item]]) -> None:
    encoder, items = encoder_for("qwen2it"), splits["train"]
    prompts, answered, pairs = (
        lengths.count(encoder, items, answered=with_it, compares=compares)
        for with_it, compares in ((False, False), (True, False), (True, True))
    )
    assert all(one < other <= both for one, other, both in zip(prompts, answered, pairs, strict=True))
    assert pairs != answered
    assert len(lengths.count(encoder, items, answered=False, orders=("012", "210"))) == 2 * len(items)


def test_examples_count_and_come_from_the_training_split(splits: dict[str, list[Item]]) -> None:
    texts, recipe = lengths.Texts(splits), make_recipe({"backbone": "polar"}, "here")
    bare, shown = (
        texts.estimates(recipe.replace(prompt=name), kinds()["solar"], "dev") for name in ("korean", "korean+2shots")
    )
    assert all(other > 1.5 * one for one, other in zip(bare, shown, strict=True))
    # Without it, and with any other fault, there is no line: the run tells.
    long = {"dev": longer(1, 0, lambda number: 9000)}
    for prompt, lines in (("korean", 2), ("korean+2shots", 0), ("no such prompt", 0)):
        assert len(lengths.too_long([recipe.replace(prompt=prompt)], long)) == lines, prompt


def test_only_the_items_that_a_recipe_trains_on_count(splits: dict[str, list[Item]]) -> None:
    recipe = make_recipe({"backbone": "polar", "only_category": "원인"}, "here")
    gauge = lengths.Gauge(recipe, lengths.Texts(splits))
    assert gauge.whole_split("train").items == sum(item.category == "원인" for item in splits["train"]) < 40
    assert gauge.whole_split("dev").items == 20


def test_a_tokenizer_in_the_hubs_cache_is_used(
    splits: dict[str, list[Item]], tmp_path: Path, empty_hub_cache: Path, backbone_folder: Callable[[str], Path]
) -> None:
    recipe = make_recipe({"model_id": "someone/else", "prompt": "plain"}, "here")
    assert lengths.tokenizer_folder(recipe) is None and lengths.context_of(recipe) is None
    assert not lengths.Gauge(recipe, lengths.Texts(splits)).whole_split("dev").counted
    folder = empty_hub_cache / "models--someone--else"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c0ffee")
    recipe_for(backbone_folder("qwen2it"), folder / "snapshots" / "c0ffee", 700)
    found = lengths.Gauge(recipe, lengths.Texts(splits))
    assert found.context == 700 and found.whole_split("dev").counted
    assert found.whole_split("dev").longest == max(
        len(one.ids) for one in encoder_for("qwen2it").for_scoring(splits["dev"])
    )


def test_the_context_of_a_model(tmp_path: Path) -> None:
    for short, context in (("polar", 4096), ("qwen2", 131072)):
        assert lengths.context_of(make_recipe({"backbone": short}, "here")) == context
    mine = make_recipe({"model_id": str(tmp_path)}, "here")
    for text, found in (("{", None), ("{}", None), ('{"text_config": {"max_position_embeddings": 7}}', 7)):
        (tmp_path / "config.json").write_text(text)
        assert lengths.context_of(mine) == found
