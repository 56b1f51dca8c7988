"""A command of which a rank ends as is asked for: python tests/console/failing_rank.py HOW FOLDER. Not a test.

With a FOLDER, ranks meet through files there, since loading torch would take longer than all else.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from src.console import launch, lifeline
from src.console.cli import UserError, run_main
from tests import launched

HOW, WHERE = sys.argv[1], sys.argv[2:]


class Files:
    """The part of torch's stores that a lifeline uses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, key: str) -> Path:
        return self.folder / f"store {key.replace('/', ' ')}"

    def set(self, key: str, value: str) -> None:
        fresh = self._path(f"{key} fresh")
        fresh.write_text(value)
        fresh.rename(self._path(key))

    def wait(self, keys: list[str], *given: Any) -> None:
        while not all(self._path(key).is_file() for key in keys):
            time.sleep(0.01)

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._path(key).read_bytes()


def main() -> None:
    rank = launch.current().rank
    print("rank", rank)
    print("a warning", file=sys.stderr)
    if HOW == "all":
        raise UserError("found 1, allowed 2. Give 2.")
    if HOW == "none":
        return
    kind, failing = HOW.split()
    if rank != int(failing):
        time.sleep(launched.PATIENCE)  # as if it waited for the other one
    if kind == "user":
        raise UserError("found 1, allowed 2. Give 2.")
    if kind == "bug":
        raise KeyError("what was there")
    if kind == "interrupted":
        raise KeyboardInterrupt
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if WHERE:
        lifeline._store = lambda launch: Files(Path(WHERE[0]))
    sys.exit(run_main(main, resumes=True, ranks=True))
