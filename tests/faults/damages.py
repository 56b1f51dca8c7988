"""Files of finished and unfinished folders flipped, cut, emptied, zeroed, deleted, or replaced by another run's."""

import json
import re
import shutil
from pathlib import Path

from tests.faults.compare import ACTION, Said, difference, error_line, fingerprint, leftovers
from tests.faults.scenarios import ALL, RUNS, Command, Scenes, evaluate, export, score, train, vote
from tests.faults.trials import Outcome, Problem, Trial, joined, shares, spread
from tests.faults.world import Done, House

FLIPS = {"flip-first": 0.0, "flip-quarter": 0.25, "flip-middle": 0.5, "flip-third": 0.7, "flip-last": 1.0}
"""Where in a file one bit is flipped, as a share of its length."""
DAMAGES = ("half", "empty", "zero", "delete", "foreign", *FLIPS)
COMMANDS: dict[str, dict[str, Command]] = {
    "lora": {
        "test": score("lora", "--split", "dev", "test"),
        "vote": vote("test", *ALL, out="voted"),
        "evaluate": evaluate("lora", "dev"),
        "export": export("lora"),
        "runs": RUNS,
    },
    "full": {"test": score("full", "--split", "dev", "test"), "evaluate": evaluate("full", "test")},
    "vote": {
        "evaluate": evaluate("vote", "test"),
        "export": export("vote"),
        "vote": vote("test", *ALL),
        "runs": RUNS,
    },
}
"""Folder of the state `voted` → what is asked of it once a file in it is damaged."""
OTHERS = {"lora": "other", "full": "lora", "vote": "lora"}
"""Where a foreign file comes from: a whole one of the same name, of another run."""
WEIGHTS = {"unfinished-lora": 28, "unfinished-full": 22, "lora": 32, "vote": 10, "full": 8}
TOLD = re.compile(r"damaged|cut off|broken|whole|missing|gone|chang|differ|other|set aside|unlike|start")
"""A line about damage has one of these."""
READERS = {"checkpoints": ("train",), "adapter": ("train", "test"), "model": ("train", "test")}
"""Folder in a run → the commands that read it."""
EXEMPT = ("log.txt", "README.md")
"""Nothing reads these."""


def trials(scenes: Scenes, count: int) -> list[Trial]:
    found = []
    for name, share in shares(WEIGHTS, count).items():
        state, folder, commands = _place(scenes, name)
        groups: dict[str, list[str]] = {}
        for path in sorted((state / folder).rglob("*")):
            if path.is_file() and path.name not in EXEMPT:
                file = str(path.relative_to(state / folder))
                for word in commands:
                    # Few commands read checkpoints and weights; what they leave alone is tried less often.
                    alike = file if word in READERS.get(file.split("/")[0], commands) else file.split("/")[0]
                    group = groups.setdefault(f"{alike} {word}", [])
                    group += [f"{file}:{damage}:{word}" for damage in DAMAGES]
        found += [Trial("damage", name, key) for key in spread(groups, share)]
    return found


def _place(scenes: Scenes, name: str) -> tuple[Path, str, dict[str, Command]]:
    """(state, folder in it, commands) of a row of the table."""
    if name.startswith("unfinished-"):
        run = name.removeprefix("unfinished-")
        return scenes.unfinished(run), run, {"train": train(run)}
    return scenes.state("voted"), name, COMMANDS[name]


def check(scenes: Scenes, trial: Trial) -> Outcome:
    """Damages a file, and starts a command that may read it."""
    state, folder, commands = _place(scenes, trial.scenario)
    file, damage, word = trial.key.split(":")
    house = scenes.world.house(state)
    path = house.results / folder / file
    if not harm(path, damage, _foreign(scenes.state("voted") / OTHERS[folder], file)):
        house.remove()
        return Outcome(trial, untried="this damage changes nothing here")
    done = house.run(commands[word])
    judge = _judge_training if trial.scenario.startswith("unfinished-") else _judge
    problems = list(_ended(done, path))
    if not problems and done.code == 0:
        problems = judge(scenes, trial, house, done)
    house.remove()
    return Outcome(trial, joined(problems))


def _foreign(run: Path, file: str) -> Path:
    """The file in another run; of a checkpoint, in the one that the run has."""
    return next(iter(run.glob(re.sub(r"checkpoint-\d+", "checkpoint-*", file))), run / file)


def harm(path: Path, damage: str, foreign: Path) -> bool:
    """Whether it has changed the file."""
    data = path.read_bytes()
    if damage == "delete":
        path.unlink()
        return True
    if damage == "foreign":
        new = foreign.read_bytes() if foreign.is_file() else data
    elif damage in FLIPS:
        place = min(int(len(data) * FLIPS[damage]), len(data) - 1)
        new = data[:place] + bytes([data[place] ^ (1 << place % 6)]) + data[place + 1 :] if data else data
    else:
        new = {"half": data[: len(data) // 2], "empty": b"", "zero": bytes(len(data))}[damage]
    path.write_bytes(new)
    return new != data


def _ended(done: Done, path: Path) -> list[Problem]:
    """What is wrong with how the command ended."""
    words = f"exit {done.code}: {done.text[-1500:]}"
    if done.code is None:
        return [Problem("hang", words)]
    if "Traceback" in done.text:
        return [Problem("traceback", words)]
    if done.code == 0:
        return []
    message = error_line(done)
    if message is None:
        return [Problem("message", words)]
    lacks = [] if path.name in message else [f"the name {path.name}"]
    lacks += [] if ACTION.search(message) else ["what to do"]
    return [Problem("message", f"lacks {', '.join(lacks)}: {message}")] if lacks else []


def _is_told(text: str, file: str) -> bool:
    """Whether a line names the file, or the checkpoint or the weights that it is a part of."""
    names = {Path(file).name, *(part for part in Path(file).parts if re.match(r"checkpoint-", part))}
    return any(TOLD.search(line) and any(name in line for name in names) for line in text.splitlines())


def _judge(scenes: Scenes, trial: Trial, house: House, done: Done) -> list[Problem]:
    """Exit code 0 on a finished folder: the same words and files as without the damage."""
    folder = _place(scenes, trial.scenario)[1]
    file, _, word = trial.key.split(":")
    sound = _sound(scenes, trial.scenario, word)
    mine = f"{folder}/{file}"
    found = {name: digest for name, digest in _everything(house).items() if name != mine}
    expected = {name: digest for name, digest in sound[1].items() if name != mine}
    lost = [line for line in sound[0].lines if line not in Said.by(done).lines]
    differs = "; ".join(filter(None, [difference(found, expected), *(f"not said: {line}" for line in lost[:3])]))
    if not differs:
        return []
    told = _is_told(done.text, file)
    if told and word in ("runs",):  # its rows say what each run is
        return []
    return [Problem("mismatch" if told else "silent", f"exit 0, but {differs}; {done.text[-700:]}")]


def _everything(house: House) -> dict[str, str]:
    found = fingerprint(house.results)
    for place in ("voted", "exported"):
        if (house.folder / place).is_dir():
            found |= {f"{place}/{name}": digest for name, digest in fingerprint(house.folder / place).items()}
    return found


def _sound(scenes: Scenes, name: str, word: str) -> tuple[Said, dict[str, str]]:
    """What a command says and leaves without damage."""
    known = scenes.known
    if (name, word) not in known:
        state, _, commands = _place(scenes, name)
        house = scenes.world.house(state)
        done = house.run(commands[word])
        assert done.code == 0, done.text
        known[name, word] = Said.by(done), _everything(house)
        house.remove()
    return known[name, word]


def _judge_training(scenes: Scenes, trial: Trial, house: House, done: Done) -> list[Problem]:
    """Exit code 0 on an unfinished folder: the reference's result, and a word where it went on from another state."""
    file = trial.key.split(":")[0]
    _, folder, _ = _place(scenes, trial.scenario)
    expected = scenes.scene(f"train-{folder}").expected
    told = _is_told(done.text, file)
    found = fingerprint(house.results)
    more = {name for name in found.keys() - expected.keys()} if told else set()  # what was set aside
    problems = []
    if differs := difference({name: one for name, one in found.items() if name not in more}, expected):
        problems.append(Problem("mismatch" if told else "silent", f"exit 0, but {differs}; {done.text[-700:]}"))
    if left := leftovers(house.results):
        problems.append(Problem("leftover", ", ".join(left)))
    if not told and _resumed(house.results / folder) != _sound_start(scenes, folder):
        problems.append(Problem("silent", f"begun from another state, and not said; {done.text[-700:]}"))
    return problems


def _resumed(run: Path) -> str | None:
    return json.loads((run / "record.json").read_text(encoding="utf-8"))["training"]["resumed_from"]


def _sound_start(scenes: Scenes, folder: str) -> str | None:
    """The checkpoint that an unfinished run goes on from when nothing is damaged."""
    known = scenes.starts
    if folder not in known:
        house = scenes.world.house(scenes.unfinished(folder))
        done = house.run(train(folder))
        assert done.code == 0, done.text
        known[folder] = _resumed(house.results / folder)
        shutil.rmtree(house.folder)
    return known[folder]
