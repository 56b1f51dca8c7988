"""Checks before anything else: the right Python, its packages, and where the repository is.

Any Python 3 can run this file, with nothing installed, so that users of the wrong Python are told what to type.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(os.path.abspath(__file__)).parents[2]
COMMANDS = ("run", "orpo")
"""Folders of the scripts that users start."""
PYTHONS = ("3.11", "3.12")
FIRST = ("rich", "yaml")
"""Packages that every command imports sooner or later, and that are quick to look for."""


def ours(name: str) -> Path:
    """A path in the repository: relative if the working directory is its root, else absolute."""
    return Path(name) if Path.cwd() == ROOT else ROOT / name


def find(name: str) -> str:
    """`name` of a file, folder or model. If there is no such path here, but one in the repository, that one. Recipes
    and records have such names.
    """
    try:
        return name if Path(name).exists() or not (ROOT / name).exists() else str(ROOT / name)
    except OSError:  # a name that no file system takes
        return name


def check() -> None:
    """Ends one of our commands, with one line, if it cannot run here. Notebooks, tests and other programs continue."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    folder = os.path.dirname(os.path.abspath(file)) if file else ""
    if folder not in [str(ROOT / name) for name in COMMANDS]:
        return
    # Python puts a script's own folder first. There run/test.py or run/evaluate.py would hide other people's modules.
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != folder]
    version = ".".join(map(str, sys.version_info[:3]))
    if version.rpartition(".")[0] not in PYTHONS:
        _end(f"Python {' or '.join(PYTHONS)} is needed; {sys.executable} is {version}. {_advice(True)}")
    missing = [name for name in FIRST if importlib.util.find_spec(name) is None]
    if missing:
        _end(_lacks(missing[0]))
    sys.excepthook = _hook


def _hook(kind: Any, error: BaseException, trace: Any) -> None:
    """Reports a missing package in one line. Any other uncaught error is a bug and keeps its traceback."""
    name = str(getattr(error, "name", None) or "").partition(".")[0]
    if not issubclass(kind, ModuleNotFoundError) or name in ("", "src", *COMMANDS):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stdout.flush()
    sys.stderr.write(f"error: {_lacks(name)}\n")
    sys.stderr.flush()
    os._exit(2)  # a hook has no other way to choose the exit code


def _end(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


def _lacks(package: str) -> str:
    return f"the package {package} is not installed for {sys.executable}. {_advice(False)}"


def _advice(other_python: bool) -> str:
    """The command that the user should type. other_python: whether the Python itself is the wrong version."""
    venv, requirements = ours(".venv"), ours("requirements.txt")
    if (venv / "bin" / "activate").is_file() and Path(sys.prefix) != ROOT / ".venv":
        return f"Activate the environment: . {venv}/bin/activate"
    active = sys.prefix != sys.base_prefix or os.path.isdir(os.path.join(sys.prefix, "conda-meta"))
    if active and not other_python:
        return f"Install what is missing: python -m pip install -r {requirements}"
    there = "" if Path.cwd() == ROOT else f"cd {ROOT} && "
    python = f"python{PYTHONS[0]}"
    choice = f"PYTHON={python} " if other_python else ""
    return (
        f"Make the environment, and see everything run at toy size: {there}{choice}bash run/quickstart.bash "
        f"(or by hand: {there}{python} -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt)"
    )
