"""Commands as ranks that are forked from one process, which imports torch and transformers once for all of them."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests import launched
from tests.faults.world import Server


class Rank:
    """As much of a `Popen` as `launched` asks for."""

    def __init__(self, server: Server, pid: int) -> None:
        self.server, self.pid = server, pid
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self.server.ask({"poll": self.pid})
        return self.code

    def wait(self, timeout: float) -> int:
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Forks:
    """Starts ranks. To be closed."""

    def __init__(self, folder: Path) -> None:
        """folder: for the log of the process that they are forked from."""
        self.server = Server(folder, launched.environment(OMP_NUM_THREADS=1))

    def start(self, words: Sequence[str | Path], folder: Path, world: int = 2) -> list[Rank]:
        """As `launched.start`. words: a module's name and what it is given."""
        module, *given = map(str, words)
        found = []
        for environment in launched.ranks_told(world):
            request = {"module": module, "words": given, "folder": str(launched.ROOT), "plan": None}
            output = str(folder / environment["RANK"])
            pid = self.server.ask({"start": {**request, "output": output, "environment": environment}})
            found.append(Rank(self.server, pid))
        return found

    def close(self) -> None:
        self.server.close()
