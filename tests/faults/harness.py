"""Kills, fills and damages what the commands write, and prints how often that went wrong.

    python -m tests.faults.harness --kills 300 --full 100 --damages 400
    python -m tests.faults.harness --kills 40 --only train-lora test --jobs 2
    python -m tests.faults.harness --repeat kill:train-lora:147:before

A trial is one command on a toy corpus and a toy model, and one fault in it:

    kill       SIGKILL at a call that changes a file (half a write done, or before the call; after it for renames)
    power      the same, and files that were not synced by then lose all or half of their data
    full       a call fails as on a full disk, from then on or once; and read-only, over quota, a failing device
    damage     a file of a finished or unfinished folder flipped, cut, emptied, zeroed, deleted, or of another run
    pair       two processes in one folder, the first stopped half-way
    away       the folder of a training is moved or deleted meanwhile
    disk       a stopped run goes on where the disk has just the room that it asked for
    reproduce  `run.reproduce`, its child, or both killed, in processes of their own
    same       a training in a process of its own leaves the same bytes

The table has a row for each kind and command: `tried` counts faults that happened, `failed` trials with any problem,
and the other columns trials with a problem of that kind (trials.py says what they mean). Each failed trial is told in
FAILURES.txt in --work, with the command that repeats it alone. The exit code is 1 when anything failed.

After a kill or a full disk other commands are asked what they see, and the same command is started again: in the end
every file has to be the same, byte for byte, as without the fault, but for times in the record. A command on a damaged
folder has to give the same result, or to end with exit code 2 and one line that names the file.

The shim (shim.c) does not see one call: safetensors renames its finished file by a system call of its own. The calls
before and after it are seen.
"""

import argparse
import collections
import concurrent.futures
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults import children, damages, kills, together
from tests.faults.scenarios import Scenes
from tests.faults.shim import compiler
from tests.faults.trials import PROBLEMS, Outcome, Trial
from tests.faults.world import World

CHECKS: dict[str, Callable[[Scenes, Trial], Outcome]] = {
    "kill": kills.check_kill,
    "power": kills.check_power,
    "full": kills.check_full,
    "damage": damages.check,
    "pair": together.check_pair,
    "away": together.check_away,
    "disk": together.check_disk,
    "reproduce": children.check,
    "same": children.check_same,
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (("kills", 0), ("power", None), ("full", 0), ("damages", 0), ("reproduce", None)):
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N", help="trials of this kind")
    parser.add_argument("--together", action=argparse.BooleanOptionalAction, help="pairs, moved folders, small disks")
    parser.add_argument("--only", nargs="+", default=[], metavar="SCENARIO", help="only these rows of the table")
    parser.add_argument("--repeat", nargs="+", default=[], metavar="TRIAL", help="these trials alone, with all details")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="new folder to work in (default: a temporary one, then removed)")
    arguments = parser.parse_args(argv)
    if arguments.work and arguments.work.exists():
        parser.error(f"--work {arguments.work}: is there already; give a new folder")
    # The long form, which asks for kills, has the kinds beside them, too.
    long = arguments.kills >= 100
    arguments.power = (40 if long else 0) if arguments.power is None else arguments.power
    arguments.reproduce = (15 if long else 0) if arguments.reproduce is None else arguments.reproduce
    arguments.together = long if arguments.together is None else arguments.together
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    if compiler() is None:
        print("no C compiler here (cc): the shim cannot be made")
        return 1
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        work = arguments.work or Path(temporary) / "work"
        world = World(work)
        try:
            scenes = Scenes(world)
            trials = [parse_trial(name) for name in arguments.repeat] or plan(scenes, arguments)
            outcomes = try_all(scenes, trials, arguments.jobs)
            report = failures(outcomes)
            (work / "FAILURES.txt").write_text(report, encoding="utf-8")
            print(report if arguments.repeat or not arguments.work else f"details: {work / 'FAILURES.txt'}")
            print(table(outcomes))
        finally:
            world.close()
    return 1 if any(outcome.problems for outcome in outcomes) else 0


def parse_trial(name: str) -> Trial:
    kind, scenario, key = name.split(":", 2)
    return Trial(kind, scenario, key)


def plan(scenes: Scenes, arguments: argparse.Namespace) -> list[Trial]:
    """The same trials for the same numbers."""
    found = kills.kill_trials(scenes, arguments.kills)
    found += kills.power_trials(scenes, arguments.power)
    found += kills.full_trials(scenes, arguments.full)
    found += damages.trials(scenes, arguments.damages) if arguments.damages else []
    if arguments.together:
        found += [*together.trials(scenes), Trial("same", "train-lora", ""), Trial("same", "train-full", "")]
    found += children.trials(scenes, arguments.reproduce)
    return [trial for trial in found if not arguments.only or trial.scenario in arguments.only]


def try_all(scenes: Scenes, trials: Sequence[Trial], jobs: int) -> list[Outcome]:
    """In the order of `trials`; progress goes to stderr."""
    started, done, failed = time.monotonic(), 0, 0

    def attempt(trial: Trial) -> Outcome:
        nonlocal done, failed
        outcome = CHECKS[trial.kind](scenes, trial)
        done += 1
        failed += bool(outcome.problems)
        if sys.stderr.isatty() or done % 25 == 0:
            seconds = time.monotonic() - started
            print(f"{done} of {len(trials)} trials, {failed} failed, {seconds:.0f} s", file=sys.stderr, flush=True)
        return outcome

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(attempt, trials))


def table(outcomes: Sequence[Outcome]) -> str:
    """A row for each kind and scenario, and the sum."""
    rows: dict[str, collections.Counter[str]] = {}
    for outcome in outcomes:
        if outcome.untried:
            continue
        counted = {"tried": 1, "failed": int(bool(outcome.problems))}
        counted |= {kind: 1 for kind in {problem.kind for problem in outcome.problems}}
        for name in (f"{outcome.trial.kind} {outcome.trial.scenario}", "all"):
            rows.setdefault(name, collections.Counter()).update(counted)
    columns = ("tried", "failed", *PROBLEMS)
    lines = [f"{'':24}" + "".join(f"{column:>11}" for column in columns)]
    for name in [*(name for name in rows if name != "all"), *(["all"] if rows else [])]:
        lines.append(f"{name:24}" + "".join(f"{rows[name][column] or '–':>11}" for column in columns))
    return "\n".join(lines)


def failures(outcomes: Sequence[Outcome]) -> str:
    """What each failed trial did, and the command that repeats it."""
    parts = []
    for outcome in outcomes:
        for problem in outcome.problems:
            parts.append(f"{problem.kind}: {outcome.trial.name}\n    {problem.words.strip()}".replace("\n", "\n    "))
        if outcome.problems:
            parts.append(f"    repeat: python -m tests.faults.harness --repeat {outcome.trial.name}\n")
    untried = [f"not tried: {outcome.trial.name} ({outcome.untried})" for outcome in outcomes if outcome.untried]
    return "\n".join([*parts, *untried])


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
