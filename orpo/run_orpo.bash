#!/usr/bin/env bash
# ORPO of Qwen2-7B, Qwen2-7B-Instruct and spow12, or of any recipes with `method: orpo` or `objective: orpo`.
#
#     bash orpo/run_orpo.bash                      all of them, each on a GPU of its own where there are several
#     bash orpo/run_orpo.bash qwen2it              these recipes only
#     bash orpo/run_orpo.bash --detach             goes on when the terminal is closed, and says where its log is
#     bash orpo/run_orpo.bash --recipes DIR        those in another folder
#     bash orpo/run_orpo.bash --data DIR           another corpus than resource/data
#     bash orpo/run_orpo.bash --jobs N             so many at a time
#     bash orpo/run_orpo.bash --task FILE          another task than resource/task.yaml
#     bash orpo/run_orpo.bash --dry_run            prints what it needs, and stops
#     bash orpo/run_orpo.bash --miniature          at toy size, on any machine (made by bash run/quickstart.bash)
#
# Trains, scores and votes as run.reproduce does: finished runs are kept, unfinished ones go on. Each run's output is in
# resource/results/NAME/log.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
source run/environment.bash
answer_help orpo/run_orpo.bash "$@"

recipes=(resource/recipes/published resource/recipes/orpo)
data=resource/data name=orpo needs_gpu=yes detach=
names=() more=()
while [ $# -gt 0 ]; do
    case "$1" in
    --recipes | --data | --jobs | --task) [ $# -gt 1 ] || refuse "$1 needs a value." ;;&
    --recipes) recipes=("$2") name="orpo-$(basename "$2")" needs_gpu= && shift ;;
    --data) data="$2" && shift ;;
    --jobs | --task) more+=("$1" "$2") && shift ;;
    --dry_run) more+=(--dry_run) needs_gpu= ;;
    --miniature) recipes=(resource/miniature/recipes) data=resource/miniature/data name=orpo-miniature needs_gpu= ;;
    --detach) detach=yes ;;
    -*) refuse "unknown argument '$1'. See bash orpo/run_orpo.bash --help" ;;
    *) names+=("$1") ;;
    esac
    shift
done

# What is missing is said before anything starts.
if [ -z "${VIRTUAL_ENV:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" = base ]; then
    [ -f .venv/bin/activate ] || refuse "there is no environment: activate one, or make .venv with bash run/quickstart.bash"
    # shellcheck disable=SC1091
    source .venv/bin/activate
fi
python - <<'END' || refuse "this environment lacks packages: python -m pip install -r requirements.txt"
import importlib.util, sys
sys.exit(any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "peft", "rich", "yaml")))
END
for folder in "${recipes[@]}"; do
    [ -d "$folder" ] || refuse "there is no folder of recipes $folder. For the miniature: python -m run.make_miniature"
done
if [[ " ${more[*]-} " != *" --dry_run "* ]]; then
    for split in train dev; do
        [ -f "$data/data_$split.json" ] || refuse "there is no $data/data_$split.json. Put the corpus there: python -m run.prepare_data FILE"
    done
fi
if [ -n "$needs_gpu" ] && ! python -c 'import sys, torch; sys.exit(torch.cuda.device_count() == 0)'; then
    refuse "there is no GPU here that torch can use, and these backbones have 7 billion parameters. At toy size: --miniature"
fi

command=(python -m run.reproduce --recipes "${recipes[@]}" --objective orpo --data "$data" --name "$name" "${more[@]}")
[ ${#names[@]} -eq 0 ] || command+=(--only "${names[@]}")
if [ -z "$detach" ]; then
    exec "${command[@]}"
fi
# The plan first, in the foreground: it names a recipe that does not exist.
"${command[@]}" --dry_run
mkdir -p resource/results
log="resource/results/$name.log"
PYTHONUNBUFFERED=1 setsid nohup "${command[@]}" >>"$log" 2>&1 </dev/null &
echo "Started as process $!. Its log is $log, that of a run resource/results/NAME/log.txt. To stop it: kill $!"
