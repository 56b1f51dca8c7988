"""Commands as child processes: their output in a log file, their progress through a pipe, their failure as one line."""

import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from src.progress import PIPE


def run_job(
    command: Sequence[str], log: Path, environment: Mapping[str, str], update: Callable[[dict[str, Any]], None]
) -> str:
    """Runs `command` to its end and returns why it failed, or "". `update` gets {"stage", "done", "total", "note"}
    as it goes on.

    A process of its own for each run: memory is given back, and one that is killed takes nothing along.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    with log.open("a", encoding="utf-8") as output:
        output.write(f"$ {' '.join(command)}\n")
        output.flush()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            env={**os.environ, "PYTHONUNBUFFERED": "1", PIPE: str(writing), **environment},
        )
    os.close(writing)
    reader = threading.Thread(target=_listen, args=(reading, update), daemon=True)
    reader.start()
    try:
        code = child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    finally:
        reader.join(timeout=5)
    return "" if code == 0 else _reason(log, code)


def _listen(pipe: int, update: Callable[[dict[str, Any]], None]) -> None:
    with os.fdopen(pipe, encoding="utf-8") as lines:
        for line in lines:
            update(json.loads(line))


def _reason(log: Path, code: int) -> str:
    """The last message of a failed command."""
    if code == -9:
        return f"killed by the system, most often because memory ran out (see {log})"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    marked = [line for line in lines if "error: " in line.lower()]
    message = (marked or lines or ["no output"])[-1]
    return f"{message.removeprefix('error: ')[:300]} (exit {code}, see {log})"
