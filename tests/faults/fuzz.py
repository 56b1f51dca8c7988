"""Reads many files that are nearly sound with every reader, and prints a table of what went wrong.

    python -m tests.faults.fuzz --inputs 300000
    python -m tests.faults.fuzz --inputs 20000 --only prompt zip --seed 7 --keep /tmp/found

A reader may raise UserError only. Each reader has a process of its own, so its memory is its own. The exit code is 1
where an exception was another, or a bound was exceeded.
"""

import argparse
import contextlib
import io
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from src.console.cli import UserError
from tests.faults.fuzz_readers import READERS

MOST_SECONDS, MOST_MB = 2.0, 300.0


@dataclass
class Tried:
    """What happened to one reader. seconds: of computing, for the slowest input; mb: by which its process grew."""

    reader: str
    inputs: int = 0
    refused: int = 0
    foreign: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: int = 0
    mb: float = 0.0


def try_reader(name: str, seeds: range, keep: Path | None = None) -> Tried:
    """Reads one input for each seed; `keep` gets the trace of the first of each foreign exception."""
    found = Tried(name)
    before = _peak_mb()
    with tempfile.TemporaryDirectory() as place:
        for seed in seeds:
            folder = Path(place) / "one"
            folder.mkdir()
            started = time.thread_time()
            found.inputs += 1
            with contextlib.redirect_stdout(io.StringIO()):
                try:
                    READERS[name](random.Random(f"{name} {seed}").randrange, folder)
                except UserError:
                    found.refused += 1
                except Exception as error:
                    line = traceback.extract_tb(error.__traceback__)[-1]
                    kind = f"{type(error).__name__} in {Path(line.filename).name}:{line.lineno}"
                    if keep and kind not in found.foreign:
                        keep.mkdir(parents=True, exist_ok=True)
                        (keep / f"{name}-{seed}.txt").write_text(traceback.format_exc(), "utf-8", "backslashreplace")
                    found.foreign[kind] += 1
            taken = time.thread_time() - started
            if taken > found.seconds:
                found.seconds, found.slowest = taken, seed
            shutil.rmtree(folder)
    found.mb = _peak_mb() - before
    return found


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000, help="over all readers together")
    parser.add_argument("--only", nargs="+", default=list(READERS), choices=list(READERS), help="only these readers")
    parser.add_argument("--seed", type=int, default=0, help="of the first input; each input has its own")
    parser.add_argument("--keep", type=Path, help="folder for the traces of foreign exceptions")
    arguments = parser.parse_args()
    each = -(-arguments.inputs // len(arguments.only))
    seeds = range(arguments.seed, arguments.seed + each)
    failed = False
    total: Counter[str] = Counter()
    print(f"{'reader':<16}{'inputs':>9}{'refused':>9}{'foreign':>9}{'slowest s':>11}{'MB':>7}", flush=True)
    for name in arguments.only:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            found = pool.submit(try_reader, name, seeds, arguments.keep).result()  # an error when the process dies
        foreign = found.foreign.total()
        total.update(inputs=found.inputs, refused=found.refused, foreign=foreign)
        print(
            f"{name:<16}{found.inputs:>9}{found.refused:>9}{foreign:>9}{found.seconds:>11.2f}{found.mb:>7.0f}",
            flush=True,
        )
        for kind, count in found.foreign.most_common():
            print(f"    {count} × {kind}", flush=True)
        if found.seconds > MOST_SECONDS:
            print(f"    the input of seed {found.slowest} is too slow", flush=True)
        failed |= foreign > 0 or found.seconds > MOST_SECONDS or found.mb > MOST_MB
    print(f"{'together':<16}{total['inputs']:>9}{total['refused']:>9}{total['foreign']:>9}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
