#!/usr/bin/env bash
# Environment, lint, types, tests: what has to hold before a change lands.
#
#     bash run/check.bash
#     bash run/check.bash -k vote      what follows goes to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
source run/environment.bash
answer_help run/check.bash "$@"
use_environment requirements.txt requirements-dev.txt requirements-eda.txt
ruff check .
ruff format --check .
mypy
# Tests compute on one thread each.
python -m pytest --numprocesses 2 "$@"
