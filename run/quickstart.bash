#!/usr/bin/env bash
# The whole competition at toy size, on any machine: no GPU, no model hub, no corpus.
#
#     bash run/quickstart.bash
#
# Makes .venv (or uses the activated conda or virtual environment), builds eight toy backbones and an invented corpus, then trains,
# scores and votes as the real run does. Running it again does only what is missing. Its numbers say nothing about the real models.
set -euo pipefail
cd "$(dirname "$0")/.."
source run/environment.bash
use_environment requirements.txt
python -m run.make_miniature
python -m run.reproduce --recipes resource/miniature/recipes --data resource/miniature/data --name miniature --jobs 2
