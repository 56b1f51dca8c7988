"""A command that stands in for a training: `python -m tests.engines.made_run FOLDER STEPS SECONDS [failure]`.

It locks the run folder, gives signs of life, goes on from its checkpoint, and notes each start and each step.
"""

import os
import sys
import time
from pathlib import Path

from src.console import progress
from src.console.cli import UserError, run_main
from src.files import signs
from src.files.locks import lock_folder


def main() -> None:
    folder, steps, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    signs.EVERY = 0.05
    with lock_folder(folder), signs.signs_of_life(folder):
        with (folder / "starts.txt").open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {os.getppid()}\n")
        checkpoint = folder / "checkpoint.txt"
        done = int(checkpoint.read_text()) if checkpoint.is_file() else 0
        with progress.stage("train", steps) as bar:
            bar.begin(done, steps)
            for step in range(done + 1, steps + 1):
                time.sleep(seconds)
                checkpoint.write_text(str(step), encoding="utf-8")
                bar.update(step)
        if len(sys.argv) > 4:
            raise UserError(sys.argv[4])
        (folder / "done.txt").write_text(os.environ.get(signs.ENGINE, ""), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_main(main, resumes=True))
