"""What launchers and shells say of processes, before a training."""

import os

import pytest

from src.cli import UserError
from src.train_command import alone


def test_one_process_trains_whatever_a_shell_says_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LOCAL_RANK", "0"), ("RANK", "0"), ("WORLD_SIZE", "1"), ("PMI_SIZE", "1")):
        monkeypatch.setenv(name, value)
    alone("run.train")
    # accelerate looks for these, and for a MASTER_ADDR where it finds one.
    assert not {"LOCAL_RANK", "RANK", "WORLD_SIZE", "PMI_SIZE"} & set(os.environ)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["2", "many"])
def test_one_of_several_processes_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"run.train trains one run on one GPU; started as one of {value} processes"):
        alone("run.train")
