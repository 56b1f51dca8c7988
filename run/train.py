"""Fine-tune one backbone: LoRA, QLoRA, or any other method that its recipe names.

    python -m run.train --recipe resource/recipes/published/polar.yaml
    python -m run.train --recipe resource/recipes/published/polar.yaml --limit 16 --epoch 1 --name try
    python -m run.train --model_id Qwen/Qwen2-7B --lr 2e-5 --epoch 3 --batch_size 1

Settings come from the defaults, then the recipe, then the flags. The run lies in resource/results/NAME: the weights
that answered most dev items, scores and predictions of dev, record.json, and the curves of the training: training.png
and training.csv. --report_to tensorboard (or wandb, mlflow, trackio …) also tells another tool as it goes on; what it
writes here is in NAME/reports. The same command goes on after an interruption.

Several GPUs share one training's steps; each holds the whole model:

    torchrun --nproc_per_node 2 -m run.train --recipe resource/recipes/published/polar.yaml --batch_size 64
    accelerate launch --config_file resource/accelerate/two_gpus.yaml -m run.train --recipe FILE --batch_size 64

A step has the same items on any number of GPUs, and at least one for each; so the same is learned, and a training goes
on with another number of them. Several trainings at a time, one on each GPU: python -m run.reproduce
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src.console.cli import Parser, run_main
from src.runs.command import make_parser as shared_parser
from src.runs.command import train


def make_parser() -> Parser:
    return shared_parser(__doc__, "run.train")


def main(argv: list[str] | None = None) -> None:
    train(make_parser(), argv, method="qlora")


if __name__ == "__main__":
    sys.exit(run_main(main, resumes=True, ranks=True))
