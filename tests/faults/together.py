"""Two processes in one folder, a folder that goes away while it is trained, and a disk that is just large enough."""

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.compare import difference, error_line, fingerprint, leftovers
from tests.faults.kills import again
from tests.faults.scenarios import Command, Scenes, score, train, vote
from tests.faults.shim import Call, Plan
from tests.faults.trials import Outcome, Problem, Trial, joined
from tests.faults.world import Done, House, Running

PAIRS: dict[str, tuple[str, Command, Command]] = {
    "train+train": ("empty", train("lora"), train("lora")),
    "train+test": ("empty", train("lora"), score("lora", "--split", "dev")),
    "test+test": (
        "voted",
        score("lora", "--split", "dev", "--orders", "6"),
        score("lora", "--split", "test", "--orders", "6"),
    ),
    "vote+vote": ("finished", vote("dev", "lora", "full"), vote("test", "lora", "full")),
}
"""Names → the state, what is stopped half-way, and what is started meanwhile."""
POINTS = 5
PATIENCE_SECONDS = 15


def trials(scenes: Scenes) -> list[Trial]:
    found = []
    for name, (state, first, _) in PAIRS.items():
        house = scenes.house(state)
        house.run(first, Plan())
        found += [Trial("pair", name, str(number)) for number in _points(house.calls())]
        house.remove()
    calls = scenes.scene("train-lora").calls
    moments = {"early": "/adapter.part", "middle": "/checkpoint-4", "late": "/checkpoint-8", "end": "scores_dev"}
    for moment, part in moments.items():
        number = next((call.number for call in calls if part in call.path), None)
        if number:
            found += [Trial("away", "train-lora", f"{number}:{how}:{moment}") for how in ("moved", "deleted")]
    numbers = [call.number for call in calls if "trainer_state" in call.path and call.kind == "write"]
    last = next(call.number for call in calls if call.kind == "rename" and call.other.endswith("/record.json"))
    found += [Trial("disk", "train-lora", str(number + 1)) for number in [*numbers, last - 1]]
    return [*found, Trial("disk", "train-lora", "message")]


def _points(calls: Sequence[Call]) -> list[int]:
    """Moments in a command, the last ones before its records are in place among them."""
    records = [call.number for call in calls if call.kind == "rename" and call.other.endswith("/record.json")]
    step = max(1, len(calls) // POINTS)
    return sorted({*[call.number for call in calls[2::step]], *records})


# Pairs


def check_pair(scenes: Scenes, trial: Trial) -> Outcome:
    """Stops the first command at a call, starts the second, and lets both end."""
    state, first, second = PAIRS[trial.scenario]
    house = scenes.house(state)
    one = house.start(first, Plan(at=int(trial.key), action="before", signal=signal.SIGSTOP))
    if not stopped(one, house):
        one.finish()
        house.remove()
        return Outcome(trial, untried="not stopped")
    other = house.start(second)
    waited = other.wait(PATIENCE_SECONDS)
    go_on(one)
    done, answer = one.finish(), waited or other.finish()
    problems = []
    if done.code != 0:
        problems.append(Problem("mismatch", f"the first: exit {done.code}: {done.text[-800:]}"))
    problems += _answer(answer, one)
    refused = answer.code != 0
    if refused and trial.scenario == "train+train":
        commands: tuple[Command, ...] = (first,)
    else:
        commands = (first, second)
    if refused and len(commands) == 2:
        house.run(second)
    expected = scenes.house(state)
    for command in commands:
        expected.run(command)
    if differs := difference(fingerprint(house.results), fingerprint(expected.results)):
        kind = "mismatch" if refused else "silent"
        problems.append(Problem(kind, f"in the end: {differs}"))
    if left := leftovers(house.results):
        problems.append(Problem("leftover", ", ".join(left)))
    expected.remove()
    house.remove()
    return Outcome(trial, joined(problems))


def stopped(one: Running, house: House, seconds: float = 60) -> bool:
    """Waits until the process stands still at its call."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and one.poll() is None:
        if house.fired() and re.search(r"^State:\s+T", Path(f"/proc/{one.pid}/status").read_text(), re.MULTILINE):
            return True
        time.sleep(0.01)
    return False


def go_on(one: Running) -> None:
    os.kill(one.pid, signal.SIGCONT)


def _answer(done: Done, holder: Running) -> list[Problem]:
    """The second ends well, or says who holds the folder."""
    words = f"the second: exit {done.code}: {done.text[-800:]}"
    if done.code is None:
        return [Problem("hang", words)]
    if "Traceback" in done.text:
        return [Problem("traceback", words)]
    if done.code == 0:
        return []
    message = error_line(done) or ""
    told = {"process": str(holder.pid), "machine": socket.gethostname()}
    lacks = [what for what, word in told.items() if word not in message]
    # Stopped before it wrote who it is, the first has the name of the server that it is forked of.
    lacks += [] if any(word in message for word in ("run.", "tests.faults.server")) else ["command"]
    return [Problem("message", f"lacks {', '.join(lacks)}: {words}")] if lacks else []


# A folder that goes away


def check_away(scenes: Scenes, trial: Trial) -> Outcome:
    """Moves or deletes the run's folder while it is trained."""
    scene = scenes.scene(trial.scenario)
    number, how, _ = trial.key.split(":")
    house = scenes.world.house(scene.state)
    one = house.start(scene.scenario.command, Plan(at=int(number), action="before", signal=signal.SIGSTOP))
    if not stopped(one, house):
        one.finish()
        house.remove()
        return Outcome(trial, untried="not stopped")
    run, away = house.results / "lora", house.folder / "away"
    run.rename(away)
    if how == "deleted":
        shutil.rmtree(away)
    go_on(one)
    done = one.finish()
    problems = []
    words = f"exit {done.code}: {done.text[-1200:]}"
    if "Traceback" in done.text:
        problems.append(Problem("traceback", words))
    elif done.code == 0:
        problems.append(Problem("silent", f"ends as if finished; {words}"))
    elif "lora" not in (error_line(done) or ""):
        problems.append(Problem("message", words))
    if (run / "record.json").is_file():
        problems.append(Problem("silent", "a record lies in a new folder of the old name"))
    shutil.rmtree(run, ignore_errors=True)
    if how == "moved":
        away.rename(run)
    problems += again(scene, house)
    house.remove()
    return Outcome(trial, joined(problems))


# A disk that is just large enough


def check_disk(scenes: Scenes, trial: Trial) -> Outcome:
    """A run that was stopped goes on where it was allowed to start; a refusal says how much is missing."""
    scene = scenes.scene(trial.scenario)
    if trial.key == "message":
        house = scenes.world.house(scene.state)
        done = house.run(scene.scenario.command, Plan(free=4096))
        message = error_line(done)
        house.remove()
        good = message and not re.search(r"\b0(\.0)? ?(GB|MB|GiB|MiB)\b", message)
        return Outcome(trial, () if good else (Problem("message", f"exit {done.code}: {done.err[-600:]}"),))
    needed = _needed(scenes)
    house = scenes.world.house(scene.state)
    done = house.run(scene.scenario.command, Plan(at=int(trial.key), action="before"))
    held = sum(path.stat().st_size for path in house.results.rglob("*") if path.is_file())
    done = house.run(scene.scenario.command, Plan(free=needed - held + 2 * 4096))
    words = f"{held} of {needed} bytes held, and {needed - held} free: exit {done.code}: {done.text[-600:]}"
    problems = [] if done.code == 0 else [Problem("mismatch", words)]
    house.remove()
    return Outcome(trial, tuple(problems))


def _needed(scenes: Scenes) -> int:
    """The least free space, within some blocks, that the training starts with."""
    if scenes.needed is not None:
        return scenes.needed
    scene = scenes.scene("train-lora")
    begun = next(call.number for call in scene.calls if "/checkpoints" in call.path)
    low, high = 0, 1 << 32
    while high - low > 4096:
        middle = (low + high) // 2
        house = scenes.world.house(scene.state)
        done = house.run(scene.scenario.command, Plan(at=begun, action="before", free=middle))
        low, high = (low, middle) if done.code == -signal.SIGKILL else (middle, high)
        house.remove()
    scenes.needed = high
    return high
