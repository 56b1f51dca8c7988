"""What each job of a list does now, told from the files in its folder: its record, its lock and its last sign of life.

Nobody is asked, so this works from any terminal that sees the folders, whatever engine placed the jobs. What a file
cannot tell is called unknown.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.console.cli import UserError
from src.console.words import counted
from src.data import sha256, split_path
from src.files.locks import holder
from src.files.paths import RECIPE, predictions_path, record_path, scores_path
from src.files.signs import FAILED, QUIET, RUNNING, STARTING, STOPPED, Sign, read_sign
from src.model.recipes import differing_settings
from src.plan.work import Wanted
from src.runs.record import Record

if TYPE_CHECKING:
    from rich.console import RenderableType

DONE, WAITING, UNKNOWN = "done", "waiting", "unknown"
STATES = (DONE, RUNNING, WAITING, FAILED, STOPPED, UNKNOWN)
COLOURS = {DONE: "green", RUNNING: "cyan", FAILED: "red", STOPPED: "yellow", UNKNOWN: "yellow"}
LOST = 9 * QUIET
"""Seconds without a sign from another host after which nobody can say from here whether its process lives."""
LOOKS = 3
"""How often a folder is looked at again that changes meanwhile."""
SKEW = 5.0
"""Seconds that a sign may come from the future before clocks are called different."""


@dataclass(frozen=True)
class Standing:
    """One job now.

    state    done, running, waiting, failed, stopped or unknown
    why      of a failure, a stop, a wait or what is unknown; of a running one, what it does beside its stage
    stage    what its process does, `done` of `total`; left: seconds to the end of the stage
    age      seconds since the last sign of life; still: since `done` last grew. None without a sign
    engine   local, ray, slurm or by hand; host, pid, gpus, job: where it is or was at work
    seconds  that a finished run took
    """

    run: str
    state: str
    why: str = ""
    stage: str = ""
    done: int = 0
    total: int = 0
    left: float | None = None
    age: float | None = None
    still: float | None = None
    engine: str = ""
    host: str = ""
    pid: int = 0
    gpus: str = ""
    job: str = ""
    seconds: float | None = None


def standings(wanted: Sequence[Wanted], controlled: bool, queued: Mapping[str, str] | None = None) -> list[Standing]:
    """One for each run. controlled: whether a command is at work that starts what waits. queued: name of a run that a
    scheduler will start → in its words.
    """
    digest = functools.cache(sha256)
    return [_standing(one, controlled, (queued or {}).get(one.name, ""), digest) for one in wanted]


def _standing(wanted: Wanted, controlled: bool, queued: str, digest: Any) -> Standing:
    for _ in range(LOOKS):
        try:
            sign: Sign | None = read_sign(wanted.folder)
            damaged = ""
        except ValueError as error:
            sign, damaged = None, str(error)
        found = _judged(wanted, sign, damaged, controlled, queued, digest)
        if found.state in (DONE, RUNNING, WAITING) or damaged:
            break
        try:
            if read_sign(wanted.folder) == sign:
                break
        except ValueError:
            continue
    return found


def _judged(wanted: Wanted, sign: Sign | None, damaged: str, controlled: bool, queued: str, digest: Any) -> Standing:
    """The record is read last: whoever was at work before may have finished meanwhile."""
    name, folder = wanted.name, wanted.folder
    who = holder(folder)
    if who is not None:
        if sign is None or (sign.pid, sign.host) != who:
            told = damaged or "no sign of life yet"
            return Standing(name, RUNNING, told, pid=who[0], host=who[1])
        return _with_sign(Standing(name, RUNNING), sign)
    if record_path(folder).is_file():
        found = _finished(wanted, digest)
        if found.state == DONE or sign is None:
            return replace(found, why=queued) if queued and found.state == WAITING else found
    if sign is not None:
        return _left_behind(name, sign)
    if queued:
        return Standing(name, WAITING, queued)
    if damaged:
        return Standing(name, UNKNOWN, damaged)
    begun = (folder / RECIPE).is_file() or (folder / "log.txt").is_file()
    if begun and not controlled:
        return Standing(name, STOPPED, "begun before, and nobody works there now; the same command goes on")
    return Standing(name, WAITING, "goes on from where it was" if begun else "")


def _with_sign(standing: Standing, sign: Sign) -> Standing:
    age = time.time() - sign.at
    told = [standing.why] if standing.why else []
    if age < -SKEW:
        told.append(f"the clock of {sign.host} is {-age:.0f} s ahead of this one")
    if sign.state == RUNNING and standing.state == RUNNING and sign.note:
        told.append(sign.note)
    return replace(
        standing,
        why="; ".join(told),
        stage=sign.stage or (STARTING if sign.state == RUNNING else ""),
        done=sign.done,
        total=sign.total,
        left=sign.left if standing.state == RUNNING else None,
        age=max(0.0, age),
        still=max(0.0, time.time() - sign.moved),
        engine=sign.engine,
        host=sign.host,
        pid=sign.pid,
        gpus=sign.gpus,
        job=sign.job,
    )


def _left_behind(name: str, sign: Sign) -> Standing:
    """The sign in a folder that is not locked, as far as can be seen from here."""
    age = time.time() - sign.at
    if sign.state == FAILED:
        return _with_sign(Standing(name, FAILED, sign.reason), sign)
    if sign.state == STOPPED:
        return _with_sign(Standing(name, STOPPED, "interrupted"), sign)
    if sign.is_alive and sign.stage == STARTING:
        return _with_sign(Standing(name, RUNNING), sign)
    if sign.is_alive:
        return _with_sign(Standing(name, RUNNING, "this file system has no locks"), sign)
    if sign.is_of_this_machine:
        return _with_sign(Standing(name, STOPPED, f"process {sign.pid} ended without a word, as after a kill"), sign)
    if age <= LOST:
        return _with_sign(Standing(name, RUNNING, f"by its last sign alone: no lock of {sign.host} is seen here"), sign)
    told = f"no sign for {duration(age)}; whether process {sign.pid} on {sign.host} lives cannot be seen from here"
    return _with_sign(Standing(name, UNKNOWN, told), sign)


def _finished(wanted: Wanted, digest: Any) -> Standing:
    """For a folder with a record: whether that is of this very run, and all splits are scored."""
    name, place = wanted.name, wanted.place
    try:
        record = Record.load(wanted.folder)
        differing = differing_settings(record.settings or {}, wanted.recipe)
        for split in ("train", "dev"):
            used = record.data.get(split)
            if used is None or used.sha256 != digest(split_path(place.data, split)):
                differing.append(f"{split} data")
    except (UserError, OSError) as error:
        return Standing(name, FAILED, str(error))
    if differing:
        return Standing(name, FAILED, f"a finished run with other settings ({', '.join(differing)}) has its folder")
    scored = record.splits.get("test")
    if place.test and (scored is None or scored.data_sha256 != digest(split_path(place.data, "test"))):
        return Standing(name, WAITING, "trained; test is not scored yet", seconds=record.seconds)
    lost = [
        path.name
        for split in record.splits
        for path in (scores_path(wanted.folder, split), predictions_path(wanted.folder, split))
        if record.splits[split].noted_files.get(path.name) and not path.is_file()
    ]
    if lost:
        return Standing(name, WAITING, f"{', '.join(lost)} is gone; to be scored again", seconds=record.seconds)
    return Standing(name, DONE, seconds=record.seconds)


# For people and for programs


def as_json(found: Sequence[Standing], controller: str) -> dict[str, Any]:
    """The list for programs. controller: who starts what waits, in words, or nothing."""
    counts = {state: sum(one.state == state for one in found) for state in STATES}
    return {"at": time.time(), "controller": controller, "counts": counts, "jobs": [asdict(one) for one in found]}


def table(found: Sequence[Standing], controller: str) -> "RenderableType":
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    from src.console.tables import Fitted

    shown = Table("run", "state", "stage", "done", "left", "last sign", "where", "more")
    for one in found:
        colour = COLOURS.get(one.state, "default")
        cells = [one.stage, progress_text(one), left_text(one), sign_text(one), place_text(one), more_text(one)]
        shown.add_row(escape(one.run), f"[{colour}]{one.state}[/]", *map(escape, cells))
    counts = [f"{number} {state}" for state in STATES if (number := sum(one.state == state for one in found))]
    lines = [f"{counted(len(found), 'run')}: {', '.join(counts)}"]
    left = [one for one in found if one.state in (WAITING, STOPPED, FAILED)]
    waits = any(not one.why.startswith("Slurm") for one in left)  # which starts what it has queued by itself
    if controller:
        lines.append(f"what waits is started by {controller}")
    elif waits:
        lines.append("no command that starts what is left is seen from here; the same command without --status is one")
    return Group(Fitted(shown), "", escape("\n".join(lines)))


def progress_text(one: Standing) -> str:
    if not one.stage or one.state == DONE:
        return ""
    if not one.total:
        return str(one.done or "")
    return f"{one.done}/{one.total} ({one.done / one.total:.0%})"


def left_text(one: Standing) -> str:
    """Of the stage alone: what comes after it is not known."""
    if one.state != RUNNING or not one.stage:
        return ""
    return "unknown" if one.left is None else duration(one.left)


def sign_text(one: Standing) -> str:
    if one.age is None:
        return ""
    moved = f", still for {duration(one.still)}" if one.state == RUNNING and (one.still or 0) > LOST else ""
    return f"{duration(one.age)} ago{moved}"


def place_text(one: Standing) -> str:
    parts = [one.engine, one.host, f"GPU {one.gpus}" if one.gpus else "", f"Slurm {one.job}" if one.job else ""]
    parts.append(f"process {one.pid}" if one.pid else "")
    return ", ".join(filter(None, parts))


def more_text(one: Standing) -> str:
    took = f"took {duration(one.seconds)}" if one.state == DONE and one.seconds else ""
    return "; ".join(filter(None, [one.why, took]))


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}" if seconds < 10 * length else f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def controller_of(folder: Path) -> str:
    """Who is at work as `job_list.present` says: in words, or nothing."""
    from src.files.locks import at_work

    return at_work(folder).removeprefix("is in use by ")
