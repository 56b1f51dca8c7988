# Sourced by the other scripts. `use_environment FILE …` activates .venv, made when it is missing, with the packages of the files.
# An activated virtual or conda environment (not conda's base) is taken as it is; PYTHON names the python that makes .venv.
use_environment() {
    local here="${VIRTUAL_ENV:-}"
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
    fi
    # Installed once for these very lists; a changed pin installs again.
    local stamp
    stamp="$here/.installed-$(cat "$@" | cksum | cut -d ' ' -f 1)"
    if [ ! -e "$stamp" ]; then
        echo "installing $* into $here"
        python -m pip install --quiet --disable-pip-version-check "${@/#/--requirement=}"
        touch "$stamp"
    fi
}
