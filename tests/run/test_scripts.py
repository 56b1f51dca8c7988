"""The shell scripts, up to where they begin to work."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ("run/quickstart.bash", "run/check.bash", "run/lock.bash", "orpo/run_orpo.bash")


def call(*words: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"} | variables
    return subprocess.run(["bash", *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_the_comment_at_the_head_and_starts_nothing(script: str, flag: str, tmp_path: Path) -> None:
    head = (ROOT / script).read_text(encoding="utf-8").split("\nset -euo")[0].splitlines()[1:]
    for cwd, path in ((ROOT, script), (tmp_path, str(ROOT / script))):
        done = call(path, flag, cwd=cwd)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [line.removeprefix("#").removeprefix(" ") for line in head]


def test_the_quickstart_refuses_what_it_does_not_know() -> None:
    done = call("run/quickstart.bash", "--jobs", "3")
    assert (done.returncode, done.stdout) == (2, "") and "takes no arguments; found: --jobs 3" in done.stderr


FAKE_PYTHON = """#!/usr/bin/env bash
echo "Collecting torch"
echo "Requirement already satisfied: rich"
echo "  Downloading torch-2.whl (800 MB)"
echo "Successfully installed torch${PYTHONDONTWRITEBYTECODE:-}"
exit ${FAILS:-0}
"""


@pytest.mark.slow
@pytest.mark.parametrize("fails", ["0", "1"])
def test_an_installation_says_what_it_does(fails: str, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(FAKE_PYTHON)
    (tmp_path / "bin" / "python").chmod(0o755)
    code = "set -euo pipefail; source run/environment.bash; use_environment requirements.txt; echo over:$activation"
    where = {"VIRTUAL_ENV": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "FAILS": fails}
    where |= {"INSTALL_TELLS_EVERY": "3", "PYTHONDONTWRITEBYTECODE": "1"}
    done = call("-c", code, **where)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"installing requirements.txt into {tmp_path}")
    assert lines[1:3] == ["  Downloading torch-2.whl (800 MB)", "Successfully installed torch"]
    assert done.returncode == int(fails) and ("over:" in lines) == (fails == "0")
    assert bool(list(tmp_path.glob(".installed-*"))) == (fails == "0")
    if fails == "0":
        assert call("-c", code, **where).stdout == "over:\n"


STUB = """#!/usr/bin/env bash
case "${0##*/} $*" in python*pytest*) name=pytest ;; *) name="${0##*/}" ;; esac
case " $FAILING " in *" $name "*) exit 3 ;; esac
"""


@pytest.mark.parametrize("failing", ["", "ruff", "lint-imports", "mypy", "pytest", "mypy pytest"])
def test_the_check_fails_exactly_where_one_of_its_tools_does(failing: str, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("ruff", "lint-imports", "mypy", "python"):
        (tmp_path / "bin" / name).write_text(STUB)
        (tmp_path / "bin" / name).chmod(0o755)
    where = {"VIRTUAL_ENV": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = call("run/check.bash", **where, FAILING=failing)
    assert (done.returncode != 0) == bool(failing), done


def test_the_quickstart_ends_with_commands_that_parse() -> None:
    import importlib
    import re
    import shlex

    text = (ROOT / "run" / "quickstart.bash").read_text(encoding="utf-8")
    after = text.split('echo "next:"')[1]
    commands = [shlex.split(line) for line in re.findall(r'echo "\s+(python -m .*)"', after)]
    assert len(commands) == 4
    for words in commands:
        importlib.import_module(words[2]).make_parser().parse_args(words[3:])
    assert '[ -z "$activation" ] || echo "    $activation"' in after
