"""Progress of long stages: a bar on a terminal, a line now and then in a log, and lines into a pipe for
`run.reproduce`.

The number of the pipe is in the environment, so that `run.reproduce` starts the same command as users do by hand.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from src.console import launch
from src.console.terminal import NO_READER, Unread

PIPE = "CCI_PROGRESS_FD"
OFTEN, PARTS = 30.0, 50
"""Least seconds between two lines in a log, and the most lines for a stage."""


class Progress:
    """One stage. `update(done)` gets the count so far; `begin` the length of the stage, if it is known only later."""

    def __init__(self, stage: str, total: int, bar: Any, pipe: int | None) -> None:
        self.stage, self.total, self.done, self._bar, self._pipe = stage, total, 0, bar, pipe
        self._started = self._last = self._line = time.monotonic()
        self._first = self._said = 0
        self._note = ""

    @property
    def words(self) -> str:
        """The text beside the count."""
        return self._note

    def seconds_left(self) -> float | None:
        """To the end of the stage at the speed so far; None before the first step, or where the end is not known."""
        done = self.done - self._first
        if done <= 0 or self.total < self.done:
            return None
        return (time.monotonic() - self._started) / done * (self.total - self.done)

    def begin(self, done: int, total: int) -> None:
        """The stage has `total` steps, of which an earlier command did `done`. Time counts from now."""
        self.total, self.done, self._first, self._said = total, done, done, done
        self._started = self._line = time.monotonic()
        if self._bar is not None:
            self._bar.reset(total)
            self._bar.initial = self._bar.n = self._bar.last_print_n = done
            self._bar.refresh()

    def note(self, note: str) -> None:
        """Sets the text beside the count."""
        self._note = note
        if self._bar is not None:
            self._bar.set_postfix_str(note)

    def update(self, done: int, note: str = "") -> None:
        self.done, self._note = done, note or self._note
        now = time.monotonic()
        if self._pipe is not None and (now - self._last > 0.2 or done >= self.total):
            self._last = now
            line = json.dumps({"stage": self.stage, "done": done, "total": self.total, "note": self._note})
            try:
                os.write(self._pipe, line.encode() + b"\n")
            except BrokenPipeError as error:  # `run.reproduce` is gone; no library may catch this
                raise Unread(NO_READER) from error
        if self._bar is not None:
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(done - self._bar.n)
        elif now - self._line >= OFTEN and (done - self._said) * PARTS >= self.total:
            self._line, self._said = now, done
            left = self.seconds_left() or 0.0
            said = f"{self.stage}: {done} of {self.total}{', ' if self._note else ''}{self._note}, {_time(left)} left"
            print(said, flush=True)


class Above:
    """A stream whose lines appear above a bar: the bar is cleared before they are written, and then drawn again."""

    def __init__(self, stream: Any, bar: Any) -> None:
        self._stream, self._bar, self._open = stream, bar, False

    def write(self, text: str) -> int:
        if not self._open:
            self._bar.clear()
        self._stream.write(text)
        self._stream.flush()
        if text:
            self._open = not text.endswith("\n")
        if not self._open:
            self._bar.refresh()
        return len(text)

    @property
    def rich_proxied_file(self) -> "Above":
        return Above(getattr(self._stream, "rich_proxied_file", self._stream), self._bar)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_open: list[Progress] = []
"""The stages that are open now, each within the one before."""


def current() -> Progress | None:
    """The innermost stage that is open now; another thread may ask."""
    return next(iter(_open[-1:]), None)


@contextmanager
def stage(name: str, total: int) -> Iterator[Progress]:
    """Within the block, a bar called `name` with `total` steps, below anything that is printed meanwhile."""
    with _shown(name, total) as opened:
        _open.append(opened)
        try:
            yield opened
        finally:
            _open.remove(opened)


@contextmanager
def _pipe(number: str) -> Iterator[int | None]:
    """Within the block, the pipe with this number, or None. A rank does not inherit it from its launcher, which holds
    it open. The first rank speaks for all.
    """
    here = launch.current()
    if not here.several:
        yield int(number)
        return
    found = None
    with contextlib.ExitStack() as stack:
        if here.rank == 0:
            with contextlib.suppress(OSError):  # a system without /proc
                found = os.open(f"/proc/{os.getppid()}/fd/{number}", os.O_WRONLY)
                stack.callback(os.close, found)
        yield found


@contextmanager
def _shown(name: str, total: int) -> Iterator[Progress]:
    if number := os.environ.get(PIPE):
        with _pipe(number) as pipe:
            yield Progress(name, total, None, pipe)
        return
    if not sys.stderr.isatty():
        yield Progress(name, total, None, None)
        return
    from tqdm import tqdm

    before = sys.stdout, sys.stderr
    with tqdm(total=total, desc=name, dynamic_ncols=True, mininterval=0.5, file=sys.stderr) as bar:
        sys.stdout, sys.stderr = (Above(stream, bar) for stream in before)
        try:
            yield Progress(name, total, bar, None)
        finally:
            sys.stdout, sys.stderr = before


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
