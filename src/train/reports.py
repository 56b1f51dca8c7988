"""Other tools that are told of a training as it goes on (TensorBoard and the like), by transformers' own callbacks.

Only `--report_to` switches one on; neither a recipe nor an environment variable does, and no number of a run depends on
it. What a tool writes on this machine goes to `reports/` in the run's folder. Checking needs no torch.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from src.console.cli import UserError
from src.files.paths import REPORTS
from src.model import ranks

if TYPE_CHECKING:
    from src.train.checkpoints import Place
    from src.train.trainer import LetterTrainer

PACKAGES: Mapping[str, Sequence[str]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": (),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
}
"""Name for transformers → packages, one of which it needs; none for a service that the machine is part of."""


def add_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report_to",
        nargs="+",
        default=[],
        choices=PACKAGES,
        metavar="TOOL",
        help=f"also tell of the training: {', '.join(list(PACKAGES)[:4])} … (default: none)",
    )


def check(names: Sequence[str]) -> None:
    """UserError for the first tool whose package is missing."""
    for name in names:
        packages = PACKAGES[name]
        if packages and not any(find_spec(one) for one in packages):
            raise UserError(
                f"--report_to {name}: its package is not installed: pip install {packages[0]}. "
                "The curves are in training.csv and training.png of the run either way."
            )


def local_folders(folder: Path) -> dict[str, str]:
    """Environment variable → where a tool writes on this machine, for a run in `folder`."""
    place = (folder / REPORTS).absolute()
    return {
        "TENSORBOARD_LOGGING_DIR": str(place / "tensorboard"),
        "WANDB_DIR": str(place),
        "MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}",
        "TRACKIO_DIR": str(place / "trackio"),
        "DVCLIVE_DIR": str(place / "dvclive"),
        "SWANLAB_SAVE_DIR": str(place / "swanlab"),
    }


def report_to(trainer: "LetterTrainer", place: "Place") -> None:
    """Adds the callbacks that `place` asks for. A server or folder that the environment names stays the tool's, but
    TensorBoard's: runs would be mixed there.
    """
    if not place.report_to or not ranks.is_first():
        return
    from transformers.integrations import get_reporting_integration_callbacks

    (place.folder / REPORTS).mkdir(exist_ok=True)
    for name, where in local_folders(place.folder).items():
        os.environ[name] = where if name.startswith("TENSORBOARD") else os.environ.get(name, where)
    trainer.args.run_name = trainer.recipe.name
    names = list(dict.fromkeys(place.report_to))
    for callback in get_reporting_integration_callbacks(names):
        trainer.add_callback(callback)
    print(f"reporting to {', '.join(names)}; what is written here goes to {place.folder / REPORTS}", flush=True)
