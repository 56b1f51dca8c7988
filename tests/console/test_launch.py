import pytest

from src.console import launch
from src.console.launch import Launch, current, take


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_launch", Launch())


def launched(**changes: str) -> dict[str, str]:
    """What torchrun tells the fourth of four processes on two hosts, and what else is there."""
    told = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29500"}
    torchrun = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "1"}
    return {"HOME": "/home/kim", "MASTER_ADDR": "host0", **told, **torchrun, **changes}


def test_a_rank_knows_the_others_and_its_children_do_not() -> None:
    environment = launched(TORCHELASTIC_RESTART_COUNT="2", TORCHELASTIC_ERROR_FILE="/tmp/error.json")
    found = take(environment)
    assert found == Launch(3, 4, 1, 2, "host0", 29500, True, 2, "/tmp/error.json") and found.several
    assert environment == {"HOME": "/home/kim", "CUDA_VISIBLE_DEVICES": "1"} and current() == found
    assert take(environment) == found, "a second look finds the same"


def test_a_process_alone_stays_as_it_is() -> None:
    environment = {"HOME": "/home/kim", "WORLD_SIZE": "1", "RANK": "0", "CUDA_VISIBLE_DEVICES": "4,5"}
    before = dict(environment)
    assert not take(environment).several and environment == before


@pytest.mark.parametrize(
    ("visible", "own"), [({}, "1"), ({"CUDA_VISIBLE_DEVICES": "4,7,9"}, "7"), ({"CUDA_VISIBLE_DEVICES": ""}, "")]
)
def test_each_rank_sees_its_own_gpu(visible: dict[str, str], own: str) -> None:
    environment = launched(**visible)
    take(environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == own


def test_accelerate_tells_whether_it_is_fsdp() -> None:
    environment = launched(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", ACCELERATE_MIXED_PRECISION="no")
    assert take(environment).fsdp and not any(name.startswith(("ACCELERATE", "FSDP")) for name in environment)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MASTER_ADDR": ""}, "(WORLD_SIZE=4) without MASTER_ADDR"),
        ({"RANK": "first"}, "no numbers"),
        ({"CUDA_VISIBLE_DEVICES": "4"}, "2 processes were started here for 1 GPU "),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        take(launched(**changes))
    assert words in str(caught.value)
