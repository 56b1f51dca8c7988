"""What trials compute with: two toy models, their recipes, a short prompt, and a corpus in two versions."""

from pathlib import Path
from typing import Any

import yaml

from src.data import dump_items
from tests import toys
from tests.conftest import make_item
from tests.faults.world import ITEMS

RECIPES: dict[str, dict[str, Any]] = {
    "lora": {"backbone": "qwen2", "method": "lora", "lr": 3e-3},
    "other": {"backbone": "qwen2", "method": "lora", "lr": 3e-3, "seed": 7},
    "full": {"backbone": "bllossom", "method": "full", "lr": 1e-3},
}
SHARED = {"epoch": 2, "batch_size": 4, "eval_steps": 2, "prompt": "resource/short.yaml"}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.5,
}


def make(base: Path) -> None:
    """Everything, in the `resource` of the folder `base`."""
    resource = base / "resource"
    (resource / "recipes_toy").mkdir()
    (resource / "short.yaml").write_text(toys.SHORT, encoding="utf-8")
    for name, settings in RECIPES.items():
        model = f"resource/models/{settings['backbone']}"
        if not (base / model).is_dir():
            toys.save(settings["backbone"], base / model, **SMALL)
        recipe = {**settings, **SHARED, "model_id": model}
        (resource / "recipes_toy" / f"{name}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    first = 0
    for split, count in ITEMS.items():
        items = [make_item(number) for number in range(first, first + count)]
        # The same ids, and sentences of another dialogue: other answers to another file.
        others = [{**make_item(number + 4), "id": f"made-{number:04d}"} for number in range(first, first + count)]
        write(resource / "data" / f"data_{split}.json", items)
        write(resource / "data_later" / f"data_{split}.json", others if split == "test" else items)
        write(resource / "download" / f"toy_{split}.json", items)
        write(resource / "download_later" / f"toy_{split}.json", others)
        first += count + -count % 3


def write(path: Path, items: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(dump_items(items), encoding="utf-8")


if __name__ == "__main__":
    make(Path.cwd())
