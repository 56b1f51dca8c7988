"""Whole rounds in one process: train, test, vote, evaluate, over and over. What the process holds has to stay level.

    python -m tests.faults.rounds --rounds 100
    python -m tests.faults.rounds --rounds 100 --tokenizer_caches

Every round trains a toy of another kind (LoRA, QLoRA, all parameters with shared prefixes, ORPO, and one that is
stopped and goes on), scores it by one order and by six, votes with it, measures it, has a mistake refused, and removes
its folders. Memory, handles, threads, children, files and whatever is global are held after each; a line is printed
for ten. Ends with 1 when something grows after the rounds to warm up, and names it.

tokenizers 0.23 keeps the words that a tokenizer has split for as long as the thread lives, though the tokenizer is
gone: some 200 KiB per round here, two MiB for a real tokenizer at most. A command loads one or a few. So this goes
without that cache, unless --tokenizer_caches asks for it.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.held import CYCLES, Held, grown, hold, slope

COLUMNS = ("objects", "handles", "threads", "children", "cached", "log handlers", "at exit", "modules")


@dataclass(frozen=True)
class Kind:
    """What a round trains: `passes` is where it is stopped for the first time."""

    backbone: str
    recipe: dict[str, Any]
    command: str = "run.train"
    passes: int | None = None


KINDS = (
    Kind("qwen2", {"method": "lora"}),
    Kind("polar", {"method": "qlora"}),
    Kind("kogemma", {"method": "full", "share_prefixes": "on"}),
    Kind("qwen2it", {"method": "orpo"}, command="orpo.orpo_train"),
    Kind("qwen2", {"method": "lora"}, passes=6),
)
OTHERS = ("first", "second")
"""The runs that every round's run votes with."""


@contextlib.contextmanager
def place_of_its_own() -> Iterator[Path]:
    """A folder with home, temporary files and caches in it. Libraries look where these are when they are imported: the
    block comes before.
    """
    assert "torch" not in sys.modules
    with tempfile.TemporaryDirectory(prefix="rounds-") as folder:
        for name in [name for name in os.environ if name.startswith(("HF_", "XDG_", "TORCHINDUCTOR_", "TRITON_"))]:
            del os.environ[name]
        for variable, name in (("HOME", "home"), ("TMPDIR", "tmp")):
            (Path(folder) / name).mkdir()
            os.environ[variable] = str(Path(folder) / name)
        tempfile.tempdir = None
        yield Path(folder)


def drop_tokenizer_caches() -> None:
    from transformers import PreTrainedTokenizerFast

    make = PreTrainedTokenizerFast.__init__

    def without_cache(self: Any, *args: Any, **keys: Any) -> None:
        make(self, *args, **keys)
        self._tokenizer.model._resize_cache(0)

    PreTrainedTokenizerFast.__init__ = without_cache


class Rounds:
    """The place of the rounds: `data/`, `models/` with toys, `results/` with the other runs."""

    def __init__(self, folder: Path) -> None:
        import pytest

        from tests import commands, made_runs, toys

        self.folder, self.results = made_runs.make_place(folder), folder / "results"
        for short in {kind.backbone for kind in KINDS}:
            toys.save(short, folder / "models" / short)
        commands.put_runs_into(self.results, pytest.MonkeyPatch())
        for name, kind in zip(OTHERS, KINDS, strict=False):
            self._train(name, kind)

    def held(self) -> Held:
        found = {f"files in {name}": self.folder / name for name in ("data", "models", "results", "tmp", "home")}
        return hold(found)

    def round(self, number: int) -> None:
        from tests.commands import start

        kind, name, vote = KINDS[number % len(KINDS)], f"round-{number}", self.results / f"vote-{number}"
        self._train(name, kind)
        start("run.test", "--model_id", name, "--split", "test", "--device", "cpu")
        start("run.test", "--model_id", name, "--split", "dev", "--orders", "6", "--device", "cpu")
        start("run.vote", name, *OTHERS, "--split", "dev", "--out", vote)
        start("run.vote", name, "nobody", "--split", "dev", code=2)
        start("run.evaluate", name, *OTHERS, vote)
        for folder in (self.results / name, vote):
            shutil.rmtree(folder)

    def _train(self, name: str, kind: Kind) -> None:
        import pytest
        import yaml

        from tests.commands import start
        from tests.made_trainings import Killed, kill_after

        recipe = {"backbone": kind.backbone, "model_id": str(self.folder / "models" / kind.backbone), "name": name}
        recipe |= {"lr": 3e-3, "epoch": 2, "batch_size": 2, "prompt": str(self.folder / "short.yaml"), **kind.recipe}
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        words = ("--recipe", path, "--data", self.folder / "data", "--device", "cpu")
        if kind.passes is not None:
            with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
                kill_after(patch, kind.passes)
                start(kind.command, *words)
        start(kind.command, *words)


def print_line(number: int, held: Held, seconds: float) -> None:
    files = sum(count for name, count in held.counts.items() if name.startswith("files in "))
    memory = "".join(f"{held.memory[name]:10.1f}" for name in held.memory)
    print(f"{number:6}{memory}" + "".join(f"{held.counts[name]:13}" for name in COLUMNS) + f"{files:7}{seconds:9.0f}")
    sys.stdout.flush()


def go_round(rounds: Rounds, count: int, warm_up: int) -> list[Held]:
    """What was held after each round that follows those to warm up."""
    found, started = [], time.monotonic()
    print(f"{'rounds':>6}{'resident':>10}{'anonymous':>10}" + "".join(f"{name:>13}" for name in COLUMNS), end="")
    print(f"{'files':>7}{'seconds':>9}    (memory in MiB)")
    for number in range(1, count + 1):
        rounds.round(number)
        held = rounds.held()
        if number > warm_up:
            found.append(held)
        if number % 10 == 0 or number == count:
            print_line(number, held, time.monotonic() - started)
    return found


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.faults.rounds", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--warm_up", type=int, default=20, help="rounds that are not judged; default: %(default)s")
    parser.add_argument("--tokenizer_caches", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.rounds < arguments.warm_up + 2 * len(KINDS):
        parser.error(f"--rounds: at least {2 * len(KINDS)} more than --warm_up, {arguments.warm_up}")
    with place_of_its_own() as folder:
        if not arguments.tokenizer_caches:
            drop_tokenizer_caches()
        found = go_round(Rounds(folder), arguments.rounds, arguments.warm_up)
    if len(found) >= CYCLES * len(KINDS):
        for name in found[0].memory:
            line = slope([one.memory[name] for one in found], len(KINDS))
            print(f"{name} memory: {line.kib:+.1f} ± {line.error:.1f} KiB with every round")
    lines = grown(found, len(KINDS))
    print("\n".join(f"grows: {line}" for line in lines) or f"level over {len(found)} rounds")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
