"""Commands as child processes: their output in a log file, their progress through a pipe, their failure as one line."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from src.console.cli import INTERRUPTED
from src.console.progress import PIPE
from src.console.start import ROOT

COMMAND = "$ "
"""Begins the line of a log that has the command."""


def run_job(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    update: Callable[[dict[str, Any]], None],
    stop: threading.Event,
) -> str:
    """Runs `command` to its end, or until `stop` is set, and returns why it failed, or "".

    `update` gets {"stage", "done", "total", "note"} while it runs. Each command is a process of its own, so its memory
    is always freed, and if it is killed, nothing else dies.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # `python -m run.train` must find the repository from any folder.
    found = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    reading, writing = os.pipe()
    with log.open("a", encoding="utf-8") as output:
        output.write(f"{COMMAND}{' '.join(command)}\n")
        output.flush()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            # A log is UTF-8, whatever the terminal's encoding is.
            env={
                **os.environ,
                **found,
                "PYTHONUNBUFFERED": "1",
                "PYTHONIOENCODING": "utf-8",
                PIPE: str(writing),
                **environment,
            },
        )
    os.close(writing)
    reader = threading.Thread(target=_listen, args=(reading, update), daemon=True)
    reader.start()
    while child.poll() is None:
        if stop.wait(0.1):
            child.terminate()
            child.wait()
    reader.join(timeout=5)
    return "" if child.returncode == 0 else _reason(log, child.returncode)


def _listen(pipe: int, update: Callable[[dict[str, Any]], None]) -> None:
    with os.fdopen(pipe, encoding="utf-8") as lines:
        for line in lines:
            update(json.loads(line))


def _reason(log: Path, code: int) -> str:
    """Why the last command in `log` ended with `code`: its last error message, or its last line."""
    if code == -signal.SIGKILL:
        return f"killed by the system, most often because memory ran out (see {log})"
    if code in (-signal.SIGINT, -signal.SIGTERM, INTERRUPTED):
        return "interrupted"
    text = log.read_text(encoding="utf-8", errors="replace").rpartition(COMMAND)[2]
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    marked = [line for line in lines if "error: " in line.lower()]
    message = (marked or lines or ["no output"])[-1]
    return f"{message.removeprefix('error: ')[:300]} (exit {code}, see {log})"
