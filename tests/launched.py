"""Commands as two ranks, as torchrun starts them; without it, since it takes as long to load as what is tested."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).parents[1]
PATIENCE = 300.0


def environment(**told: object) -> dict[str, str]:
    """This process's, in which the project is found from any folder."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places), **{name: str(value) for name, value in told.items()}}


class Rank(Protocol):
    """A process."""

    def wait(self, timeout: float) -> int: ...

    def kill(self) -> None: ...


def ranks_told(world: int) -> list[dict[str, str]]:
    """What torchrun would tell each of `world` ranks in its environment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    told = [{"RANK": rank, "LOCAL_RANK": rank, **shared, "OMP_NUM_THREADS": 1} for rank in range(world)]
    return [{name: str(value) for name, value in one.items()} for one in told]


def start(words: Sequence[str | Path], folder: Path, world: int = 2) -> list["subprocess.Popen[bytes]"]:
    """The ranks of `python words…`; what each prints goes to `folder`."""
    found = []
    for rank, told in enumerate(ranks_told(world)):
        with open(folder / f"{rank}.out", "wb") as out, open(folder / f"{rank}.err", "wb") as err:
            command = [sys.executable, *map(str, words)]
            found.append(subprocess.Popen(command, env=environment(**told), cwd=ROOT, stdout=out, stderr=err))
    return found


def end(ranks: Sequence[Rank], patience: float = PATIENCE) -> list[int]:
    """Their exit codes. patience: in seconds; who takes longer is killed."""
    until = time.monotonic() + patience
    try:
        return [rank.wait(max(0.0, until - time.monotonic())) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def said(folder: Path, rank: int) -> tuple[str, str]:
    """(stdout, stderr) of a rank."""
    out, err = ((folder / f"{rank}.{end}").read_text(encoding="utf-8") for end in ("out", "err"))
    return out, err


def run(
    words: Sequence[str | Path],
    folder: Path,
    code: int = 0,
    patience: float = PATIENCE,
    start: Callable[[Sequence[str | Path], Path], Sequence[Rank]] = start,
) -> tuple[str, str]:
    """What rank 0 prints. All ranks have to end with `code`, and the others have to be quiet."""
    codes = end(start(words, folder), patience)
    told = "\n".join(f"rank {rank}: {said(folder, rank)}" for rank in range(len(codes)))
    assert codes == [code] * len(codes), told
    assert all(said(folder, rank) == ("", "") for rank in range(1, len(codes))), told
    return said(folder, 0)
