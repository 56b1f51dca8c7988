"""A command that several ranks share, and that needs no torch of its own: tells where each rank is, in two steps.

python -m tests.console.made_ranks FOLDER [fail | wait]
"""

import os
import sys
import time
from pathlib import Path

from src.console import launch, lifeline, progress
from src.console.cli import UserError, run_main
from src.console.progress import stage
from src.files.signs import Sign
from tests.console.made_store import Files


def main() -> None:
    here, folder = launch.current(), Path(sys.argv[1])
    with stage("work", 2) as bar:
        bar.update(1)
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        told = f"{here.world} {gpu} {Sign.of_this_process().gpus} {here.port}"
        (folder / f"{here.rank}.txt").write_text(told, encoding="utf-8")
        if "fail" in sys.argv:
            while not all(path.is_file() and path.stat().st_size for path in (folder / "0.txt", folder / "1.txt")):
                time.sleep(0.05)
            raise UserError("there is no room here")
        while "wait" in sys.argv:
            time.sleep(0.1)
        time.sleep(0.3)
        bar.update(2)


if __name__ == "__main__":
    assert progress.PIPE in os.environ
    lifeline._store = lambda launch: Files(Path(sys.argv[1]))
    sys.exit(run_main(main, ranks=True))
