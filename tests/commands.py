"""Commands as a user starts them, within the tests' own process, and with a folder of their own for runs."""

import contextlib
import importlib
import io
import sys
from pathlib import Path

import pytest

from src.console.cli import run_main

COMMANDS = ("prepare_data", "train", "test", "vote", "evaluate", "reproduce", "optimize_prompt", "export", "runs")


def start(command: str, *words: str | Path, code: int = 0) -> tuple[str, str]:
    """What a command prints on stdout and stderr; it has to end with `code`, and without a traceback."""
    out, err = io.StringIO(), io.StringIO()
    main = importlib.import_module(command).main
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = run_main(lambda: main([str(word) for word in words]))
    assert found == code and "Traceback" not in err.getvalue(), f"{command} {words}: {out.getvalue()}{err.getvalue()}"
    return out.getvalue(), err.getvalue()


def leave_undrawn(patch: pytest.MonkeyPatch) -> None:
    """Trainings leave no curves: to draw them takes as long as a small training."""
    patch.setattr("src.runs.training.draw", lambda *given: None)


def put_runs_into(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Has every command keep its runs in `folder`."""
    for name in COMMANDS:
        importlib.import_module(f"run.{name}")
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("src", "run", "orpo") and hasattr(module, "RESULTS"):
            patch.setattr(module, "RESULTS", folder)
