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
answer_help run/quickstart.bash "$@"
[ $# -eq 0 ] || refuse "quickstart.bash takes no arguments; found: $*. See bash run/quickstart.bash --help"
use_environment requirements.txt
export CCI_PARENT=$$  # the commands end with this script
python -m run.make_miniature
python -m run.reproduce --recipes resource/miniature/recipes --data resource/miniature/data --name miniature --jobs 2
echo "next:"
[ -z "$activation" ] || echo "    $activation"
echo "    python -m run.report"
echo "    python -m run.evaluate mini-polar mini-eeve vote-miniature"
echo "    python -m run.vote mini-polar mini-eeve mini-spow12 --split dev"
echo "    python -m run.test --model_id mini-polar --split dev --orders 6"
