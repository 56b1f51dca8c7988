"""Runs commands in forked children: torch and transformers are imported once, not for each of hundreds of commands.

Reads one JSON object a line and answers with one. {"start": {...}} answers with a process id, {"poll": id} with the
exit code, or null while it runs. The shim is loaded from the beginning and counts nothing here; a child switches it on.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import traceback
from typing import Any, NoReturn

WARM = (
    *("torch", "transformers", "peft", "accelerate", "safetensors.torch"),
    *("transformers.trainer", "peft.utils.transformers_weight_conversion"),
    *(f"transformers.models.{family}.modeling_{family}" for family in ("llama", "qwen2", "gemma2")),
    *("rich.table", "rich.progress", "yaml", "jinja2.sandbox", "scipy.stats", "torch.distributed"),
    *("src.runs.training", "src.runs.scoring", "src.runs.command", "src.vote.decision", "src.vote.exported"),
    *("src.figures.training", "matplotlib.backends.backend_agg", "PIL.PngImagePlugin"),
)
"""Imported before the first command."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from src.console import environment

    environment.clear()
    for name in WARM:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # or the collector would look through all of it in every child, and so copy it
    for line in sys.stdin:
        request = json.loads(line)
        answer = start(**request["start"]) if "start" in request else poll(request["poll"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def poll(pid: int) -> int | None:
    """The exit code, negative for a signal."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def start(**given: Any) -> int:
    pid = os.fork()
    if pid:
        return pid
    work(**given)


def work(
    module: str,
    words: list[str],
    folder: str,
    output: str,
    plan: str | None,
    environment: dict[str, str] | None = None,
) -> NoReturn:
    """What a child does: `python -m module words` in `folder`, with its output in files that begin with `output`.

    environment  more variables
    """
    os.setsid()
    os.environ.update(environment or {})
    os.chdir(folder)
    for number, name in ((0, os.devnull), (1, f"{output}.out"), (2, f"{output}.err")):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)
    sys.argv = [module, *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if plan:
        os.environ["FAULTS_PLAN"] = plan
        assert ctypes.CDLL(None).faults_begin(plan.encode()) == 0
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
