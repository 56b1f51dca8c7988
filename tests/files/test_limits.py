import resource
import threading
import time

import pytest

from src.files.limits import memory_limit, time_limit


def test_time_is_bounded_in_the_main_thread() -> None:
    with pytest.raises(TimeoutError), time_limit(0.1):
        time.sleep(5)
    with time_limit(0.1):
        pass
    time.sleep(0.15)  # nothing is left that would go off
    ended = []
    thread = threading.Thread(target=lambda: [time_limit(0.01).__enter__(), time.sleep(0.05), ended.append(True)])
    thread.start()
    thread.join()
    assert ended


def test_memory_is_bounded_and_then_free_again() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(MemoryError), memory_limit(2**28):
        bytearray(2**30)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    with memory_limit(2**28):
        bytearray(2**20)
    assert len(bytearray(2**29)) == 2**29
