"""GPUs for jobs that need one or several."""

import threading
import time

import pytest

from src.console.slots import Slots, visible


def test_jobs_share_gpus_only_where_there_are_more_jobs_than_gpus() -> None:
    slots = Slots(4, 2)
    assert [list(slots.take(1)) for _ in range(4)] == [[0], [1], [0], [1]]


def test_several_gpus_are_different_ones() -> None:
    slots = Slots(4, 4)
    one = slots.take(1)
    two = slots.take(2)
    assert len({*one, *two}) == 3
    slots.give_back(one)
    assert len(set(slots.take(2)) | set(two)) == 4


def test_more_than_there_are_is_all_of_them() -> None:
    assert list(Slots(1, 0).take(2)) == [0]
    assert list(Slots(2, 2).take(8)) == [0, 1]


def test_a_job_of_several_gets_them_where_fewer_jobs_run_at_a_time() -> None:
    slots = Slots(1, 4)
    assert list(slots.take(1)) == [0], "the first, as without it"
    assert list(slots.take(2)) == [1, 2]


def test_a_job_of_several_shares_no_gpu() -> None:
    slots, got = Slots(4, 2), []  # type: ignore[var-annotated]
    pair = slots.take(2)
    assert sorted(pair) == [0, 0, 1, 1] and visible(pair, 2) == "0,1"
    slots.give_back(pair)
    one = slots.take(1)
    waiting = asked(slots, 2, got)
    assert got == []
    slots.give_back(one)
    waiting.join(5)
    assert got == [2]


def asked(slots: Slots, needed: int, got: list[int]) -> threading.Thread:
    def ask() -> None:
        slots.take(needed)
        got.append(needed)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    time.sleep(0.1)
    return thread


def test_a_small_job_passes_one_that_does_not_fit_yet_but_not_one_that_does() -> None:
    slots, got = Slots(3, 3), []  # type: ignore[var-annotated]
    pair = slots.take(2)
    waiting = asked(slots, 2, got)
    assert got == []
    passing = asked(slots, 1, got)
    passing.join(5)
    assert got == [1]
    later = asked(slots, 1, got)
    slots.give_back(pair)
    waiting.join(5)
    assert got == [1, 2], "the pair was there first"
    slots.give_back([pair[0]])
    later.join(5)
    assert got == [1, 2, 1]


def test_names_of_gpus_are_those_that_this_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible([0, 2], 4) == "0,2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-12ab,7")
    assert visible([1, 2], 3) == "GPU-12ab,7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,9")  # of which torch can use two: nobody knows which
    assert visible([1], 2) == "1"
