"""Limits for what users' files compute: how long, how much memory, and how large a number or a text may become."""

import contextlib
import ctypes
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

PAGE = resource.getpagesize()
UNWINDING = 0.5
"""Seconds of computing that a block may take to end after its time was up."""
AGAIN = 0.02
"""Seconds until a thread is looked at again whose time was not used up, since it had to wait for others."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Within the block, TimeoutError after this thread has computed for `seconds`. Waiting does not count, so a busy or
    suspended machine ends nothing. A block within a block has what is left of the outer one at most.
    """
    if threading.current_thread() is threading.main_thread():
        with _by_signal(seconds):
            yield
    else:
        with _by_watcher(seconds):
            yield


_ends: list[float] = []
"""When the blocks of the main thread end, the outer ones first, by its clock."""


@contextlib.contextmanager
def _by_signal(seconds: float) -> Iterator[None]:
    before = signal.getsignal(signal.SIGALRM)
    outer = len(_ends)
    _ends.append(time.thread_time() + seconds)
    signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, max(min(_ends) - time.thread_time(), AGAIN))
    try:
        yield
    finally:
        del _ends[outer:]
        if not _ends:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    if not _ends:
        return
    now = time.thread_time()
    over = min(_ends) <= now
    if over:
        # It is raised again if the block does not end: an error that is raised within a destructor is lost.
        _ends[:] = [max(end, now + UNWINDING) for end in _ends]
    signal.setitimer(signal.ITIMER_REAL, max(min(_ends) - now, AGAIN))
    if over:
        raise TimeoutError


@contextlib.contextmanager
def _by_watcher(seconds: float) -> Iterator[None]:
    """As `_by_signal`, in a thread that signals do not reach: another thread raises the error in it."""
    own = threading.get_ident()
    clock = time.pthread_getcpuclockid(own)
    ends = time.clock_gettime(clock) + seconds
    ended, lock = threading.Event(), threading.Lock()

    def watch() -> None:
        while not ended.wait(max(ends - time.clock_gettime(clock), AGAIN)):
            with lock:
                if not ended.is_set() and time.clock_gettime(clock) >= ends:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(own), ctypes.py_object(TimeoutError))
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        with lock:
            ended.set()
        # An error that was asked for and has not been raised yet would come up later, somewhere else.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(own), None)
        watcher.join()


_limited = 0
_before = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
_lock = threading.Lock()


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Within the block, MemoryError once the process uses `size` bytes of address space more than before it. Within a
    block, also in another thread, the outer block's limit stays as it is.
    """
    global _limited, _before
    with _lock:
        _limited += 1
        if _limited == 1:
            _before = resource.getrlimit(resource.RLIMIT_AS)
            wanted = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE + size
            bounds = [bound for bound in (wanted, *_before) if bound != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_AS, (min(bounds), _before[1]))
    try:
        yield
    finally:
        with _lock:
            _limited -= 1
            if _limited == 0:
                resource.setrlimit(resource.RLIMIT_AS, _before)
