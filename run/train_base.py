"""Fine-tune all parameters of one backbone.

    python -m run.train_base --recipe resource/recipes/published/qwen2.yaml
    python -m run.train_base --model_id Qwen/Qwen2-7B --lr 2e-5 --epoch 6 --batch_size 1

Takes any recipe and trains all its parameters; run.train does the same for recipes whose method is full. Weights
have fp32 masters where they fit the GPU, else 8-bit optimizer states, else bf16 with stochastic rounding: plain
bf16 loses updates of 2e-5.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src.console.cli import Parser, run_main
from src.runs.command import make_parser as shared_parser
from src.runs.command import train


def make_parser() -> Parser:
    return shared_parser(__doc__, "run.train_base")


def main(argv: list[str] | None = None) -> None:
    train(make_parser(), argv, method="full", only=True)


if __name__ == "__main__":
    sys.exit(run_main(main, resumes=True, ranks=True))
