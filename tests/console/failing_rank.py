"""A command whose rank 1 fails in the way that is asked for: python tests/console/failing_rank.py HOW. Not a test."""

import sys
import time

from src.console import launch
from src.console.cli import UserError, run_main
from tests import launched


def main() -> None:
    print("rank", launch.current().rank)
    how = sys.argv[1]
    if how == "all":
        raise UserError("found 1, allowed 2. Give 2.")
    if launch.current().rank == 0:
        time.sleep(launched.PATIENCE)  # as if it waited for the other one
    if how == "user":
        raise UserError("found 1, allowed 2. Give 2.")
    if how == "bug":
        raise KeyError("what was there")
    if how == "interrupted":
        raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(run_main(main, resumes=True, ranks=True))
