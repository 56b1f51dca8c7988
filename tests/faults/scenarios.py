"""The commands that faults happen to, the states that they start from, and what other commands say afterwards."""

import dataclasses
import shutil
import signal
import threading
from functools import cached_property
from pathlib import Path

from tests.faults.compare import Said, fingerprint
from tests.faults.shim import Call, Plan
from tests.faults.world import House, World

Command = tuple[str, ...]
RUN = "resource/results"


def train(name: str) -> Command:
    recipe = f"resource/recipes_toy/{name}.yaml"
    return ("run.train", "--recipe", recipe, "--data", "resource/data", "--score", "test")


def vote(split: str, *runs: str, out: str = f"{RUN}/vote") -> Command:
    return ("run.vote", *runs, "--split", split, "--results", RUN, "--out", out)


def score(name: str, *words: str) -> Command:
    return ("run.test", "--model_id", f"{RUN}/{name}", *words)


LATER = ("--data", "resource/data_later")
RUNS: Command = ("run.runs",)
ALL = ("lora", "other", "full")


def evaluate(name: str, split: str, *words: str) -> Command:
    return ("run.evaluate", name, "--split", split, "--results", RUN, *words)


def export(*runs: str, out: str = "exported") -> Command:
    return ("run.export", *runs, "--results", RUN, "--out", out)


PREPARE: Command = ("run.prepare_data", "resource/download_later", "--out", f"{RUN}/prepared")
TRY: Command = (
    *("run.train", "--recipe", "resource/recipes_toy/lora.yaml", "--data", f"{RUN}/prepared"),
    *("--limit", "4", "--epoch", "1", "--save_dir", "tried"),
)
REPRODUCE: Command = (
    *("run.reproduce", "--recipes", "resource/recipes_toy", "--data", "resource/data"),
    *("--only", "lora", "full", "--name", "toy"),
)
STATES: dict[str, tuple[str, tuple[Command, ...]]] = {
    "empty": ("", ()),
    "finished": ("empty", tuple(train(name) for name in ALL)),
    "voted": ("finished", tuple(vote(split, *ALL) for split in ("dev", "test"))),
    "prepared": ("empty", (("run.prepare_data", "resource/download", "--out", f"{RUN}/prepared"),)),
    "one": ("empty", (train("lora"),)),
}
"""Name of a state → the state that it comes from, and the commands that make it."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A command that starts in `state`. observers: what is asked right after the fault, of a command that has no whole
    state between the old one and the new one.
    """

    name: str
    state: str
    command: Command
    observers: tuple[Command, ...] = ()


SCENARIOS = {
    one.name: one
    for one in (
        Scenario("train-lora", "empty", train("lora"), (RUNS,)),
        Scenario("train-full", "empty", train("full"), (RUNS,)),
        Scenario(
            "test",
            "voted",
            score("lora", "--split", "test", *LATER),
            (evaluate("lora", "test"), vote("test", *ALL, out="voted"), export("lora"), RUNS),
        ),
        Scenario(
            "test-6",
            "voted",
            score("lora", "--split", "dev", "--orders", "6"),
            (evaluate("lora", "dev"), vote("dev", "lora", out="voted"), export("lora"), RUNS),
        ),
        Scenario(
            "vote",
            "voted",
            vote("test", "full"),
            (evaluate("vote", "test"), export("vote"), RUNS),
        ),
        Scenario("evaluate", "voted", evaluate("lora", "dev", "--json", f"{RUN}/compared.json")),
        Scenario("export", "voted", export("lora", "full", out=f"{RUN}/exported")),
        Scenario("prepare", "prepared", PREPARE, (TRY,)),
    )
}


class Scenes:
    """States, references and counted calls of a world; each made once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._scenes: dict[str, Scene] = {}
        self._lock = threading.RLock()
        self.known: dict[tuple[str, str], tuple[Said, dict[str, str]]] = {}
        """What damages.py has found out about commands on sound folders."""
        self.starts: dict[str, str | None] = {}
        self.needed: int | None = None
        self.reproduced: tuple[dict[str, str], list[Call]] | None = None

    def scene(self, name: str) -> "Scene":
        with self._lock:
            if name not in self._scenes:
                self._scenes[name] = Scene(self, SCENARIOS[name])
            return self._scenes[name]

    def state(self, name: str) -> Path:
        """A folder of results, not to be changed."""
        path = self.world.states / name
        with self._lock:
            if not path.is_dir():
                before, commands = STATES[name]
                house = self.world.house(self.state(before) if before else None)
                for command in commands:
                    done = house.run(command)
                    assert done.code == 0, f"{command}: {done.text}"
                self.keep(house, name)
        return path

    def unfinished(self, name: str) -> Path:
        """The results of the training `name`, killed when its second checkpoint was whole and its third began."""
        path = self.world.states / f"unfinished-{name}"
        with self._lock:
            if not path.is_dir():
                third = next(call for call in self.scene(f"train-{name}").calls if "/checkpoint-6" in call.path)
                house = self.world.house(self.state("empty"))
                done = house.run(train(name), Plan(at=third.number, action="before"))
                assert done.code == -signal.SIGKILL, done
                self.keep(house, path.name)
        return path

    def keep(self, house: House, name: str) -> None:
        path = self.world.states / name
        shutil.copytree(house.results, path, symlinks=True)
        house.remove()

    def house(self, state: str) -> House:
        return self.world.house(self.state(state))


class Scene:
    """A scenario without a fault."""

    def __init__(self, scenes: Scenes, scenario: Scenario) -> None:
        self.scenes, self.scenario = scenes, scenario
        self.state = scenes.state(scenario.state)
        house = scenes.world.house(self.state)
        done = house.run(scenario.command, Plan())
        assert done.code == 0, f"{scenario.command}: {done.text}"
        self.calls: list[Call] = house.calls()
        self.results = house.results
        self.expected = fingerprint(house.results)
        self.said = Said.by(done)
        self.after = {command: Said.by(house.run(command)) for command in scenario.observers}

    @cached_property
    def before(self) -> dict[Command, Said]:
        """What observers say before the command."""
        house = self.scenes.world.house(self.state)
        found = {command: Said.by(house.run(command)) for command in self.scenario.observers}
        house.remove()
        return found

    @cached_property
    def started_from(self) -> dict[str, str]:
        return fingerprint(self.state)
