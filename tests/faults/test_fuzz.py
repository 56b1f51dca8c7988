"""The short form of `python -m tests.faults.fuzz`: a few of its inputs, and some that hypothesis draws and shrinks."""

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.console.cli import UserError
from tests.faults.fuzz import MOST_MB, MOST_SECONDS, try_reader
from tests.faults.fuzz_readers import READERS

pytestmark = pytest.mark.faults

INPUTS = 50
"""For each reader."""


@pytest.mark.parametrize("name", READERS)
def test_a_reader_answers_with_the_users_message(name: str) -> None:
    found = try_reader(name, range(INPUTS))
    assert not found.foreign and found.inputs == INPUTS
    assert found.seconds < MOST_SECONDS and found.mb < MOST_MB


@pytest.mark.parametrize("name", sorted(READERS.keys() - {"prompt", "chat_template"}))
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data())
def test_the_smallest_file_that_a_reader_fails_on(name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(UserError):
        READERS[name](lambda count: data.draw(st.integers(0, count - 1)), Path(folder))
