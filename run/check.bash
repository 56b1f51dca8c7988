#!/usr/bin/env bash
# Environment, lint, imports, types, tests: what has to hold before a change lands.
#
#     bash run/check.bash              some minutes: before you hand a change in
#     bash run/check.bash --quick      without the tests that train or take long: while you work
#     bash run/check.bash --all        with the thorough tests, too: before a release
#     bash run/check.bash -k vote      what follows goes to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
source run/environment.bash
answer_help run/check.bash "$@"
chosen=(-m "not thorough")
case "${1:-}" in
--quick) chosen=(-m "not trains and not slow and not faults and not gpu and not thorough") && shift ;;
--all) chosen=() && shift ;;
esac
use_environment requirements.txt requirements-dev.txt requirements-eda.txt
ruff check .
ruff format --check .
lint-imports --no-cache
# Types take two minutes of one core, so they are checked while the tests begin.
types="$(mktemp)"
mypy >"$types" 2>&1 &
checking=$!
# Under `set -e` a command that fails in a trap would decide the exit status: here kill, of what has ended.
trap 'kill $checking 2>/dev/null || true; rm -f "$types"' EXIT
# Tests compute on one thread each. Those of a file share what they made.
failed=0
python -m pytest --numprocesses 2 --dist loadfile "${chosen[@]}" "$@" || failed=$?
wait $checking || failed=1
cat "$types"
exit $failed
