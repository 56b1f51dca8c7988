"""Progress of the long parts: a bar on a terminal, or lines into a pipe when `run.reproduce` watches.

The pipe's number is in the environment, so that a command started by hand and one started by `run.reproduce` are
the same command.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PIPE = "CCI_PROGRESS_FD"


class Progress:
    """One stage of known length. `update(done)` takes the count so far."""

    def __init__(self, stage: str, total: int, bar: Any, pipe: int | None) -> None:
        self.stage, self.total, self._bar, self._pipe = stage, total, bar, pipe
        self._last = 0.0

    def update(self, done: int, note: str = "") -> None:
        if self._pipe is not None and (time.monotonic() - self._last > 0.2 or done >= self.total):
            self._last = time.monotonic()
            line = json.dumps({"stage": self.stage, "done": done, "total": self.total, "note": note})
            os.write(self._pipe, line.encode() + b"\n")
        if self._bar is not None:
            self._bar.n = done
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.refresh()


@contextmanager
def stage(name: str, total: int) -> Iterator[Progress]:
    """A bar called `name` over `total` steps."""
    number = os.environ.get(PIPE)
    if number:
        yield Progress(name, total, None, int(number))
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=name, dynamic_ncols=True, mininterval=0.5, disable=None) as bar:
        yield Progress(name, total, bar, None)
