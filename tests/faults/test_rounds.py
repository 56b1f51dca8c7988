"""What a process holds over many rounds is judged rightly, and it stays level."""

import atexit
import functools
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.held import CYCLES, LEVEL, Held, grown, hold, slope

CYCLE = 5


def made(growth_kib: float, rounds: int = 80) -> list[Held]:
    """Rounds whose memory grows so much each, below noise, and with one kind of round that holds more."""
    noise = random.Random(0)
    memory = [600 + growth_kib / 1024 * n + 5 * (n % CYCLE == 0) + noise.gauss(0, 0.3) for n in range(rounds)]
    return [Held({"resident": one}, {"handles": 5}, {}) for one in memory]


def test_the_slope_is_found_below_noise() -> None:
    found = slope([one.memory["resident"] for one in made(100.0)], CYCLE)
    assert abs(found.kib - 100) < 3 * found.error < 10


def test_only_what_grows_beyond_the_level_is_named() -> None:
    assert grown(made(0.0), CYCLE) == grown(made(LEVEL / 2), CYCLE) == grown(made(-100.0), CYCLE) == []
    (line,) = grown(made(LEVEL * 2), CYCLE)
    assert line.startswith("resident memory: 6")
    assert grown(made(LEVEL * 2, (CYCLES - 1) * CYCLE), CYCLE) == [], "too few rounds to judge"


def test_a_handle_more_is_named_and_a_handle_in_every_cycle_is_not() -> None:
    counts = [5, 5, 6, 5, 5] * 3
    rounds = [Held({}, {"handles": count}, {"folder": "a"}) for count in counts]
    assert grown(rounds, CYCLE) == []
    rounds[-1] = Held({}, {"handles": 7}, {"folder": "b"})
    assert grown(rounds, CYCLE) == ["handles: 6 at first, 7 in the end", "folder: a at first, b in the end"]


class Target:
    """What a finalizer can wait for."""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[Held], Target]]:
    """What is held before and after one of everything was left behind."""
    before = hold({"files": tmp_path})
    target, stop = Target(), threading.Event()
    with ExitStack() as stack, warnings.catch_warnings():
        stack.enter_context((tmp_path / "left").open("w", encoding="utf-8"))
        thread = threading.Thread(target=stop.wait)
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        stack.callback(child.wait)
        stack.callback(child.kill)
        atexit.register(stop.set)
        stack.callback(atexit.unregister, stop.set)
        logging.root.addHandler(handler := logging.NullHandler())
        stack.callback(logging.root.removeHandler, handler)
        stack.callback(signal.signal, signal.SIGUSR1, signal.signal(signal.SIGUSR1, signal.SIG_IGN))
        weakref.finalize(target, os.getpid)
        warnings.filterwarnings("ignore", message="planted")
        monkeypatch.setenv("PLANTED", "1")
        monkeypatch.syspath_prepend("/planted")
        # Many, since what earlier tests left in this process may go meanwhile.
        cached = [functools.cache(lambda value, number=number: (value, number)) for number in range(500)]
        kept = [[one(1)] for one in cached for _ in range(100)]
        after = hold({"files": tmp_path})
        yield [before, after], target
        del kept


def test_whatever_is_left_behind_is_named(planted: tuple[list[Held], Target]) -> None:
    names = {line.split(":")[0] for line in grown(planted[0], 1)}
    counted = {"handles", "threads", "python threads", "children", "at exit", "log handlers", "finalizers", "files"}
    assert names >= counted | {"warning filters", "caches", "cached", "objects"}
    assert names >= {"environment", "sys.path", "handler of SIGUSR1"}


@pytest.mark.thorough
def test_what_is_held_is_the_same_when_nothing_happened(tmp_path: Path) -> None:
    hold({"files": tmp_path})
    rounds = [hold({"files": tmp_path}) for _ in range(2)]
    assert grown(rounds, 1) == []
    assert 0 < rounds[0].memory["anonymous"] < rounds[0].memory["resident"]


@pytest.mark.faults
@pytest.mark.trains
@pytest.mark.thorough
def test_rounds_leave_nothing_behind() -> None:
    command = [sys.executable, "-m", "tests.faults.rounds", "--rounds", "15", "--warm_up", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0 and "level over 10 rounds" in done.stdout, done.stdout + done.stderr
