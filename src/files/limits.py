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


@contextlib.contextmanager
def _by_signal(seconds: float) -> Iterator[None]:
    ends = time.thread_time() + seconds

    def stop(number: int, frame: FrameType | None) -> None:
        # Raised again until the block has ended: an error raised within a destructor is lost.
        left = ends - time.thread_time()
        signal.setitimer(signal.ITIMER_REAL, max(left, AGAIN) if left > 0 else 1.0)
        if left <= 0:
            raise TimeoutError

    before = signal.getsignal(signal.SIGALRM)
    outer, _ = signal.getitimer(signal.ITIMER_REAL)
    if outer:
        seconds = min(seconds, outer)
        own = stop

        def stop(number: int, frame: FrameType | None) -> None:
            if callable(before):
                before(number, frame)  # it raises if its time is up, too
            own(number, frame)

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, AGAIN if outer else 0)  # the outer block's handler looks at its own time
        signal.signal(signal.SIGALRM, before)


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
