"""Teach one backbone to prefer right answers to wrong ones: ORPO, in one pass and without a reference model.

    python -m orpo.orpo_train --recipe resource/recipes/published/qwen2it.yaml
    python -m orpo.orpo_train --recipe resource/recipes/orpo/spow12-orpo.yaml --score test
    python -m orpo.orpo_train --recipe resource/recipes/published/qwen2it.yaml --method qlora --name qwen2it-orpo-qlora
    python -m orpo.orpo_train --model_id Qwen/Qwen2-7B --lr 2e-5 --epoch 6 --orpo_answer letter --limit 16 --name try

Takes any recipe and trains it with objective orpo (Hong et al. 2024, arXiv 2403.07691); without one it trains all
parameters. Items, prompt, tokens, letters, memory, rows and run folder are those of run.train, and run.test, run.vote
and run.reproduce take the run as any other. To see the pairs: python -m orpo.orpo_data. Several recipes on several
GPUs: bash orpo/run_orpo.bash
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src.console.cli import Parser, run_main
from src.model.recipes import ORPO
from src.runs.command import make_parser as shared_parser
from src.runs.command import train


def make_parser() -> Parser:
    return shared_parser(__doc__, "orpo.orpo_train")


def main(argv: list[str] | None = None) -> None:
    train(make_parser(), argv, method="full", objective=ORPO)


if __name__ == "__main__":
    sys.exit(run_main(main, resumes=True, ranks=True))
