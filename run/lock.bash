#!/usr/bin/env bash
# Makes requirements.lock from requirements.txt, and asks whether a package of it has a known vulnerability.
#
#     bash run/lock.bash              after a change of requirements.txt; what else is locked keeps its version
#     bash run/lock.bash --upgrade    with the newest versions of all that requirements.txt does not pin
#     bash run/lock.bash --audit      asks only; the lock stays as it is
#
# Needs the package index, and Python 3.11 or 3.12 (PYTHON names another). Its tools live in an environment that is gone afterwards.
# Asks for the versions that this Python would install. Exit code: 1 with a vulnerability found, 0 also when no service answers.
set -euo pipefail
cd "$(dirname "$0")/.."
source run/environment.bash
answer_help run/lock.bash "$@"
[ $# -le 1 ] || refuse "lock.bash takes one argument at most; found: $*. See bash run/lock.bash --help"
case "${1:-}" in
"" | --upgrade | --audit) ;;
*) refuse "lock.bash knows --upgrade and --audit; found: $1. See bash run/lock.bash --help" ;;
esac
# Known, not mended by any version, and out of reach here. Each with its reason:
# diskcache 5.6.3 unpickles what lies in its cache. textgrad brings it for engines of its own; src/search/textgrad.py has another.
known=(--ignore-vuln CVE-2025-69872)

tools="$(mktemp -d)"
trap 'rm -rf "$tools"' EXIT

install_tools() {
    "${PYTHON:-python3}" -m venv "$tools"
    "$tools/bin/pip" install -qq --disable-pip-version-check uv==0.13.9 pip-audit==2.10.1
}

# All files of a version count, whatever machine and Python they are for. Nothing is built: no package's code runs, here or when it is
# installed, and what a build would need could not be locked.
make_lock() {
    local new="$tools/requirements.lock"
    [ ! -e requirements.lock ] || cp requirements.lock "$new"
    "$tools/bin/uv" pip compile requirements.txt --output-file "$new" "$@" --quiet --no-header --python "$tools/bin/python" \
        --universal --python-version 3.11 --generate-hashes --only-binary :all: --emit-build-options
    {
        echo "# What requirements.txt names, with all that it needs: one version each, and the sha256 of all its files."
        echo "# Install it:    pip install --require-hashes -r requirements.lock"
        echo "# Make it anew:  bash run/lock.bash"
        cat "$new"
    } >"$tools/whole"
    cp "$tools/whole" requirements.lock
    echo "requirements.lock: $(grep -c '==' requirements.lock) packages, $(grep -c -- '--hash=sha256:' requirements.lock) files"
}

# pip-audit calls a package without a vulnerability even when its service knows none of the versions; --strict makes that a failure.
ask_for_vulnerabilities() {
    local service said=
    for service in pypi osv; do
        if "$tools/bin/pip-audit" --vulnerability-service "$service" --strict --require-hashes --disable-pip --progress-spinner off \
            "${known[@]}" --requirement requirements.lock >"$tools/found" 2>"$tools/said"; then
            echo "vulnerabilities: none known but those named in run/lock.bash ($service)"
            return 0
        fi
        if [ -s "$tools/found" ]; then
            echo "vulnerabilities known ($service); pin a version that mends them in requirements.txt, or give --upgrade:"
            cat "$tools/found"
            return 1
        fi
        said="$said; $service: $(tail -n 1 "$tools/said" | cut -c 1-100)"
    done
    echo "vulnerabilities: not looked up, for no service answered: ${said#; }"
}

install_tools
[ "${1:-}" = --audit ] || make_lock "$@"
ask_for_vulnerabilities
