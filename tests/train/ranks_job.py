"""The trainings of test_ranks.py, on this rank: python -m tests.train.ranks_job FOLDER. Not a test."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from src.console.cli import run_main

WRITING = os.O_WRONLY | os.O_RDWR


def watch(folder: Path, seen: list[str]) -> None:
    """Notes what this process writes, renames and removes in `folder`."""

    def audit(event: str, given: tuple[Any, ...]) -> None:
        path = str(given[0]) if given else ""
        writes = event == "open" and isinstance(given[2], int) and given[2] & WRITING
        if path.startswith(str(folder)) and (writes or event in ("os.rename", "os.remove", "os.rmdir", "os.truncate")):
            seen.append(f"{event} {path}")

    sys.addaudithook(audit)


def main() -> None:
    import torch

    from run.test import main as score
    from run.train import main as train
    from src.model import ranks
    from tests.train import ranks_cases as cases

    folder, written = Path(sys.argv[1]), list[str]()
    watch(folder, written)
    ranks.begin(torch.device("cpu"))
    found = {name: cases.trained(name, folder) for name in cases.CASES}
    found["from 1 to 2"] = cases.trained("letters by dialogue", folder, "from 1 to 2")
    cases.interrupted(folder / "from 2 to 1")
    ranks.meet()
    train(["--epoch", "1", "--batch_size", "4", "--score", "test", *cases.words(folder, "by two")])
    score(["--model_id", str(folder / "by two"), "--split", "test", "--orders", "6", "--device", "cpu"])
    if ranks.is_first():
        assert any("adapter" in line for line in written), written
        (folder / "found.json").write_text(json.dumps(found))
    else:
        assert not written, written


if __name__ == "__main__":
    sys.exit(run_main(main, ranks=True))
