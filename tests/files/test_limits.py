import resource
import signal
import threading
import time

import pytest

from src.files.limits import memory_limit, time_limit


def test_time_is_bounded_in_the_main_thread() -> None:
    with pytest.raises(TimeoutError), time_limit(0.1):
        compute(5)
    with time_limit(0.1):
        compute(0.01)
    compute(0.15)  # nothing is left that would go off


def test_time_is_bounded_in_another_thread() -> None:
    told: list[str] = []

    def work() -> None:
        try:
            with time_limit(0.1):
                compute(5)
        except TimeoutError:
            told.append("stopped")
        with time_limit(0.1):
            compute(0.01)
        compute(0.2)
        told.append("went on")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == ["stopped", "went on"]


def test_waiting_does_not_count() -> None:
    with time_limit(0.1):
        time.sleep(0.3)


def test_an_outer_limit_holds_within_an_inner_one_and_after_it() -> None:
    with pytest.raises(TimeoutError), time_limit(0.1), time_limit(10):
        compute(5)
    with pytest.raises(TimeoutError), time_limit(0.1):
        with time_limit(10):
            compute(0.01)
        compute(5)
    with time_limit(10):
        with pytest.raises(TimeoutError), time_limit(0.1):
            compute(5)
        compute(0.2)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_memory_limits_of_two_threads_leave_none_behind() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    first = memory_limit(2**28)
    first.__enter__()
    second = memory_limit(2**28)
    second.__enter__()
    first.__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_AS) != before
    second.__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def compute(seconds: float) -> None:
    ends = time.thread_time() + seconds
    while time.thread_time() < ends:
        pass


def test_memory_is_bounded_and_then_free_again() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(MemoryError), memory_limit(2**28):
        bytearray(2**30)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    with memory_limit(2**28):
        bytearray(2**20)
    assert len(bytearray(2**29)) == 2**29
