"""A command of which a rank ends as is asked for: python tests/console/failing_rank.py HOW FOLDER. Not a test.

With a FOLDER, ranks meet through files there, since loading torch would take longer than all else.
"""

import os
import signal
import sys
import time
from pathlib import Path

from src.console import launch, lifeline
from src.console.cli import UserError, run_main
from tests import launched
from tests.console.made_store import Files

HOW, WHERE = sys.argv[1], sys.argv[2:]


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
