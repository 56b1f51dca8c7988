"""Kills of `run.reproduce`: of itself, of its child, of both; and trainings in processes of their own."""

import os
import re
import signal
import time
from pathlib import Path

from tests.faults.compare import difference, fingerprint, leftovers
from tests.faults.scenarios import REPRODUCE, Scenes, train
from tests.faults.shim import Call, Plan
from tests.faults.trials import Outcome, Problem, Trial, joined
from tests.faults.world import House

HOW = ("parent-KILL", "child-KILL", "parent-HUP", "group-KILL", "parent-TERM")
SECONDS = 2.0
"""A child may live so long after its parent."""


def trials(scenes: Scenes, count: int) -> list[Trial]:
    """Spread over the calls of the training that `run.reproduce` starts, and of itself."""
    if not count:
        return []
    calls = _reference(scenes)[1]
    trained = [call.number for call in calls if "/full/" in call.path and not call.path.endswith("log.txt")]
    parents = [call.number for call in calls if call.path.endswith("log.txt")]
    found = []
    for place in range(count):
        if place % 6 == 5 and parents:
            found.append(Trial("reproduce", "full", f"{parents[place // 6 % len(parents)]}:self-KILL"))
        else:
            number = trained[len(trained) * (2 * place + 1) // (2 * count)]
            found.append(Trial("reproduce", "full", f"{number}:{HOW[place % len(HOW)]}"))
    return found


def _reference(scenes: Scenes) -> tuple[dict[str, str], list[Call]]:
    """What an undisturbed `run.reproduce` leaves, and its calls and its children's."""
    if scenes.reproduced is None:
        house = scenes.house("one")
        done = house.run(REPRODUCE, Plan(), real=True)
        assert done.code == 0, done.text
        scenes.reproduced = fingerprint(house.results), house.calls()
        house.remove()
    return scenes.reproduced


def check(scenes: Scenes, trial: Trial) -> Outcome:
    """Sends the signal, counts who is left after two seconds, and starts the command again."""
    expected, _ = _reference(scenes)
    number, how = trial.key.split(":")
    who, word = how.split("-")
    target = {"child": "self", "self": "self"}.get(who, who)
    house = scenes.house("one")
    plan = Plan(at=int(number), action="before", signal=signal.Signals[f"SIG{word}"], target=target)
    done = house.run(REPRODUCE, plan, real=True)
    ended = time.monotonic()
    if not house.fired():
        house.remove()
        return Outcome(trial, untried="no signal was sent")
    problems = []
    while living(house) and time.monotonic() - ended < SECONDS:
        time.sleep(0.05)
    if left := living(house):
        problems.append(Problem("mismatch", f"{len(left)} children live on {SECONDS:.0f} s after it: {left}"))
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        while living(house):
            time.sleep(0.05)
    log = house.results / "full/log.txt"
    text = done.text + (log.read_text(encoding="utf-8", errors="replace") if log.is_file() else "")
    if "Traceback" in text:
        problems.append(Problem("traceback", text[-1500:]))
    if who == "child" and done.code != 1:
        problems.append(Problem("mismatch", f"a child was killed: exit {done.code}: {done.text[-500:]}"))
    more = house.run(REPRODUCE, real=True)
    if "Traceback" in more.text or more.code != 0:
        problems.append(Problem("traceback" if "Traceback" in more.text else "mismatch", f"again: {more.text[-1500:]}"))
    if differs := difference(fingerprint(house.results), expected):
        problems.append(Problem("mismatch", f"after the same command: {differs}"))
    if over := leftovers(house.results):
        problems.append(Problem("leftover", ", ".join(over)))
    house.remove()
    return Outcome(trial, joined(problems))


def living(house: House) -> list[int]:
    """Processes that work in the house's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if Path(os.readlink(entry / "cwd")) == house.folder and not _is_dead(entry):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _is_dead(entry: Path) -> bool:
    return bool(re.search(r"^State:\s+[ZX]", (entry / "status").read_text(), re.MULTILINE))


def check_same(scenes: Scenes, trial: Trial) -> Outcome:
    """A training in a process of its own leaves the bytes that the forked one does."""
    scene = scenes.scene(trial.scenario)
    house = scenes.world.house(scene.state)
    house.run(train(trial.scenario.removeprefix("train-")), real=True)
    differs = difference(fingerprint(house.results), scene.expected)
    house.remove()
    return Outcome(trial, (Problem("mismatch", differs),) if differs else ())
