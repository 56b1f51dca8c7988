"""The bar of a stage on a real (pseudo-)terminal, and what a log gets of it."""

import json
import os
import pty
import re
import subprocess
import sys
import termios

import pytest

from src.console import progress
from src.console.progress import Above, stage


def on_a_terminal(code: str) -> str:
    """What a terminal is sent by a command."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    plain = {name: value for name, value in os.environ.items() if name != progress.PIPE}
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=theirs, stderr=theirs, env={**plain, "COLUMNS": "100"}
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # how a pseudo-terminal ends on Linux
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert child.wait() == 0, said.decode()
    return said.decode()


CODE = """
import sys
from src.console.cli import run_main
from src.console.progress import stage
def main():
    with stage("train", 1) as bar:
        bar.begin(START, 12)
        for step in range(START + 1, 13):
            if step == 6:
                print("dev accuracy", "0.5")
                print("a warning", file=sys.stderr)
            bar.note(f"loss {1 / step:.3f}, lr 1.00e-05")
            bar.update(step)
    print("done")
run_main(main)
"""


def screen(sent: str) -> list[str]:
    """The lines that stay: what stands behind the last return of each."""
    return [line.rstrip().rpartition("\r")[2].replace("\x1b[A", "") for line in sent.replace("\r\n", "\n").split("\n")]


@pytest.mark.parametrize("start", [0, 4])
def test_a_bar_has_its_length_a_note_and_lines_of_others_above_it(start: int) -> None:
    sent = on_a_terminal(CODE.replace("START", str(start)))
    lines = [line for line in screen(sent) if line]
    assert lines[:2] == ["dev accuracy 0.5", "a warning"] and lines[-1] == "done"
    assert re.fullmatch(r"train: 100%\|.+\| 12/12 \[.*loss 0\.083, lr 1\.00e-05\]", lines[2]), lines
    assert f" {start}/12 [00:00<?" in sent and "0/1 " not in sent.partition("/12")[2], "as it is known when it begins"
    assert len(lines) == 4


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that progress goes by, in seconds; nobody watches through a pipe."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.delenv(progress.PIPE, raising=False)
    return now


def test_time_left_counts_what_this_command_did(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with stage("train", 1) as bar:
        clock[0] = 1000.0
        bar.begin(600, 1000)
        bar.note("loss 0.5")
        for done in range(601, 1001):
            clock[0] += 10
            bar.update(done)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: 620 of 1000, loss 0.5, 1:03:20 left"
    assert lines[-1] == "train: 1000 of 1000, loss 0.5, 0:00 left"
    assert len(lines) == 400 / 20, "a fiftieth of the whole each"


def test_a_log_is_not_flooded_and_a_short_stage_says_nothing(
    clock: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    with stage("score", 10_000) as bar:
        for done in range(1, 10_001):
            clock[0] += 0.0029
            bar.update(done)
    assert capfd.readouterr() == ("", "")


def test_who_watches_gets_count_and_note_and_the_log_its_lines(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    monkeypatch.setenv(progress.PIPE, str(writing))
    with stage("train", 1) as bar:
        bar.begin(0, 4)
        bar.note("loss 0.5")
        for done in range(1, 5):
            clock[0] += 31
            bar.update(done)
    os.close(writing)
    with os.fdopen(reading) as lines:
        events = [json.loads(line) for line in lines]
    assert events == [{"stage": "train", "done": done, "total": 4, "note": "loss 0.5"} for done in range(1, 5)]
    assert capfd.readouterr().out.splitlines()[0] == "train: 1 of 4, loss 0.5, 1:33 left"


def test_a_line_in_parts_is_not_broken_by_the_bar() -> None:
    seen: list[str] = []

    class Bar:
        def clear(self) -> None:
            seen.append("<clear>")

        def refresh(self) -> None:
            seen.append("<bar>")

    class Out:
        def write(self, text: str) -> None:
            seen.append(text)

        def flush(self) -> None:
            pass

    print("a", "b", file=Above(Out(), Bar()))  # type: ignore[call-overload]
    assert seen == ["<clear>", "a", " ", "b", "\n", "<bar>"]
