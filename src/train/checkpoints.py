"""Checkpoints of a training: what makes one whole, which one a stopped run goes on from, and which are deleted.

A checkpoint is sealed (src/files/sealed.py) once all its files are on the disk. Its seal says what the run was begun
with, so the checkpoint alone is enough to go on from. No file of it is unpickled: states are loaded as plain data.

Needs no torch, until a checkpoint's states are read.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.console.cli import UserError
from src.files.digests import files_in
from src.files.locks import Held
from src.files.paths import CHECKPOINTS
from src.files.reading import read_text
from src.files.sealed import SEAL, Broken, check_seal, read_seal, seal

STATES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
LOG = "trainer_state.json"
PICKLED_ARGUMENTS = "training_args.bin"
"""What `Trainer` writes beside the states. It can be read only by running what stands in it, so it is not kept."""
NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Place:
    """Where a training keeps what it has.

    begun      what the run was begun with, as JSON; each checkpoint has it
    report_to  other tools that are told of the training as it goes on (src/train/reports.py)
    """

    held: Held
    begun: Mapping[str, Any] = field(default_factory=dict)
    report_to: Sequence[str] = ()

    @classmethod
    def at(cls, folder: Path, begun: Mapping[str, Any] | None = None, report_to: Sequence[str] = ()) -> "Place":
        return cls(Held.of(folder), begun or {}, report_to)

    @property
    def folder(self) -> Path:
        return self.held.folder

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    step       optimizer steps that were done
    optimizer  whose moments it has, as in a recipe
    best       step of the best evaluation so far
    weights    name of the folder that has the weights of that evaluation, beside `checkpoints`
    rebuilt    whether these weights are damaged or gone there, and are those of this checkpoint
    begun      as in `Place`
    """

    folder: Path
    step: int
    optimizer: str
    best: int
    weights: str
    rebuilt: bool
    begun: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """The checkpoint that a run goes on from; None when it begins from the start. broken: a line for each checkpoint
    that cannot be used.
    """

    checkpoint: Checkpoint | None
    broken: Sequence[str] = ()

    def lines(self) -> list[str]:
        """What the user should know."""
        onward = f"going on from {self.checkpoint.folder}" if self.checkpoint else "training begins from the start"
        return [f"{line}; {onward}" for line in self.broken]


def find_checkpoint(folder: Path) -> Found:
    """The newest whole checkpoint of the unfinished run in `folder`."""
    broken: list[str] = []
    for path in _newest_first(folder / CHECKPOINTS):
        try:
            return Found(_read(folder, path), broken)
        except Broken as error:
            broken.append(f"{path} cannot be used: {error}")
    return Found(None, broken)


def of_older_version(folder: Path) -> Path | None:
    """A checkpoint that an older version of this repository wrote whole: it has no seal, and says only in a pickle how
    it was made.
    """
    whole = (path for path in _newest_first(folder / CHECKPOINTS) if not (path / SEAL).exists())
    return next((path for path in whole if (path / LOG).is_file() and (path / PICKLED_ARGUMENTS).is_file()), None)


def _newest_first(checkpoints: Path) -> list[Path]:
    """By their steps; clocks can jump."""
    found = [(int(name[1]), path) for path in checkpoints.glob("*") if (name := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True) if path.is_dir()]


def _read(folder: Path, path: Path) -> Checkpoint:
    """`Broken` unless the checkpoint is whole, and the best weights are, too, or can be made from it."""
    made = check_seal(path, f"check {path.name}")
    names = [*STATES, LOG]
    if foreign := sorted({*files_in(path)} - {SEAL, *read_seal(path)[1]}):
        raise Broken(f"it holds {', '.join(foreign)}, which is no file of it")
    if missing := [name for name in names if not (path / name).is_file()]:
        raise Broken(f"it has no {', '.join(missing)}")
    try:
        step, best = int(made["step"]), int(made["best"])
        optimizer, weights, begun = str(made["optimizer"]), str(made["weights"]), dict(made["begun"])
        # A diverged loss stands there as NaN, which other readers of JSON refuse.
        log = json.loads(read_text(path / LOG))
        steps = [entry["step"] for entry in log["log_history"] if "eval_accuracy" in entry]
        if log["global_step"] != step or best not in steps or Path(weights).name != weights:
            raise ValueError("its parts do not fit together")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Broken(f"it is no checkpoint of a training ({error})") from error
    lost = _lost(folder / weights, best)
    if lost and best != step:
        raise Broken(f"the best weights so far, in {folder / weights}, are lost: {lost}")
    return Checkpoint(path, step, optimizer, best, weights, bool(lost), begun)


def _lost(weights: Path, best: int) -> str:
    """Why a folder does not hold the weights of the evaluation after step `best`; "" when it does."""
    try:
        made = check_seal(weights, f"check {weights.name}")
    except Broken as error:
        return str(error)
    return "" if made.get("step") == best else f"they are of step {made.get('step')}, not of {best}"


def settle(place: Place, made: Mapping[str, Any]) -> Path:
    """Seals the checkpoint of `made["step"]`, and returns its folder."""
    path = place.checkpoints / f"checkpoint-{made['step']}"
    (path / PICKLED_ARGUMENTS).unlink(missing_ok=True)
    seal(path, {**made, "begun": place.begun})
    return path


def remove_others(kept: Path) -> None:
    """Removes all checkpoints but the newest, whatever their times are."""
    for path in _newest_first(kept.parent):
        if path != kept:
            remove(path)


def remove(path: Path) -> None:
    """Removes a folder; of a link to one, the link only."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def refuse_unreadable(checkpoint: Path) -> None:
    """`Broken` when a state of a checkpoint is no plain data: it is never unpickled."""
    import torch
    from transformers.trainer_pt_utils import safe_globals

    for name in STATES:
        try:
            with safe_globals():
                torch.load(checkpoint / name, weights_only=True, map_location="cpu", mmap=name == STATES[0])
        except Exception as error:  # a damaged or hostile pickle can raise anything
            told = (str(error).splitlines() or [""])[0][:200]
            raise Broken(f"{name} cannot be read as plain data ({type(error).__name__}: {told})") from error


def refuse_foreign(folder: Path, error: Exception) -> UserError:
    """The message for a whole checkpoint that this version's libraries cannot load."""
    told = (str(error).splitlines() or [type(error).__name__])[0][:300]
    return UserError(
        f"{folder} cannot be loaded ({told}). Use the versions that wrote it, "
        f"or delete {folder.parent} to train from the start."
    )
