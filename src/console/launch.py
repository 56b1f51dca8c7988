"""Whether this process is one of several that a launcher (torchrun, `accelerate launch`) started for one command.

A launcher speaks through environment variables. They are read once and removed, before torch is imported: what is
started from here (compilers, loaders of data, commands) is no rank, and transformers and accelerate see one process.
All communication between ranks is ours (src/model/ranks.py), so each rank's `Trainer` runs as on one GPU.

Each rank sees the GPU of its own alone, which is its first one.
"""

import os
from collections.abc import MutableMapping
from dataclasses import dataclass

from src.console.environment import LAUNCHED, SIZES, processes
from src.console.words import counted

AGENT_STORE, ATTEMPT = "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
FSDP = "ACCELERATE_USE_FSDP"
BY_LAUNCHERS = ("TORCHELASTIC_", "ACCELERATE_", "FSDP_")
"""Beginnings of further names that torchrun and `accelerate launch` always set."""
GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Launch:
    """This process among those of its command.

    rank, world         its number, and how many there are on all hosts
    local, local_world  the same on this host
    address, port       where the ranks find each other
    agent_store         whether the launcher itself listens there; else rank 0 does
    attempt             how often the launcher has started these processes anew
    error_file          where torchrun looks for what it says of a process that failed; "" for nowhere
    fsdp                whether accelerate's settings ask for FSDP
    gpus                those of all ranks on this host, as CUDA_VISIBLE_DEVICES had them; "" where that was not set
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1
    address: str = ""
    port: int = 0
    agent_store: bool = False
    attempt: int = 0
    error_file: str = ""
    fsdp: bool = False
    gpus: str = ""

    @property
    def several(self) -> bool:
        return self.world > 1


_launch = Launch()


def current() -> Launch:
    """This process's; alone until `take` has found a launcher."""
    return _launch


def take(environment: MutableMapping[str, str] = os.environ) -> Launch:
    """Reads what a launcher of several processes has set, and removes it. ValueError says what does not fit."""
    global _launch
    if processes(environment) == 1:
        return _launch
    found = _read(environment)
    for name in [name for name in environment if name in LAUNCHED or name.startswith(BY_LAUNCHERS)]:
        del environment[name]
    visible = environment.get(GPUS)
    names = [name for name in visible.split(",") if name.strip()] if visible else []
    if names and len(names) < found.local_world:
        raise ValueError(
            f"{found.local_world} processes were started here for {counted(len(names), 'GPU')} "
            f"({GPUS}={visible}). "
            f"Start one for each GPU: --nproc_per_node {len(names)}"
        )
    if visible != "":  # "" hides all GPUs
        environment[GPUS] = names[found.local] if names else str(found.local)
    _launch = found
    return found


def _read(environment: MutableMapping[str, str]) -> Launch:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if not environment.get(name)]:
        sizes = ", ".join(f"{name}={environment[name]}" for name in SIZES if name in environment)
        raise ValueError(
            f"a launcher started several processes ({sizes}) without {', '.join(missing)}. "
            "Start them with torchrun or accelerate launch: torchrun --nproc_per_node 2 -m run.train"
        )
    try:
        rank, world, local, port = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", names[-1]))
        local_world = int(environment.get("LOCAL_WORLD_SIZE") or world)
        attempt = int(environment.get(ATTEMPT, 0))
    except ValueError as error:
        raise ValueError(f"a launcher's variables ({', '.join(names)}) are no numbers: {error}") from error
    return Launch(
        *(rank, world, local, local_world, environment["MASTER_ADDR"], port),
        agent_store=environment.get(AGENT_STORE) == "True",
        attempt=attempt,
        error_file=environment.get(ERROR_FILE, ""),
        fsdp=environment.get(FSDP, "").lower() in ("true", "1"),
        gpus=environment.get(GPUS, ""),
    )
