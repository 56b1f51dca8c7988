"""The engine for Slurm: the jobs as array scripts that anyone can read, submitted when asked.

Each task of an array is one command. Shortly before its time limit a task goes back into the queue, and so does one
whose node fails; the command then goes on from its last checkpoint. What was submitted is noted beside the scripts, so
that no run is queued twice.
"""

import getpass
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.console.cli import UserError
from src.console.jobs import COMMAND, Job, environment_of_jobs
from src.console.words import counted
from src.engines.job_list import variables
from src.engines.status import RUNNING, STOPPED, UNKNOWN, WAITING, Standing
from src.files.reading import parse_json, read_text
from src.files.signs import STARTING
from src.files.writing import write_json, write_text

if TYPE_CHECKING:
    from rich.console import Console

NAME = "slurm"
MOST = 1000
"""Tasks of an array: Slurm's MaxArraySize is 1001 unless its administrator says otherwise (slurm.conf(5))."""
BEFORE = 120
"""Seconds before the time limit at which a task goes back into the queue."""
SHOWN = 80
"""Lines of a script that are shown."""
SUBMITTED = "submitted.json"
PATIENCE = 60
"""Seconds that Slurm's commands may take."""

HEAD = """\
#!/bin/bash
# {what}
# Submit: sbatch {path}
# What is done is not done again, and what was interrupted goes on: it may be submitted any number of times.
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --output={output}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@{before}
#SBATCH --nodes=1
#SBATCH --ntasks=1
"""
BODY = """\

cd -- {folder} || exit 1
{exports}

case "$SLURM_ARRAY_TASK_ID" in
{cases}
*) echo "there is no job $SLURM_ARRAY_TASK_ID" >&2; exit 1 ;;
esac

end() {{  # ends the command, and has no one signal do it twice
    trap '' USR1 TERM
    kill -TERM "$child" 2>/dev/null
    wait "$child"
}}
# The time limit is near: back into the queue.
trap 'end; scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"; exit 0' USR1
trap 'end; exit 143' TERM

mkdir -p -- "$(dirname -- "$log")"
printf '{begins}%s\\n' "${{command[*]}}" >> "$log"
echo "$(date '+%F %T') $(hostname): $log"
"${{command[@]}}" < /dev/null >> "$log" 2>&1 &
child=$!
wait "$child"
code=$?
if [ "$code" -eq 0 ] && [ "${{#passing[@]}}" -gt 0 ]; then rm -rf -- "${{passing[@]}}"; fi
echo "$(date '+%F %T') exit $code"
exit "$code"
"""


def place(
    jobs: Sequence[Job], folder: Path, console: "Console", environment: Mapping[str, str], options: Sequence[str]
) -> list[Path]:
    """Writes the scripts of prepared jobs into `folder` and shows them. options: of sbatch, as NAME=VALUE or NAME.
    Returns their paths; none when all jobs are queued already.
    """
    there = queued(folder) or {}
    left = [job for job in jobs if job.name not in there]
    if there:
        told = f"{counted(len(jobs) - len(left), 'run')} of {len(jobs)} in Slurm's queue or at work already"
        console.print(f"{told}; --status shows them", markup=False, soft_wrap=True)
    texts = scripts(left, folder, environment, options)
    for old in folder.glob("*.sbatch"):
        old.unlink()
    for path, (text, _) in texts.items():
        write_text(path, text)
        lines = text.splitlines()
        more = [f"… {len(lines) - SHOWN} more lines in {path}"] if len(lines) > SHOWN else []
        console.print("\n".join([f"{path}:", "", *lines[:SHOWN], *more, ""]), markup=False, soft_wrap=True)
    write_json(folder / "arrays.json", {path.name: names for path, (_, names) in texts.items()})
    return list(texts)


def scripts(
    jobs: Sequence[Job], folder: Path, environment: Mapping[str, str], options: Sequence[str]
) -> dict[Path, tuple[str, list[str]]]:
    """Path → (text of the script, the run of each of its tasks). One for each number of GPUs, and for each `MOST`
    jobs.
    """
    found: dict[Path, tuple[str, list[str]]] = {}
    for gpus in dict.fromkeys(job.gpus for job in jobs):
        alike = [job for job in jobs if job.gpus == gpus]
        for start in range(0, len(alike), MOST):
            part = f"-{start // MOST + 1}" if len(alike) > MOST else ""
            path = folder / f"{gpus}gpu{part}.sbatch"
            some = alike[start : start + MOST]
            found[path] = _script(some, path, environment, options), [job.name for job in some]
    return found


def _script(jobs: Sequence[Job], path: Path, environment: Mapping[str, str], options: Sequence[str]) -> str:
    folder = path.parent.absolute()
    head = HEAD.format(
        what=f"{counted(len(jobs), 'job')} of run.reproduce, each on {counted(jobs[0].gpus, 'GPU')}",
        path=shlex.quote(str(path.absolute())),
        name=_option(path.parent.name),
        last=len(jobs) - 1,
        output=_option(f"{str(folder).replace('%', '%%')}/%A_%a.txt"),
        before=BEFORE,
    )
    lines = [f"#SBATCH --{option}" for option in options]
    if not any(option.partition("=")[0] in ("gres", "gpus", "gpus-per-task", "gpus-per-node") for option in options):
        lines.append(f"#SBATCH --gres=gpu:{jobs[0].gpus}")
    exports = {**environment_of_jobs(), **variables(NAME, environment)}
    return f"{head}{''.join(f'{line}{os.linesep}' for line in lines)}" + BODY.format(
        folder=shlex.quote(os.getcwd()),
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
        cases="\n".join(_case(number, job) for number, job in enumerate(jobs)),
        begins=COMMAND,
    )


def _case(number: int, job: Job) -> str:
    passing = shlex.join(str(one) for one in job.passing)
    return (
        f"{number})  # {job.name}\n    log={shlex.quote(str(job.log))}\n    passing=({passing})\n"
        f"    command=({shlex.join(job.command)}) ;;"
    )


def _option(text: str) -> str:
    """A value of an option, as Slurm reads it from a script."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def check(options: Sequence[str], submit: bool) -> None:
    """UserError for what no script can hold, or cannot be submitted here."""
    for option in options:
        if not option.isprintable() or not option or option.startswith("-"):
            raise UserError(
                f"--sbatch: found {option!r}, allowed: options of sbatch without their dashes, such as time=24:00:00."
            )
    if submit and shutil.which("sbatch") is None:
        raise UserError(
            "--submit: there is no sbatch on this machine. Start the command on one where Slurm's commands are, or "
            "leave out --submit, and submit the scripts there."
        )


def submit(paths: Sequence[Path], console: "Console") -> None:
    """Submits the scripts and notes what they are called in Slurm."""
    for path in paths:
        folder = path.parent
        answer = _asked("sbatch", "--parsable", str(path.absolute()))
        if answer is None or answer.returncode:
            why = answer.stderr.strip() if answer else "it does not answer"
            raise UserError(f"sbatch {shlex.quote(str(path))}: {why}. What was submitted before it stays in the queue.")
        number = answer.stdout.strip().partition(";")[0]
        names = parse_json(read_text(folder / "arrays.json"))[path.name]
        write_json(folder / SUBMITTED, {**_submitted(folder), number: names})
        told = f"submitted as {number}: {counted(len(names), 'task')}; end them all: scancel {number}"
        console.print(told, markup=False, soft_wrap=True)


def _submitted(folder: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_text(folder / SUBMITTED))
    except (UserError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def queued(folder: Path) -> dict[str, str] | None:
    """Name of a run → its task and what Slurm says of it, for all that were submitted from `folder` and are not over.
    None when Slurm cannot be asked.
    """
    submitted = _submitted(folder)
    if not submitted:
        return {}
    listed = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i|%T|%r"]
    answer = _asked(*listed, "--name", folder.name)
    if answer is None or answer.returncode:
        return None
    found: dict[str, str] = {}
    for line in answer.stdout.splitlines():
        task, _, rest = line.strip().partition("|")
        state, _, reason = rest.partition("|")
        array, _, place = task.partition("_")
        names = submitted.get(array, [])
        if place.isdigit() and int(place) < len(names):
            found[names[int(place)]] = f"Slurm {task}: {state}" + (f" ({reason})" if reason != "None" else "")
    return found


def judged(found: Sequence[Standing], there: Mapping[str, str] | None) -> list[Standing]:
    """What Slurm knows better: a run on another host whose task is over is not running. there: of `queued`."""
    if there is None:
        return [replace(one, why=_joined(one.why, "Slurm does not answer")) if one.job else one for one in found]
    judged = []
    for one in found:
        unseen = one.state == UNKNOWN or (one.state == RUNNING and one.why.startswith("by its last sign alone"))
        if unseen and one.job and one.run not in there:
            one = replace(one, state=STOPPED, left=None, why=f"Slurm has no task {one.job} any more; see its log")
        elif unseen and one.run in there:
            one = replace(one, state=RUNNING if RUNNING.upper() in there[one.run] else WAITING, why=there[one.run])
        elif one.state == STOPPED and one.run in there:
            one = replace(one, state=WAITING, why=there[one.run])
        elif one.state == WAITING and RUNNING.upper() in there.get(one.run, ""):
            one = replace(one, state=RUNNING, stage=STARTING, why=there[one.run], engine=NAME)
        judged.append(one)
    return judged


def _joined(*words: str) -> str:
    return "; ".join(filter(None, words))


def _asked(*command: str) -> "subprocess.CompletedProcess[str] | None":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
