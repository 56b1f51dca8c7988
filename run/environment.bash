# Sourced by the other scripts. `use_environment FILE …` activates .venv, made when it is missing, with the packages of the files.
# An activated virtual or conda environment (not conda's base) is taken as it is; PYTHON names the python that makes .venv.
# `activation` then holds what the user has to type in a shell of their own, or nothing.
use_environment() {
    local here="${VIRTUAL_ENV:-}"
    activation=
    if [ -z "$here" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then here="${CONDA_PREFIX:-}"; fi
    if [ -z "$here" ]; then
        local python="${PYTHON:-python3}"
        if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "error: Python 3.11 or 3.12 is needed; '$python' is $("$python" --version 2>&1). Name another: PYTHON=python3.11 bash $0" >&2
            exit 2
        fi
        [ -x .venv/bin/python ] || "$python" -m venv .venv || {
            echo "error: '$python -m venv' failed; on Debian and Ubuntu install python3-venv, or activate a conda environment." >&2
            exit 2
        }
        # shellcheck disable=SC1091
        source .venv/bin/activate
        here="$VIRTUAL_ENV"
        # shellcheck disable=SC2034
        activation=". .venv/bin/activate"
    fi
    # Of the packages' twenty thousand modules a tenth is ever imported. Python compiles those at their first import and keeps
    # what it made, which takes seconds; pip would compile all of them in two minutes.
    unset PYTHONDONTWRITEBYTECODE
    # Installed once for these very lists; a changed pin installs again.
    local stamp
    stamp="$here/.installed-$(cat "$@" | cksum | cut -d ' ' -f 1)"
    if [ ! -e "$stamp" ]; then
        echo "installing $* into $here: one to three minutes, and gigabytes where nothing is there yet"
        install_packages "$@"
        touch "$stamp"
        # The first command compiles what it imports, on one core. Another begins with what that command imports last.
        python -c 'import datasets, matplotlib.pyplot, scipy.stats, sympy, torch._inductor.compile_fx' >/dev/null 2>&1 &
    fi
}

# pip with a line for each download, and every twenty seconds what is being done and how far it is: a large one takes minutes.
install_packages() {
    local started=$SECONDS failed=0 clock seen
    seen="$(mktemp)"
    (while sleep "${INSTALL_TELLS_EVERY:-20}" >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do echo "  … $((SECONDS - started)) s: $(install_progress "$seen")"; done) &
    clock=$!
    # shellcheck disable=SC2064
    trap "kill $clock 2>/dev/null || true; rm -f '$seen'" EXIT
    python -m pip install --disable-pip-version-check --no-compile "${@/#/--requirement=}" | tee "$seen" |
        { grep --line-buffered -E '^ *(Downloading|Using cached|Building|Installing|Successfully)' || true; } || failed=$?
    kill $clock 2>/dev/null || true
    rm -f "$seen"
    trap - EXIT
    [ "$failed" = 0 ] || exit "$failed"
}

# `install_progress FILE`: what pip, whose output so far is in FILE, is doing.
install_progress() {
    local fetched all
    if grep -q '^Installing collected' "$1"; then
        all="$(grep '^Installing collected' "$1" | tr -cd , | wc -c)"
        echo "writing $((all + 1)) packages, $(du -sm "${VIRTUAL_ENV:-${CONDA_PREFIX:-.}}" 2>/dev/null | cut -f 1) MB so far"
    else
        fetched="$(grep -cE '^ *(Downloading|Using cached) [^ ]*\.(whl|tar\.gz) ' "$1" || true)"
        echo "fetching, $fetched files so far"
    fi
}

# `answer_help FILE …`: with --help among the arguments, the comment at FILE's head, and no more.
answer_help() {
    local file="$1" argument
    shift
    for argument in "$@"; do
        case "$argument" in
        --help | -h) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$file" && exit 0 ;;
        esac
    done
}

refuse() {
    echo "error: $1" >&2
    exit 2
}
