"""The trainings of test_ranks_on_gpus.py on this rank's GPU: python tests/train/ranks_gpu_job.py FOLDER. Not a test."""

import json
import sys
from pathlib import Path
from typing import Any

from src.console.cli import run_main

CASES: dict[str, dict[str, Any]] = {
    "one item a rank": {"objective": "letters", "order": "shuffled", "batch_size": 2, "share_prefixes": "auto"},
    # The last step of an epoch has one item, so one rank has none.
    "trees": {"objective": "answer", "order": "dialogue", "batch_size": 7, "share_prefixes": "on"},
    "dropout": {"objective": "letters", "order": "dialogue", "batch_size": 4, "lora_dropout": 0.05},
    "orpo": {"objective": "orpo", "order": "dialogue", "batch_size": 4, "share_prefixes": "on"},
    "rounded at random": {"method": "full", "optimizer": "bf16-stochastic", "objective": "letter", "batch_size": 4},
}


def main() -> None:
    import torch

    from src.model import ranks
    from src.train.checkpoints import Place
    from src.train.fine_tuning import fine_tune
    from tests import toys
    from tests.made_trainings import DEV, TRAIN, encoder

    folder, found = Path(sys.argv[1]), {}
    device = torch.device("cuda", 0)
    ranks.begin(device)
    for name, changes in CASES.items():
        settings = {"lora_dropout": 0, "epoch": 4, "lr": 1e-3, **changes}
        recipe = toys.recipe(folder.parent / "backbone", "polar", **settings)
        found[name] = fine_tune(recipe, encoder("polar"), TRAIN, DEV, Place.at(folder / name), device).training
    if ranks.is_first():
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    sys.exit(run_main(main, ranks=True))
