"""Kills and full disks at a counted call, and files that lose what was never synced."""

import itertools
import re
import signal
from pathlib import Path

from tests.faults.compare import ACTION, Said, difference, error_line, fingerprint, leftovers
from tests.faults.scenarios import Command, Scene, Scenes
from tests.faults.shim import FAILING, Call, Plan
from tests.faults.trials import Outcome, Problem, Trial, joined, shares, spread
from tests.faults.world import Done, House

WEIGHTS = {
    "train-lora": 28,
    "train-full": 22,
    "test": 16,
    "test-6": 12,
    "vote": 10,
    "prepare": 8,
    "export": 3,
    "evaluate": 2,
}
"""Scenario → its share of the trials."""
CHANGING = re.compile(r"\.\d+\.tmp|\.tmp\w+|checkpoint-\d+|house\d+")
NAMED = re.compile(r"(python -m (run\.\w+(?: [^\s`'\"),;]+)*))")
"""A command in a message."""
OWN_WORDS = re.compile(r"scores_|predictions_|votes_|record|run\.test|run\.vote|prepare_data|data_\w+\.json|error:")
"""A line about old and new files side by side has one of these."""
REASON = re.compile(r"no space left|disk is full|full|read-only|quota|input/output|too large|room", re.IGNORECASE)


def kinds_of(calls: list[Call], how: dict[str, list[str]]) -> dict[str, list[str]]:
    """Groups of calls that are alike (the same kind of call on the same file of another checkpoint) → keys of trials.
    how: kind of call → what may be done to it.
    """
    groups: dict[str, list[str]] = {}
    for call in calls:
        for action in how.get(call.kind, []):
            path = CHANGING.sub("#", call.path)
            groups.setdefault(f"{call.kind} {path} {action}", []).append(f"{call.number}:{action}")
    return groups


def kill_trials(scenes: Scenes, count: int) -> list[Trial]:
    before = {kind: ["before"] for kind in ("rename", "create", "unlink", "sync", "truncate", "mkdir")}
    how = {**before, "write": ["half", "before"], "rename": ["before", "after"]}
    return _trials("kill", scenes, count, how)


def power_trials(scenes: Scenes, count: int) -> list[Trial]:
    after = {kind: ["empty", "half"] for kind in ("rename", "unlink", "mkdir")}
    # Of one write to the next sync little is lost but what is killed anyway; what counts is what stays unsynced.
    found = _trials("power", scenes, 10**4, after)
    lossy = [trial for trial in found if unsynced(_until(scenes, trial))]
    groups: dict[str, list[Trial]] = {}
    for trial in lossy:
        groups.setdefault(trial.scenario, []).append(trial)
    return [trial for turn in itertools.zip_longest(*groups.values()) for trial in turn if trial][:count]


def _until(scenes: Scenes, trial: Trial) -> list[Call]:
    return scenes.scene(trial.scenario).calls[: int(trial.key.split(":")[0])]


def full_trials(scenes: Scenes, count: int) -> list[Trial]:
    how: dict[str, list[str]] = {}
    for error, kinds in FAILING.items():
        for kind in kinds:
            how.setdefault(kind, []).append(f"{error}-{'once' if error == 'EIO' else 'fail'}")
    how["write"] += ["ENOSPC-short", "ENOSPC-once"]
    space = {kind: [word for word in words if "ENOSPC" in word] for kind, words in how.items()}
    other = {kind: [word for word in words if "ENOSPC" not in word] for kind, words in how.items()}
    return _trials("full", scenes, count * 2 // 3, space) + _trials("full", scenes, count - count * 2 // 3, other)


def _trials(kind: str, scenes: Scenes, count: int, how: dict[str, list[str]]) -> list[Trial]:
    found = []
    for name, share in shares(WEIGHTS, count).items():
        if share:
            keys = spread(kinds_of(scenes.scene(name).calls, how), share)
            found += [Trial(kind, name, key) for key in keys]
    return found


# Kills


def check_kill(scenes: Scenes, trial: Trial) -> Outcome:
    """Kills the command, asks others, and starts it again."""
    scene = scenes.scene(trial.scenario)
    number, action = trial.key.split(":")
    house = scenes.world.house(scene.state)
    done = house.run(scene.scenario.command, Plan(at=int(number), action=action))
    if done.code != -signal.SIGKILL:
        house.remove()
        return Outcome(trial, untried=f"not killed: {done.code}")
    problems = [*observe(scene, house), *again(scene, house)]
    house.remove()
    return Outcome(trial, joined(problems))


def check_power(scenes: Scenes, trial: Trial) -> Outcome:
    """Kills the command, and takes from files what was not synced: a power cut may leave them so."""
    scene = scenes.scene(trial.scenario)
    number, loss = trial.key.split(":")
    house = scenes.world.house(scene.state)
    done = house.run(scene.scenario.command, Plan(at=int(number), action="after"))
    lost = [path for path in unsynced(house.calls()) if path.is_file()]
    if done.code != -signal.SIGKILL or not lost:
        house.remove()
        return Outcome(trial, untried="everything was synced" if done.code == -signal.SIGKILL else "not killed")
    for path in lost:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2 if loss == "half" else 0)
    problems = [*observe(scene, house), *again(scene, house)]
    house.remove()
    return Outcome(trial, joined(problems))


def unsynced(calls: list[Call]) -> list[Path]:
    """Files that were written since they were last synced, under their present names."""
    dirty: set[str] = set()
    for call in calls:
        if call.kind in ("write", "truncate"):
            dirty.add(call.path)
        elif call.kind == "sync":
            dirty.discard(call.path)
            # safetensors renames its file by a call that the shim does not see.
            if call.path.endswith(".safetensors"):
                folder = call.path.rpartition("/")[0]
                dirty = {name for name in dirty if not name.startswith(f"{folder}/.tmp")}
        elif call.kind == "rename":
            moved = {name for name in dirty if name == call.path or name.startswith(f"{call.path}/")}
            dirty = (dirty - moved) | {call.other + name.removeprefix(call.path) for name in moved}
    found = [Path(name) for name in sorted(dirty)]
    unseen = {path.parent for path in found if path.name.startswith(".tmp")}
    return found + [path for folder in unseen if folder.is_dir() for path in sorted(folder.glob("*.safetensors"))]


def observe(scene: Scene, house: House) -> list[Problem]:
    """What other commands say of the state: all old, all new, or that it is mixed."""
    found = fingerprint(house.results)
    if found in (scene.started_from, scene.expected):
        return []
    return [problem for command in scene.scenario.observers for problem in _observed(scene, house, command)]


def _observed(scene: Scene, house: House, command: Command) -> list[Problem]:
    done = house.run(command)
    said, before, after = Said.by(done), scene.before[command], scene.after[command]
    words = f"{' '.join(command[:2])}: {done.code}, {done.text[-600:]}"
    if done.code is None:
        return [Problem("hang", words)]
    if "Traceback" in done.text:
        return [Problem("traceback", words)]
    if command[0] == "run.runs":
        return [] if done.code == 0 or error_line(done) else [Problem("mismatch", words)]
    if said in (before, after):
        return []
    if done.code != 0:
        return [] if error_line(done) else [Problem("message", words)]
    new = [line for line in said.lines if line not in before.lines and line not in after.lines]
    if any(OWN_WORDS.search(line) for line in new):
        return []
    parts = {
        "as before": [line for line in said.lines if line in before.lines and line not in after.lines],
        "as after": [line for line in said.lines if line in after.lines and line not in before.lines],
        "as neither": new,
    }
    told = "".join(f"\n{name}:\n  " + "\n  ".join(lines[:6]) for name, lines in parts.items() if lines)
    return [Problem("silent", f"old and new side by side; {' '.join(command[:2])} says{told}")]


def again(scene: Scene, house: House, attempts: int = 3) -> list[Problem]:
    """Starts the command again, and what its message names, until the result is the reference's."""
    command: Command = scene.scenario.command
    said: list[str] = []
    for _ in range(attempts):
        if fingerprint(house.results) == scene.expected and (said or not leftovers(house.results)):
            break
        done = house.run(command)
        said.append(f"{' '.join(command[:2])}: exit {done.code}: {done.text[-500:]}")
        if bad := _broken(done, said[-1]):
            return [bad]
        if done.code == 0:
            break
        message = error_line(done)
        if message is None:
            return [Problem("message", said[-1])]
        if named := NAMED.search(message):
            command = (*named[2].rstrip(".:").split(),)
    problems = []
    if differs := difference(fingerprint(house.results), scene.expected):
        problems.append(Problem("mismatch", f"after the same command: {differs}; {' / '.join(said)}"))
    if left := leftovers(house.results):
        problems.append(Problem("leftover", ", ".join(left)))
    return problems


def _broken(done: Done, words: str) -> Problem | None:
    if done.code is None:
        return Problem("hang", words)
    if "Traceback" in done.text:
        return Problem("traceback", f"{words}\n{done.err[-1500:]}")
    return None


# Full disks


def check_full(scenes: Scenes, trial: Trial) -> Outcome:
    """Has calls fail, looks at the message, and starts the command again on a sound disk."""
    scene = scenes.scene(trial.scenario)
    number, how = trial.key.split(":")
    error, action = how.split("-")
    house = scenes.world.house(scene.state)
    done = house.run(scene.scenario.command, Plan(at=int(number), action=action, error=error))
    if not house.fired():
        house.remove()
        return Outcome(trial, untried="no call failed")
    problems = full_message(scene, house, done, trial.name)
    if done.code != 0:
        problems += observe(scene, house)
    problems += again(scene, house)
    house.remove()
    return Outcome(trial, joined(problems))


def full_message(scene: Scene, house: House, done: Done, name: str) -> list[Problem]:
    """Exit code 2 and a line that says what and where; or 0 and the reference's result."""
    words = f"exit {done.code}: {done.err[-1500:]}"
    if bad := _broken(done, words):
        return [bad]
    if done.code == 0:
        differs = difference(fingerprint(house.results), scene.expected)
        return [Problem("silent", f"exit 0, but {differs}")] if differs else []
    message = error_line(done)
    if message is None:
        return [Problem("message", words)]
    lacks = []
    if not re.search(r"resource/results|vote|prepared|compared|exported", message):
        lacks.append("where")
    if not REASON.search(message):
        lacks.append("why")
    if not ACTION.search(message):
        lacks.append("what to do")
    return [Problem("message", f"lacks {', '.join(lacks)}: {message}")] if lacks else []
